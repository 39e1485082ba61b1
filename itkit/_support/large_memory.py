"""Spare a loop over large arrays the cost of asking the system for memory again and again.

A large block that is freed goes back to the system, and the next one is made of fresh pages, each zeroed at its first use.
A loop that makes and drops such blocks, as a network does window by window, can spend more time on that than on arithmetic.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import mmap
import sys
import threading
from collections.abc import Iterator

import numpy as np

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_USUAL_MMAP_MAX = 65536
_LARGEST_MMAP_THRESHOLD = 32 << 20
"""Where glibc's own, growing threshold ends; touching one of the three stops it from growing further."""
_NEVER = 2**31 - 1
_HUGE_PAGE = 2 << 20

_lock = threading.Lock()
_inside = {"keeping": 0, "reusing": 0}


class FreedMemory:
    """Keep freed blocks for the next ones that are as large, within ``with`` and only on Linux with glibc; else do nothing.

    ``with FreedMemory() as memory:`` surrounds the loop, ``with memory.reused():`` the calls in it that make large blocks.
    Only what is made inside ``reused`` comes from kept memory; at the end of the loop all that is free goes back to the
    system. Results do not depend on it. It concerns the whole process, may be nested and used from several threads.
    """

    def __enter__(self) -> FreedMemory:
        with _lock:
            _inside["keeping"] += 1
            if _inside["keeping"] == 1:
                _option(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
                _option(_TRIM_THRESHOLD, _NEVER)
        return self

    def __exit__(self, *_: object) -> None:
        with _lock:
            _inside["keeping"] -= 1
            if _inside["keeping"] == 0:
                _option(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
                library = _glibc()
                if library is not None:
                    library.malloc_trim(0)

    @contextlib.contextmanager
    def reused(self) -> Iterator[None]:
        """Serve blocks of any size from kept memory."""
        with _lock:
            _inside["reusing"] += 1
            if _inside["reusing"] == 1:
                _option(_MMAP_MAX, 0)
        try:
            yield
        finally:
            with _lock:
                _inside["reusing"] -= 1
                if _inside["reusing"] == 0:
                    _option(_MMAP_MAX, _USUAL_MMAP_MAX)


def large_zeros(shape: tuple[int, ...], dtype: str | np.dtype = "float32") -> np.ndarray:
    """Return zeros whose memory comes in large pages where the system has them, and goes back when the array is dropped.

    Raises:
        MemoryError: If there is not enough.
    """
    dtype = np.dtype(dtype)
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size < 2 * _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(shape, dtype)
    try:
        memory = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no {size / 2**30:.2f} GiB of memory for an array of shape {tuple(shape)}") from error
    with contextlib.suppress(OSError):  # a kernel without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    address = np.frombuffer(memory, np.uint8, 1).ctypes.data
    return np.frombuffer(memory, dtype, count, -address % _HUGE_PAGE).reshape(shape)


def _option(name: int, value: int) -> None:
    library = _glibc()
    if library is not None:
        library.mallopt(name, value)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    if not all(hasattr(library, name) for name in ("gnu_get_libc_version", "mallopt", "malloc_trim")):
        return None
    library.mallopt.argtypes, library.mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    library.malloc_trim.argtypes, library.malloc_trim.restype = (ctypes.c_size_t,), ctypes.c_int
    return library
