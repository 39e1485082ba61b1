"""Everything that is needed to say where a result came from."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from itkit import __version__
from itkit._support.resources import describe_machine

PACKAGES = [
    "torch",
    "onedl-mmengine",
    "onedl-mmcv",
    "onedl-mmsegmentation",
    "monai",
    "numpy",
    "scipy",
    "SimpleITK",
    "fvcore",
]


def describe_run(config_folder: Path, seed: int | None) -> dict[str, Any]:
    """Return command, versions, git revision, hardware, seed and start time of this process."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        "python": platform.python_version(),
        "packages": {"itkit": __version__, **_versions()},
        "git": git_revision(config_folder),
        "hardware": {**describe_machine(), "gpus": _gpus(), "torch_threads": torch.get_num_threads()},
        "seed": seed,
    }


def describe_datasets(datasets: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """Return what the datasets hold: number of samples and a fingerprint of each part, and the cases with their own.

    A dataset with a ``fingerprints`` method (or ``fingerprint``) says it itself; of any other only the length is known.

    Returns:
        ``{"cases": {part: count}, "fingerprint": {part: SHA-256} or None}``, and part -> case id -> short checksum of the
        parts whose datasets know them.
    """
    prints: dict[str, str] = {}
    cases: dict[str, dict[str, str]] = {}
    for part, dataset in datasets.items():
        if callable(getattr(dataset, "fingerprints", None)):
            prints[part], cases[part] = dataset.fingerprints()
        elif callable(getattr(dataset, "fingerprint", None)):
            prints[part] = dataset.fingerprint()
    return {"cases": {part: len(d) for part, d in datasets.items()}, "fingerprint": prints or None}, cases


def git_revision(folder: Path) -> str | None:
    """Return the commit of the repository around `folder`, with ``+changes`` if it has uncommitted ones; None outside one."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()


def _versions() -> dict[str, str | None]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def _gpus() -> list[str]:
    return (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
