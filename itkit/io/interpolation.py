"""Values between voxels, one axis after the other: gather, weigh and add, in slabs that stay in the cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SLAB_VOXELS = 1 << 18
_SNAP = 1e-9
"""A position this near to a voxel's centre, or to the middle between two, is taken to be there."""
_EXACT_IN_FLOAT64 = 1 << 53
_TIE = 1e-6
"""Shares of two classes that differ by less are equal; the smaller value wins."""


@dataclass(frozen=True)
class Taps:
    """How each new place along one axis is made of old ones.

    Attributes:
        indices: (taps, places): which old voxels. They never decrease along a tap.
        weights: (taps, places), float64, of sum 1 over the taps; None takes the one voxel as it is.
        identity: Every place is the voxel of the same number.
    """

    indices: np.ndarray
    weights: np.ndarray | None
    identity: bool

    def between(self, first: int, last: int, base: int = 0) -> Taps:
        """Return the taps of the places `first` to `last` (exclusive), their indices counted from `base`."""
        weights = None if self.weights is None else self.weights[:, first:last]
        whole = self.identity and base == first
        return Taps(self.indices[:, first:last] - base, weights, whole)

    @property
    def count(self) -> int:
        """Number of new places."""
        return self.indices.shape[1]


def nearest_taps(positions: np.ndarray, size: int) -> Taps:
    """Take the voxel nearest to each of `positions` (in voxels, ascending); half way goes up; ends are continued."""
    indices = np.floor(positions + (0.5 + _SNAP)).clip(0, size - 1).astype(np.intp)
    return Taps(indices[None], None, _is_identity(indices, size))


def linear_taps(positions: np.ndarray, size: int) -> Taps:
    """Weigh the two voxels around each of `positions` (in voxels, ascending); ends are continued."""
    positions = np.clip(positions, 0, size - 1)
    below = np.floor(positions + _SNAP).astype(np.intp)
    share = positions - below
    share[share < _SNAP] = 0
    if not share.any():
        return Taps(below[None], np.ones((1, len(positions))), _is_identity(below, size))
    # Where the upper voxel has no share it must not be looked at, it may be NaN; and infinity times 0 is NaN.
    above = np.where(share > 0, np.minimum(below + 1, size - 1), below)
    share[share == 0] = 0.5
    return Taps(np.stack([below, above]), np.stack([1 - share, share]), False)


def smooth_taps(positions: np.ndarray, size: int, sigma_vox: float) -> Taps:
    """Weigh as `linear_taps` does, after a Gaussian of `sigma_vox` (cut at four sigma; ends are continued)."""
    positions = np.clip(positions, 0, size - 1)
    below = np.floor(positions + _SNAP).astype(np.intp)
    share = np.clip(positions - below, 0, None)
    radius = max(1, int(np.ceil(4 * sigma_vox)))
    offsets = np.arange(-radius, radius + 2)[:, None]

    def bell(distance: np.ndarray) -> np.ndarray:
        return np.where(np.abs(distance) <= radius, np.exp(-0.5 * (distance / sigma_vox) ** 2), 0.0)

    weights = (1 - share) * bell(offsets) + share * bell(offsets - 1)
    return Taps((below + offsets).clip(0, size - 1), weights / weights.sum(axis=0), False)


def resample_separable(array: np.ndarray, taps_zyx: tuple[Taps, Taps, Taps]) -> np.ndarray:
    """Apply one `Taps` per axis to `array` (Z, Y, X).

    Memory beyond input and output is a few slabs. Weighed values are added up in float32 for integers of at most 16 bits
    and for float32, in float64 for the rest, and in extended precision for 64-bit integers beyond 2^53.

    Returns:
        A new array of the same type; integers are rounded to the nearest, half to even.
    """
    out = np.empty(tuple(taps.count for taps in taps_zyx), array.dtype)
    if all(taps.weights is None for taps in taps_zyx):
        _fill(out, array, taps_zyx, array.dtype)
    else:
        _fill(out, array, taps_zyx, _working_type(array))
    return out


def resample_labels_separable(array: np.ndarray, taps_zyx: tuple[Taps, Taps, Taps]) -> np.ndarray:
    """Give each new voxel the label whose indicator function, interpolated with `taps_zyx`, is largest there.

    Slab by slab, and for each label only within its box: memory does not grow with the number of labels. Equal shares (within
    1e-6) go to the smaller label.

    Args:
        array: (Z, Y, X), any type.
        taps_zyx: Weighing taps of each axis.

    Returns:
        A new array of the same type, with no label that `array` does not have.
    """
    out = np.empty(tuple(taps.count for taps in taps_zyx), array.dtype)
    z, plane = taps_zyx[0], taps_zyx[1].count * taps_zyx[2].count
    step = max(1, 8 * _SLAB_VOXELS // max(plane, 1))
    for first in range(0, z.count, step):
        last = min(first + step, z.count)
        low, high = _reach(z, first, last)
        slab = array[low:high]
        labels = distinct_values(slab)
        if len(labels) == 1:
            out[first:last] = labels[0]
            continue
        taps = (z.between(first, last, low), *taps_zyx[1:])
        best = np.zeros((last - first, *out.shape[1:]), np.float32)
        target = out[first:last]
        for label in labels:
            _claim(target, best, slab == label, taps, label)
    return out


def distinct_values(array: np.ndarray) -> np.ndarray:
    """Return the sorted distinct values of `array`; quick for integers of a small range."""
    if array.dtype.kind not in "iu" or array.size < 1 << 12:
        return np.unique(array)
    low, high = int(array.min()), int(array.max())
    if high - low > 1 << 16:
        return np.unique(array)
    found = np.zeros(high - low + 1, bool)
    for plane in array.reshape(array.shape[0], -1):
        found[plane.astype(np.int64) - low] = True
    return (np.flatnonzero(found) + low).astype(array.dtype)


def _fill(out: np.ndarray, array: np.ndarray, taps_zyx: tuple[Taps, Taps, Taps], work: np.dtype) -> None:
    z, y, x = taps_zyx
    # The axis that loses most voxels goes first; the others then have less to do.
    plane_axes = sorted(((y, 1), (x, 2)), key=lambda pair: pair[0].count / array.shape[pair[1]])

    def within_planes(slab: np.ndarray) -> np.ndarray:
        for taps, axis in plane_axes:
            slab = _weigh(slab, taps, axis, work)
        return slab

    z_first = z.weights is None or z.count <= array.shape[0]
    voxels = max(out.shape[1] * out.shape[2], array.shape[1] * array.shape[2])
    step = max(1, _SLAB_VOXELS // max(voxels, 1))
    planes, base = None, 0
    for first in range(0, z.count, step):
        last = min(first + step, z.count)
        low, high = _reach(z, first, last)
        if z_first:
            slab = within_planes(_weigh(array[low:high], z.between(first, last, low), 0, work))
        else:
            # Planes that the slab before has made already are kept.
            kept = None if planes is None else planes[low - base :]
            start = low + (0 if kept is None else len(kept))
            if start < high:
                fresh = within_planes(array[start:high])
                planes = fresh if kept is None or not len(kept) else np.concatenate([kept, fresh])
            else:
                planes = kept
            base = low
            slab = _weigh(planes, z.between(first, last, low), 0, work)
        # What is still of the array's type has only been copied.
        out[first:last] = np.rint(slab, out=slab) if slab.dtype.kind == "f" != array.dtype.kind else slab


def _weigh(array: np.ndarray, taps: Taps, axis: int, work: np.dtype) -> np.ndarray:
    """Apply `taps` along one axis; what needs no arithmetic keeps its type."""
    if taps.identity:
        return array
    if taps.weights is None or len(taps.weights) == 1:
        return array.take(taps.indices[0], axis=axis, mode="clip")
    shape = [1, 1, 1]
    shape[axis] = -1
    total = None
    for indices, weights in zip(taps.indices, taps.weights, strict=True):
        part = array.take(indices, axis=axis, mode="clip")
        weights = weights.astype(work).reshape(shape)
        part = np.multiply(part, weights, out=part) if part.dtype == work else np.multiply(part, weights, dtype=work)
        total = part if total is None else np.add(total, part, out=total)
    return total


def _claim(target: np.ndarray, best: np.ndarray, mask: np.ndarray, taps_zyx: tuple[Taps, ...], label) -> None:
    """Write `label` where its share is larger than the best so far; only where its box can reach is looked at."""
    window, box, local = [], [], []
    for axis, taps in enumerate(taps_zyx):
        there = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(there):
            return
        touched = np.flatnonzero((taps.indices.max(axis=0) >= there[0]) & (taps.indices.min(axis=0) <= there[-1]))
        if not len(touched):
            return
        first, last = int(touched[0]), int(touched[-1]) + 1
        low, high = _reach(taps, first, last)
        window.append(slice(first, last))
        box.append(slice(low, high))
        local.append(taps.between(first, last, low))
    share = mask[tuple(box)].astype(np.float32)
    for axis in sorted(range(3), key=lambda axis: local[axis].count / share.shape[axis]):
        share = _weigh(share, local[axis], axis, np.dtype(np.float32))
    best, target = best[tuple(window)], target[tuple(window)]
    better = share > best + np.float32(_TIE)
    np.copyto(best, share, where=better)
    np.copyto(target, label, where=better)


def _reach(taps: Taps, first: int, last: int) -> tuple[int, int]:
    """The old voxels, from and to (exclusive), that the places `first` to `last` look at."""
    part = taps.indices[:, first:last]
    return int(part.min()), int(part.max()) + 1


def _working_type(array: np.ndarray) -> np.dtype:
    if array.dtype.itemsize <= 2 or array.dtype == np.float32:
        return np.dtype(np.float32)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8 and array.size:
        largest = max(abs(int(array.min())), abs(int(array.max())))
        if largest > _EXACT_IN_FLOAT64:
            return np.dtype(np.longdouble)
    return np.dtype(np.float64)


def _is_identity(indices: np.ndarray, size: int) -> bool:
    return len(indices) == size and bool((indices == np.arange(size)).all())
