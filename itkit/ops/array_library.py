"""The few operations that NumPy and torch name differently; torch is imported only when one of its arrays comes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np


def library_of(array: Any) -> ModuleType:
    """Return the module, NumPy or torch, that `array` belongs to."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def device_of(array: Any) -> Any:
    """Return the device of a torch tensor, None for a NumPy array."""
    return None if isinstance(array, np.ndarray) else array.device


def to_device(array: Any, device: Any) -> Any:
    """Return `array` on `device`; None leaves it where it is."""
    return array if device is None else array.to(device)


def like(array: np.ndarray, example: Any, device: Any = None) -> Any:
    """Return a NumPy array in the library of `example`, on `device` or else the device of `example`."""
    if isinstance(example, np.ndarray):
        return array
    return library_of(example).from_numpy(array).to(example.device if device is None else device)


def float32(array: Any) -> Any:
    """Return `array` in float32, itself if it is so."""
    return array.astype(np.float32, copy=False) if isinstance(array, np.ndarray) else array.float()


def is_half(array: Any) -> bool:
    """Say whether `array` is of type float16, whose numbers end at 65504."""
    return str(array.dtype).endswith("float16") and not str(array.dtype).endswith("bfloat16")


def flip(array: Any, axes: tuple[int, ...]) -> Any:
    """Return `array` mirrored along `axes`, contiguous."""
    if not axes:
        return array
    return np.ascontiguousarray(np.flip(array, axes)) if isinstance(array, np.ndarray) else array.flip(axes)


def empty_like(array: Any) -> Any:
    """Return an array without elements of the library, type and device of `array`, which does not keep its memory alive."""
    return np.empty(0, array.dtype) if isinstance(array, np.ndarray) else array.new_empty(0)


def zeros(shape: tuple[int, ...], example: Any, device: Any, make: Callable[[tuple[int, ...]], np.ndarray]) -> Any:
    """Return float32 zeros in the library of `example`.

    Args:
        shape: Of the zeros.
        example: Tells the library.
        device: Where they are; None: the CPU.
        make: Makes them on the CPU.

    Raises:
        MemoryError: If there is not enough memory; on other devices what torch raises.
    """
    if isinstance(example, np.ndarray):
        return make(shape)
    torch = library_of(example)
    if device is None or torch.device(device).type == "cpu":
        return torch.from_numpy(make(shape))
    return torch.zeros(shape, dtype=torch.float32, device=device)


def on_cpu(array: Any) -> bool:
    """Say whether `array` lies in the memory of the CPU."""
    return isinstance(array, np.ndarray) or array.device.type == "cpu"
