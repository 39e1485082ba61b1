"""Connected pieces of a label map: count them, keep the largest, remove the small ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import ndimage

from itkit.errors import UsageError

_CONNECTIVITY = ("face", "edge", "corner")


def components(mask: np.ndarray, *, connectivity: str = "corner") -> tuple[np.ndarray, np.ndarray]:
    """Number the connected pieces of a mask.

    Args:
        mask: Any shape; every non-zero voxel is inside. Not modified.
        connectivity: What neighbouring voxels must share to be connected: ``"face"`` (6 neighbours in 3D), ``"edge"``
            (18) or ``"corner"`` (26). In 2D, ``"edge"`` and ``"corner"`` are the same (8 neighbours).

    Returns:
        The piece of each voxel, int32, 0 outside, and the voxels of each piece, int64, (pieces + 1,), the first one
        being the outside. Pieces are numbered in reading order.

    Raises:
        UsageError: If `connectivity` has another value.
    """
    if connectivity not in _CONNECTIVITY:
        raise UsageError(f"connectivity must be one of {', '.join(_CONNECTIVITY)}; found {connectivity!r}.")
    mask = np.asarray(mask) != 0
    rank = min(_CONNECTIVITY.index(connectivity) + 1, max(mask.ndim, 1))
    numbered, count = ndimage.label(mask, structure=ndimage.generate_binary_structure(mask.ndim, rank))
    return numbered, np.bincount(numbered.ravel(), minlength=count + 1)


def keep_largest(
    labels: np.ndarray, classes: Iterable[int] | None = None, *, connectivity: str = "corner"
) -> np.ndarray:
    """Return a label map in which each class is only its largest connected piece; other pieces become 0.

    Args:
        labels: Label map of any integer type (or bool). Not modified.
        classes: Classes to treat. ``None``: all but 0. Others stay as they are.
        connectivity: See `components`.

    Returns:
        A new map of the same type. Of two pieces of one size, the first in reading order stays.

    Raises:
        UsageError: If `connectivity` has another value.
    """

    def largest(sizes: np.ndarray) -> np.ndarray:
        keep = np.zeros(len(sizes), bool)
        keep[1 + np.argmax(sizes[1:])] = True
        return keep

    return _filtered(labels, classes, connectivity, largest)


def remove_small(
    labels: np.ndarray,
    min_volume_mm3: float,
    spacing: Sequence[float],
    classes: Iterable[int] | None = None,
    *,
    connectivity: str = "corner",
) -> np.ndarray:
    """Return a label map without the connected pieces that are smaller than a volume; they become 0.

    Args:
        labels: Label map of any integer type (or bool). Not modified.
        min_volume_mm3: Pieces below this volume in mm^3 (2D: area in mm^2) go; one of exactly this volume stays.
        spacing: Voxel spacing in mm, in the order of the axes.
        classes: Classes to treat. ``None``: all but 0. Others stay as they are.
        connectivity: See `components`.

    Returns:
        A new map of the same type.

    Raises:
        UsageError: If `connectivity` has another value, or `spacing` has not one number for each axis.
    """
    if len(spacing) != np.ndim(labels):
        raise UsageError(f"spacing {tuple(spacing)} does not fit a label map of shape {np.shape(labels)}.")
    voxel = float(np.prod(spacing))
    # A hair below the limit still passes: volume / voxel is rarely exact in floating point.
    return _filtered(labels, classes, connectivity, lambda sizes: sizes * voxel >= min_volume_mm3 * (1 - 1e-9))


def _filtered(labels, classes, connectivity, choose) -> np.ndarray:
    """Set to 0 the pieces of each class that `choose` (sizes -> bool, entry 0 is the outside) does not keep."""
    labels = np.asarray(labels)
    result = labels.copy()
    places = _places(labels)
    for label in places if classes is None else classes:
        if label == 0 or label not in places:
            continue
        inside = labels[places[label]] == label
        numbered, sizes = components(inside, connectivity=connectivity)
        if len(sizes) > 1:
            keep = choose(sizes)
            keep[0] = True
            if not keep.all():
                result[places[label]][~keep[numbered]] = 0
    return result


def _places(labels: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """Return each value but 0 with the smallest box that holds it."""
    if labels.dtype.kind in "iu" and labels.size and int(labels.min()) >= 0 and int(labels.max()) < 1 << 16:
        found = ndimage.find_objects(labels.astype(np.int32, copy=False))
        return {number: box for number, box in enumerate(found, 1) if box is not None}
    return {value: (slice(None),) * labels.ndim for value in np.unique(labels).tolist() if value != 0}
