"""One pass over two label maps, by runs of equal voxels: how often each pair of labels meets, and where each label lies.

A row of a label map is a few stretches of one label each. Where they begin is found by comparing neighbours, which costs
a fraction of looking at every voxel, and all that follows is done once a stretch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from itkit.errors import DataError

_BLOCK = 1 << 17  # voxels compared at once: the parts of both maps then stay in the processor's cache


def require_same_shape(truth: np.ndarray, prediction: np.ndarray) -> None:
    """Raise `DataError` unless both maps have one shape."""
    if truth.shape != prediction.shape:
        raise DataError(
            f"truth has shape {truth.shape}, prediction has {prediction.shape}; bring both to one grid before "
            "comparing."
        )


def joint_runs(
    truth: np.ndarray, prediction: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the stretches in which neither map changes, some thousands at a time, in reading order.

    A stretch lies in one row (the last axis).

    Args:
        truth: Integer or bool array of any shape.
        prediction: The same shape. Neither array is modified.

    Yields:
        ``(starts, lengths, truth labels, prediction labels)``, each (n,): place of the first voxel in reading order,
        number of voxels, and the labels in the maps' own types.
    """
    row = truth.shape[-1] if truth.ndim else 1
    first, second = np.ascontiguousarray(truth).ravel(), np.ascontiguousarray(prediction).ravel()
    rows_at_once = max(1, _BLOCK // max(row, 1))
    changes = np.empty(min(rows_at_once * row, first.size), bool)
    scratch = np.empty_like(changes)
    for begin in range(0, first.size, max(rows_at_once * row, 1)):
        one, other = first[begin : begin + len(changes)], second[begin : begin + len(changes)]
        found = changes[: len(one)]
        np.not_equal(one[1:], one[:-1], out=found[1:])
        np.not_equal(other[1:], other[:-1], out=scratch[1 : len(one)])
        found[1:] |= scratch[1 : len(one)]
        found[::row] = True
        starts = np.flatnonzero(found)
        lengths = np.empty_like(starts)
        np.subtract(starts[1:], starts[:-1], out=lengths[:-1])
        lengths[-1] = len(one) - starts[-1]
        yield starts + begin, lengths, one[starts], other[starts]


def label_boxes(truth: np.ndarray, prediction: np.ndarray, highest: int) -> list[tuple[slice, ...] | None]:
    """Return the smallest box that holds each of the labels 1 to `highest` in both maps.

    Args:
        truth: Integer or bool label map, (Z, Y, X) or (Y, X).
        prediction: The same shape. Neither array is modified.
        highest: Last label to look for; all others are passed over.

    Returns:
        ``highest`` boxes, a slice for each axis; None for a label that occurs in neither map.
    """
    shape = truth.shape
    lowest_at = np.full((len(shape), highest + 1), np.iinfo(np.int64).max)
    highest_at = np.full((len(shape), highest + 1), -1, np.int64)
    for starts, lengths, *maps in joint_runs(truth, prediction):
        for labels in maps:
            kept = labels > 0
            if labels.dtype != bool:
                kept &= labels <= highest
            kept = np.flatnonzero(kept)
            if not len(kept):
                continue
            label = labels[kept].astype(np.intp)
            begin = np.unravel_index(starts[kept], shape)
            for axis, place in enumerate(begin):
                last = place + lengths[kept] - 1 if axis == len(shape) - 1 else place
                np.minimum.at(lowest_at[axis], label, place)
                np.maximum.at(highest_at[axis], label, last)
    return [
        tuple(
            slice(int(low), int(high) + 1) for low, high in zip(lowest_at[:, label], highest_at[:, label], strict=True)
        )
        if highest_at[0, label] >= 0
        else None
        for label in range(1, highest + 1)
    ]
