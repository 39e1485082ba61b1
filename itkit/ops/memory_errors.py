"""Tell a want of memory from other failures, whichever library reports it."""

from __future__ import annotations

import sys

_PHRASES = (
    "out of memory",
    "not enough memory",
    "defaultcpuallocator",
    "failed to allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "bad allocation",
)


def is_memory_error(error: BaseException) -> bool:
    """Say whether `error` means that there was not enough memory, of the machine or of a GPU.

    Python and NumPy raise `MemoryError`; torch a `RuntimeError` of its own for a GPU and a plain one for the CPU, ONNX Runtime
    one of its own: those are known by their words.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) or not isinstance(error, Exception):
        return False
    foreign = isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime")
    return foreign and any(phrase in str(error).lower() for phrase in _PHRASES)


def give_back_device_memory() -> None:
    """Let torch return the blocks that it keeps on a GPU but does not use; nothing happens where torch has none."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
