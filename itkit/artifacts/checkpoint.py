"""Read a checkpoint and distrust it: whole, plain data only, and of the model it is meant for."""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from itkit._support.suggestions import nearest
from itkit._support.transient import retrying
from itkit.errors import CheckpointError, UntrustedCheckpoint

_BLOCK = 1 << 20
_UNREADABLE = (
    EOFError, RuntimeError, OSError, LookupError, ValueError, TypeError, OverflowError, MemoryError,
    zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip
"""What reading a file with some wrong bits can raise, besides what pickle does (seen by flipping bits at random)."""


def load(
    path: Path, map_location: Any = "cpu", *, sha256_expected: str | None = None, trusted: bool = False
) -> dict[str, Any]:
    """Return the checkpoint at `path`, reading tensors and plain data only (``weights_only=True``).

    Args:
        path: The file.
        map_location: As in ``torch.load``.
        sha256_expected: The checksum recorded when it was written; None compares the checksums inside the file.
        trusted: Read Python objects too, which can run code of whoever wrote the file.

    Raises:
        CheckpointError: If the file is missing, empty, truncated or altered.
        UntrustedCheckpoint: If it holds objects that could run code, and is not `trusted`.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint.")
    try:
        retrying(lambda: _require_whole(path, sha256_expected))
        return torch.load(path, map_location=map_location, weights_only=not trusted)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        if name is None:
            raise CheckpointError(f"{path}: is damaged, or is no checkpoint.") from error
        raise UntrustedCheckpoint(
            f"{path}: holds Python objects ({name[1]}) beside tensors and plain data, and loading them could run foreign "
            "code. If you trust its origin: --trust-checkpoint."
        ) from error
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"{path}: holds objects of a package that is not here ({error}).") from error
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{path}: is damaged or incomplete ({' '.join(str(error).split())[:200] or 'it ends too early'})."
        ) from error


def _require_whole(path: Path, sha256_expected: str | None) -> None:
    """Raise if a file is not the one that was recorded, or, without a record, if it contradicts itself."""
    if sha256_expected:
        if sha256(path) != sha256_expected:
            raise CheckpointError(f"{path}: is damaged (its checksum is not the one recorded when it was written).")
    elif zipfile.is_zipfile(path):  # PyTorch itself does not look at these checksums
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken:
            raise CheckpointError(f"{path}: is damaged (the checksum of its part {broken} is wrong).")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as a hexadecimal word."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def bare_weights(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights in a checkpoint by the names of the bare model; ``module.`` in front of a name is left out."""
    weights = checkpoint.get("state_dict", checkpoint)
    return {key.removeprefix("module."): value for key, value in weights.items()}


def weight_differences(own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> str:
    """Return how the names and shapes of `weights` differ from those of a model, in words; empty if they do not."""
    missing = [key for key in own if key not in weights]
    unexpected = [key for key in weights if key not in own]
    shapes = [key for key in own if key in weights and _shape(own[key]) != _shape(weights[key])]
    parts = []
    if missing:
        parts.append(f"missing {len(missing)} ({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''})")
    if unexpected:
        near = nearest(unexpected[0], missing, count=1)
        parts.append(
            f"unexpected {len(unexpected)} ({', '.join(unexpected[:3])})" + (f", nearest {near[0]}" if near else "")
        )
    for key in shapes[:3]:
        parts.append(f"{key} has shape {_shape(weights[key])}, the model wants {_shape(own[key])}")
    return "; ".join(parts) + "." if parts else ""


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None
