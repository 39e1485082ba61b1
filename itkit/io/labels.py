"""The values of a label map: checked to be whole numbers, counted, and replaced all at once."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from itkit.errors import DataError

TABLE_SIZE = 1 << 17
"""Largest range of values that is replaced through a table."""


def require_whole(label: np.ndarray, path: str | os.PathLike | None = None) -> np.ndarray:
    """Return a label map as integers; one stored as floating point must hold whole numbers only.

    Args:
        label: Label map of any shape and number type.
        path: File to name in the message.

    Returns:
        `label` itself if it is of an integer type, else a copy of the smallest signed type from int16 up that holds it.

    Raises:
        DataError: If a value is not finite or not whole, or the map holds no number type.
    """
    if label.dtype.kind in "iu":
        return label
    if label.dtype.kind != "f":
        raise DataError(f"voxels of type {label.dtype} are no labels.", path)
    if not np.isfinite(label).all():
        raise DataError("the label map holds NaN or infinite values. Fix the label.", path)
    low, high = float(label.min()), float(label.max())
    kind = next((k for k in (np.int16, np.int32, np.int64) if np.iinfo(k).min <= low and high <= np.iinfo(k).max), None)
    whole = None if kind is None else label.astype(kind)
    if whole is None or not np.array_equal(whole, label):
        wrong = float(label[label != np.rint(label)].flat[0]) if whole is not None else high
        raise DataError(f"the label map holds {wrong:g}, which is no label; is it a probability map or an image?", path)
    return whole


def require_label_map(array: np.ndarray, path: str | os.PathLike | None = None) -> np.ndarray:
    """Return the array of a label map as integers; it must have no channel axis and hold whole numbers only.

    Raises:
        DataError: If it has one, or as `require_whole` does.
    """
    if array.ndim != 3:
        raise DataError("has channels; a label map has none.", path)
    return require_whole(array, path)


def count_values(label: np.ndarray) -> dict[int, int]:
    """Return value -> number of voxels of an integer label map (at least one voxel), ordered by value."""
    flat = label.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    if starts.size > flat.size // 8:  # not the long runs of a label map
        values, counts = np.unique(flat, return_counts=True)
        return {int(value): int(count) for value, count in zip(values, counts, strict=True)}
    counted: dict[int, int] = {}
    lengths = np.diff(np.concatenate((starts, [flat.size])))
    order = np.argsort(flat[starts], kind="stable")
    values, first = np.unique(flat[starts][order], return_index=True)
    for value, count in zip(values, np.add.reduceat(lengths[order], first), strict=True):
        counted[int(value)] = int(count)
    return counted


def replace_values(
    label: np.ndarray, mapping: Mapping[int, int], *, others: int | None = None, dtype: np.dtype | type | None = None
) -> np.ndarray:
    """Return `label` with the keys of `mapping` replaced by its values; two values may change places.

    Args:
        label: Integer label map of any shape. Not modified.
        mapping: ``{old: new}``; the new values must fit into the result's type. Old values that do not occur are ignored.
        others: What all remaining values become. ``None``: they stay.
        dtype: Type of the result. ``None``: that of `label`.

    Returns:
        A new array of the same shape.
    """
    dtype = label.dtype if dtype is None else np.dtype(dtype)
    if label.dtype in (np.uint8, np.uint16):
        low, size = 0, np.iinfo(label.dtype).max + 1
    else:
        low = int(label.min()) if label.size else 0
        size = (int(label.max()) if label.size else 0) - low + 1
    if size <= TABLE_SIZE:
        table = np.arange(low, low + size).astype(dtype) if others is None else np.full(size, others, dtype)
        for old, new in mapping.items():
            if 0 <= old - low < size:
                table[old - low] = new
        return table.take(label if low == 0 else label.astype(np.int64) - low)
    replaced = label.astype(dtype) if others is None else np.full(label.shape, others, dtype)
    for old, new in mapping.items():
        replaced[label == old] = new
    return replaced
