"""Write and read checkpoints: whole or not at all, plain data only, named by a checksum."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from itkit._support.files import replace_when_complete
from itkit.errors import CheckpointError


def save(checkpoint: dict[str, Any], path: Path) -> str:
    """Write `checkpoint` to `path` (beside it first, then renamed) and return its SHA-256.

    Raises:
        OSError: If the disk is full or the folder is read-only; what stood at `path` is untouched.
    """
    with replace_when_complete(path) as temporary:
        try:
            torch.save(checkpoint, temporary)
        except RuntimeError as error:
            if "inline_container" not in str(error):  # how torch says that the system refused to write
                raise
            number = errno.EIO if shutil.disk_usage(path.parent).free > 1 << 20 else errno.ENOSPC
            raise OSError(number, os.strerror(number)) from error
        digest = sha256(temporary)
    return digest


def load(path: Path, map_location: Any = "cpu", *, sha256_expected: str | None = None) -> dict[str, Any]:
    """Return the checkpoint at `path`, reading tensors and plain data only (``weights_only=True``).

    Args:
        path: The file.
        map_location: As in ``torch.load``.
        sha256_expected: The checksum recorded when it was written; None reads without the comparison.

    Raises:
        CheckpointError: If the file is missing, empty, truncated, altered, or holds objects that would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint.")
    if sha256_expected and sha256(path) != sha256_expected:
        raise CheckpointError(f"{path}: is damaged (its checksum is not the one recorded when it was written).")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds Python objects beside tensors and plain data, and loading them could run foreign code. "
            "If you trust its origin, convert it once with torch.load(..., weights_only=False) and save its state_dict."
        ) from error
    except (EOFError, RuntimeError, zipfile.BadZipFile, OSError, KeyError) as error:
        raise CheckpointError(
            f"{path}: is damaged or incomplete ({' '.join(str(error).split())[:200] or 'it ends too early'})."
        ) from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as a hexadecimal word."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """Return `value` with NumPy scalars and arrays, paths and unknown objects turned into data that any load accepts."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, dict):
        return {key if isinstance(key, (str, int)) else str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return str(value)


def random_state() -> dict[str, Any]:
    """Return the states of all global generators (Python, NumPy, torch, CUDA) as plain data."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set all global generators to what `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
