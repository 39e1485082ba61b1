"""Write and read checkpoints: whole or not at all, plain data only, named by a checksum."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from itkit._support.files import replace_when_complete
from itkit._support.transient import retrying
from itkit.artifacts.checkpoint import load, sha256

__all__ = ["copy_file", "copy_to_keep", "frozen", "load", "plain", "random_state", "save", "set_random_state", "sha256"]

_BLOCK = 1 << 20


def save(checkpoint: dict[str, Any], path: Path, *, say: Callable[[str], None] | None = None) -> str:
    """Write `checkpoint` to `path` and return its SHA-256, which is that of the bytes as they were produced.

    The file is written beside `path`, flushed to the disk, read back, compared, and renamed only then; so what stood at
    `path` is replaced by a proven file or stays. The system is asked to forget its copy in memory before the file is read
    back. Errors that pass, a difference between what was written and what is read among them, are waited out.

    Args:
        checkpoint: What `frozen` returns, or anything that `load` takes.
        path: The file.
        say: Called with one line before each further attempt.

    Raises:
        OSError: If the disk is full, the folder read-only, or an error stays; what stood at `path` is untouched.
    """
    path = Path(path)
    return retrying(lambda: _save(checkpoint, path), say=say)


def copy_file(source: Path, path: Path, sha256_expected: str | None) -> None:
    """Let `path` be a proven copy of `source`, which replaces what stood there.

    No second name of the same file: what harms one of the two must not harm the other.

    Raises:
        OSError: If it cannot be written, or `source` does not have the expected checksum.
    """
    retrying(lambda: _copy_file(source, path, sha256_expected))


def _save(checkpoint: dict[str, Any], path: Path) -> str:
    with replace_when_complete(path) as temporary:
        with open(temporary, "wb") as stream:
            produced = _Digesting(stream)
            try:
                torch.save(checkpoint, produced)
            except RuntimeError as error:  # torch hides what the system said behind a complaint of its own
                if produced.error is None and "inline_container" not in str(error):
                    raise
                number = errno.EIO if shutil.disk_usage(path.parent).free > 1 << 20 else errno.ENOSPC
                raise (produced.error or OSError(number, os.strerror(number))) from error
            _to_disk(stream)
        _require_same(temporary, produced.hexdigest(), path)
    return produced.hexdigest()


def _copy_file(source: Path, path: Path, sha256_expected: str | None) -> None:
    with replace_when_complete(path) as temporary:
        with open(source, "rb") as original, open(temporary, "wb") as stream:
            produced = _Digesting(stream)
            while block := original.read(_BLOCK):
                produced.write(block)
            _to_disk(stream)
        _require_same(temporary, sha256_expected or produced.hexdigest(), path)


class _Digesting:
    """A stream to write to that computes the SHA-256 of what passes, and remembers what the system refused."""

    def __init__(self, stream: BinaryIO):
        self._stream, self._digest = stream, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self._digest.update(data)
        try:
            return self._stream.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._stream.flush()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _to_disk(stream: BinaryIO) -> None:
    """Flush a written file, and let the system forget its copy in memory, so that reading it asks the device."""
    stream.flush()
    os.fsync(stream.fileno())
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _require_same(temporary: Path, expected: str, path: Path) -> None:
    if sha256(temporary) != expected:
        raise OSError(errno.EIO, "what is read back is not what was written", str(path))


def plain(value: Any) -> Any:
    """Return `value` with NumPy scalars and arrays, paths and unknown objects turned into data that any load accepts."""
    return _plain(value, lambda tensor: tensor.detach().cpu())


def copy_to_keep(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy on the CPU that `frozen` takes as it is; for hooks that add large tensors to a checkpoint."""
    copy = tensor.detach().to("cpu", copy=True)
    copy.is_to_keep = True
    return copy


def frozen(value: Any, *, own: Any = None) -> Any:
    """Return `value` as `plain` does, with copies of all tensors, so that training on cannot change it.

    Args:
        value: Nested dictionaries and lists.
        own: Nested tensors that are copies already; those are taken as they are wherever they occur in `value`, and so
            are those of `copy_to_keep`.
    """
    kept: set[int] = set()
    _plain(own, lambda tensor: kept.add(tensor.untyped_storage().data_ptr()))
    copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        is_copy = getattr(tensor, "is_to_keep", False) or tensor.untyped_storage().data_ptr() in kept
        if is_copy and tensor.device.type == "cpu":
            return tensor.detach()
        if id(tensor) not in copies:
            copies[id(tensor)] = (tensor, tensor.detach().to("cpu", copy=True))
        return copies[id(tensor)][1]

    return _plain(value, copied)


def _plain(value: Any, of_tensor: Callable[[torch.Tensor], Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return of_tensor(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, dict):
        return {key if isinstance(key, (str, int)) else str(key): _plain(v, of_tensor) for key, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item, of_tensor) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return str(value)


def random_state(*, every_device: bool = True) -> dict[str, Any]:
    """Return the states of this process's global generators (Python, NumPy, torch, CUDA) as plain data.

    Args:
        every_device: Of all GPUs that are visible; False: of the current one, where each process has its own.
    """
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all() if every_device else [torch.cuda.get_rng_state()]
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set all global generators of this process to what `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" not in state or not torch.cuda.is_available():
        return
    if len(state["cuda"]) == 1:
        torch.cuda.set_rng_state(state["cuda"][0].cpu())
    elif len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
