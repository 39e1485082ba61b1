"""Put a stream of slabs on another grid, linearly along each axis, while only what neighbours share is kept of earlier slabs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from itkit.errors import ConfigError
from itkit.io.geometry import Geometry
from itkit.io.interpolation import Taps, linear_taps
from itkit.ops.array_library import library_of, like
from itkit.ops.window_stream import Slab


def resample_slabs(
    slabs: Iterable[Slab],
    size_in: Sequence[int],
    size_out: Sequence[int],
    *,
    axis: int = 0,
    first: Sequence[float] | None = None,
    step: Sequence[float] | None = None,
    planes_at_once: int | None = None,
) -> Iterator[Slab]:
    """Yield the scores on another grid with the same axes, slab by slab.

    Equal to resampling the whole volume at once by linear interpolation with the ends continued, as
    `itkit.io.resampling` does with images: scores between voxels are weighed along one axis after the other, in float32.

    Args:
        slabs: Whole planes or rows of them, each after its neighbours before it, as
            `itkit.ops.window_stream.stream_windows` yields them.
        size_in: Voxels of the volume that the slabs make up, in the volume's order of axes.
        size_out: Voxels of the new grid, likewise.
        axis: The streaming axis of the slabs.
        first: Where the new grid's first voxel lies in the old grid, in old voxels along each axis. None: the field of view is
            kept, as `itkit.io.resampling.resample_to_size` does.
        step: Old voxels from one new voxel to the next along each axis, positive. None: ``size_in / size_out``. See
            `grid_positions` for the two of a pair of grids.
        planes_at_once: Most new planes in one slab. None: about as many scores as the old slab has.

    Yields:
        Slabs on the new grid, which cover it once; streaming axis and order are those of `slabs`.

    Raises:
        ConfigError: If the sizes, the steps or the order of the slabs make no sense.
    """
    size_in, size_out = tuple(size_in), tuple(size_out)
    axes = len(size_in)
    if len(size_out) != axes or min(*size_in, *size_out) < 1 or not 0 <= axis < axes:
        raise ConfigError(
            f"slabs of a volume of size {size_in} along axis {axis} cannot become one of size {size_out}."
        )
    step = tuple(old / new for old, new in zip(size_in, size_out, strict=True)) if step is None else tuple(step)
    first = tuple((ratio - 1) / 2 for ratio in step) if first is None else tuple(first)
    if len(step) != axes or len(first) != axes or not all(np.isfinite([*step, *first])) or min(step) <= 0:
        raise ConfigError(f"first {first} and step {step} of a new grid need a number for each axis, steps positive.")
    order = [axis, *(other for other in range(axes) if other != axis)]
    taps = [linear_taps(first[i] + np.arange(size_out[i]) * step[i], size_in[i]) for i in order]
    yield from _Resampler(taps, [size_in[i] for i in order], planes_at_once).run(slabs)


def grid_positions(old: Geometry, new: Geometry) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return `first` and `step` of `resample_slabs` that lead from the grid `old` to the grid `new`, order (Z, Y, X).

    Args:
        old: The grid of the slabs, e.g. the one that preprocessing made with `itkit.io.resampling.spacing_grid`.
        new: The grid asked for; its axes point the same way.

    Raises:
        ConfigError: If the axes of the two grids are not the same.
    """
    old, new = old.geometry, new.geometry
    direction = np.reshape(old.direction_xyz, (3, 3))
    if not np.allclose(direction, np.reshape(new.direction_xyz, (3, 3)), atol=1e-6):
        raise ConfigError("the two grids have different directions; bring them to one orientation first.")
    offset_xyz = direction.T @ (np.array(new.origin_xyz) - np.array(old.origin_xyz))
    first = tuple(float(offset) / spacing for offset, spacing in zip(offset_xyz[::-1], old.spacing_zyx, strict=True))
    step = tuple(b / a for a, b in zip(old.spacing_zyx, new.spacing_zyx, strict=True))
    return first, step


class _Resampler:
    """Resamples slabs one after the other; keeps the last planes and rows that the next ones need.

    A new voxel belongs to the slab that holds the upper of the two old voxels it lies between; so the lower one is in the same
    slab or is the last one of the neighbour before it.
    """

    def __init__(self, taps: Sequence[Taps], size: Sequence[int], planes_at_once: int | None):
        self._taps, self._size, self._planes_at_once = taps, size, planes_at_once
        self._upper = [axis.indices.max(axis=0) for axis in taps]
        # By how much a plane has more scores before than after; the same for all rows, so that they meet at the same planes.
        self._shrinkage = math.prod(size[1:]) / math.prod(axis.count for axis in taps[1:])
        self._plane: dict[tuple, tuple[int, Any]] = {}
        """Last plane before each column of slabs: its position, its scores (K, 1, *others)."""
        self._edges: dict[tuple, Any] = {}
        """Last rows of resampled planes, by axis, the planes, and where the neighbour ends."""

    def run(self, slabs: Iterable[Slab]) -> Iterator[Slab]:
        for slab in slabs:
            others = slab.place[1:]
            bounds = [(slab.start, slab.stop)] + [
                part.indices(n)[:2] for part, n in zip(others, self._size[1:], strict=True)
            ]
            places = [
                (int(np.searchsorted(upper, low)), int(np.searchsorted(upper, high)))
                for upper, (low, high) in zip(self._upper, bounds, strict=True)
            ]
            column = tuple(bounds[1:])
            before = self._plane.pop(column, None)
            if slab.start > 0 and (before is None or before[0] != slab.start - 1):
                raise ConfigError(f"the slab of planes {slab.start} to {slab.stop} does not follow the one before it.")
            if slab.stop < self._size[0]:
                last = slab.scores[:, -1:]
                self._plane[column] = (slab.stop - 1, last.copy() if isinstance(last, np.ndarray) else last.clone())
            begin, end = places[0]
            chunk = self._planes_at_once or max(1, int((slab.stop - slab.start) * self._shrinkage))
            for low in range(begin, end, chunk):
                high = min(low + chunk, end)
                scores = self._planes(slab, None if before is None else before[1], low, high)
                for number, (bound, place) in enumerate(zip(bounds[1:], places[1:], strict=True), 1):
                    scores = self._along(scores, number, bound, place, (low, high, *column))
                if all(a < b for a, b in places[1:]):
                    whole = all(
                        place == (0, taps.count) for place, taps in zip(places[1:], self._taps[1:], strict=True)
                    )
                    yield Slab(low, high, scores, None if whole else tuple(slice(*place) for place in places[1:]))
                del scores

    def _planes(self, slab: Slab, before: Any, low: int, high: int) -> Any:
        """Return new planes `low` to `high` with the other axes as they were."""
        taps = self._taps[0].between(low, high)
        if self._taps[0].identity:
            return slab.scores[:, low - slab.start : high - slab.start]
        crossing = int(np.searchsorted(taps.indices.min(axis=0), slab.start))
        parts = []
        if crossing:  # planes between the last old one of the slab before and the first of this
            pair = _joined([before, slab.scores[:, :1]], 1)
            parts.append(_weigh(pair, taps.between(0, crossing, slab.start - 1), 1))
        if crossing < taps.count:
            parts.append(_weigh(slab.scores, taps.between(crossing, taps.count, slab.start), 1))
        return _joined(parts, 1)

    def _along(self, scores: Any, number: int, bound: tuple[int, int], place: tuple[int, int], key: tuple) -> Any:
        """Resample along one of the other axes; the last row of the neighbour before is taken from what was kept."""
        taps, (start, stop), (low, high) = self._taps[number], bound, place
        if start == 0 and stop == self._size[number]:
            return _weigh(scores, taps, number + 1)
        column = list(key)
        column[number + 1] = start
        kept = self._edges.pop((number, *column), None)
        if stop < self._size[number]:
            edge = scores[(slice(None),) * (number + 1) + (slice(-1, None),)]
            column[number + 1] = stop
            self._edges[(number, *column)] = edge.copy() if isinstance(edge, np.ndarray) else edge.clone()
        if start > 0:
            if kept is None:
                raise ConfigError(f"the slab that begins at row {start} does not follow the one before it.")
            scores, start = _joined([kept, scores], number + 1), start - 1
        return _weigh(scores, taps.between(low, high, start), number + 1)


def _joined(parts: list[Any], axis: int) -> Any:
    return parts[0] if len(parts) == 1 else library_of(parts[0]).concatenate(parts, axis)


def _weigh(scores: Any, taps: Taps, axis: int) -> Any:
    """Apply `taps` along one axis of `scores`, float32; NumPy and torch do the same arithmetic."""
    if taps.identity:
        return scores
    if taps.count == 0:
        shape = list(scores.shape)
        shape[axis] = 0
        return scores.reshape(-1)[:0].reshape(shape)
    total = None
    weights = [None] if taps.weights is None or len(taps.weights) == 1 else taps.weights
    for indices, share in zip(taps.indices, weights, strict=True):
        if isinstance(scores, np.ndarray):
            part = scores.take(indices, axis=axis)
        else:
            part = scores.index_select(axis, like(indices, scores))
        if share is None:
            return part
        shape = [1] * scores.ndim
        shape[axis] = -1
        part *= like(share.astype(np.float32).reshape(shape), scores)
        total = part if total is None else total.__iadd__(part)
    return total
