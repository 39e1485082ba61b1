"""Replace the values of a label map, all at once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def replace_values(label: np.ndarray, mapping: Mapping[int, int], *, others: int | None = None) -> np.ndarray:
    """Return `label` with the keys of `mapping` replaced by its values; two values may change places.

    Args:
        label: Integer label map of any shape. Not modified.
        mapping: ``{old: new}``; the new values must fit into the label's type. Old values that do not occur are ignored.
        others: What all remaining values become. ``None``: they stay.

    Returns:
        A new array of the same shape and type.
    """
    if label.dtype in (np.uint8, np.uint16):
        size = np.iinfo(label.dtype).max + 1
        table = np.arange(size, dtype=label.dtype) if others is None else np.full(size, others, label.dtype)
        for old, new in mapping.items():
            if 0 <= old < size:
                table[old] = new
        return table.take(label)
    replaced = label.copy() if others is None else np.full_like(label, others)
    for old, new in mapping.items():
        replaced[label == old] = new
    return replaced
