"""Ask the system for the memory of large arrays in large pages, because each small page costs a fault and is zeroed alone.

A network that answers window by window makes and drops a large array each time; with pages of 4 KiB that can take longer than
its arithmetic.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import weakref

import numpy as np

_HUGE_PAGE = 2 << 20
_TORCH_SWITCH = "THP_MEM_ALLOC_ENABLE"


def prefer_large_pages() -> None:
    """Let torch ask for large pages for its CPU tensors of 2 MiB and more, unless the environment says otherwise.

    Torch looks at its switch when it makes its first tensor; later it is without effect. Numbers do not depend on it. The
    kernel must allow it (``madvise`` or ``always`` in ``/sys/kernel/mm/transparent_hugepage/enabled``, the usual setting).
    """
    os.environ.setdefault(_TORCH_SWITCH, "1")


class ZeroedBlocks:
    """Makes arrays of zeros again and again, from the memory of earlier ones that nobody uses any more.

    A free block is taken where it fits well; where none does, free blocks go back to the system before new memory is asked for,
    so that no more is held than the arrays that are in use at a time, and a tenth.
    """

    def __init__(self):
        self._blocks: list[_Block] = []

    def zeros(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return float32 zeros of `shape`.

        Raises:
            MemoryError: If there is not enough.
        """
        size = 4 * math.prod(shape)
        if size < 2 * _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
            return np.zeros(shape, np.float32)
        for block in self._blocks:
            if block.is_free and size <= block.size <= 1.1 * size:
                array = block.array(size)
                array[:] = 0
                return array.reshape(shape)
        self._blocks = [block for block in self._blocks if not block.is_free]
        block = _Block(size)
        self._blocks.append(block)
        return block.array(size).reshape(shape)


class _Block:
    """Memory in large pages, zeroed by the system, and whether anybody uses it."""

    def __init__(self, size: int):
        self.size = size
        try:
            self._memory = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"no {size / 2**30:.2f} GiB of memory for one array") from error
        self._offset = -np.frombuffer(self._memory, np.uint8, 1).ctypes.data % _HUGE_PAGE
        with contextlib.suppress(
            OSError
        ):  # a kernel without large pages; a last page that would not be filled stays small
            self._memory.madvise(mmap.MADV_HUGEPAGE, self._offset, size // _HUGE_PAGE * _HUGE_PAGE)
        self._user: weakref.ref | None = None

    @property
    def is_free(self) -> bool:
        return self._user is None or self._user() is None

    def array(self, size: int) -> np.ndarray:
        """Return the first `size` bytes as float32. Every view of the array keeps this very object alive."""
        array = np.frombuffer(self._memory, np.float32, size // 4, self._offset)
        self._user = weakref.ref(array)
        return array
