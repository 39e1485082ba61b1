"""Where the windows of a volume lie, in which order they come, and when a part of the volume has met its last one.

Only integers here: no array of the volume's size, no network.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from itkit.errors import ConfigError
from itkit.io.windows import axis_triple, window_starts

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Piece:
    """The part of a window that falls into one interval of an axis."""

    interval: int
    inside: slice
    """Where in the interval."""
    window: slice
    """Where in the window."""


class AxisWindows:
    """The windows along one axis of a volume.

    An axis shorter than the patch has one window, which sticks out at both sides (the odd voxel at the end).

    Args:
        size: Voxels of the axis.
        patch: Voxels of a window.
        stride: Voxels from one window to the next.
        near: First and last (exclusive) voxel that matter; windows that touch none of them are left out. None: all matter.
        cut: Cut the axis wherever a window begins or ends, so that each interval is final at one moment; else it is one
            interval.

    Attributes:
        starts: First voxel of each window; negative where it sticks out.
        edges: Where the intervals begin, and the end of the last one.
    """

    def __init__(self, size: int, patch: int, stride: int, near: tuple[int, int] | None = None, cut: bool = False):
        before = max(patch - size, 0) // 2
        starts = [start - before for start in window_starts(max(size, patch), patch, stride)]
        if near is not None:
            starts = [s for s in starts if s < near[1] and s + patch > near[0]] or starts[:1]
        self.size, self.patch, self.starts = size, patch, starts
        edges = {0, size}
        if cut:
            edges |= {min(max(edge, 0), size) for start in starts for edge in (start, start + patch)}
            # Where no window lies, intervals are no longer than a patch either.
            edges |= {edge for low, high in itertools.pairwise(sorted(edges)) for edge in range(low, high, patch)}
        self.edges = sorted(edges)

    @property
    def intervals(self) -> list[tuple[int, int]]:
        """First and last (exclusive) voxel of each interval."""
        return list(itertools.pairwise(self.edges))

    def pieces(self, start: int) -> list[Piece]:
        """Return how the window at `start` is spread over the intervals; what sticks out is in none."""
        found = []
        low, high = max(start, 0), min(start + self.patch, self.size)
        for interval in range(bisect.bisect_right(self.edges, low) - 1, len(self.edges) - 1):
            first, last = max(low, self.edges[interval]), min(high, self.edges[interval + 1])
            if first >= last:
                break
            origin = self.edges[interval]
            found.append(Piece(interval, slice(first - origin, last - origin), slice(first - start, last - start)))
        return found

    def last_window(self, interval: int) -> int:
        """Return the position in `starts` of the window after which `interval` is final.

        Intervals that no window meets are final with the windows before them, the first ones with the first window, so that
        intervals become final in their order.
        """
        first, last = self.edges[interval], self.edges[interval + 1]
        meeting = [i for i, start in enumerate(self.starts) if start < last and start + self.patch > first]
        if meeting:
            return meeting[-1]
        return max((i for i, start in enumerate(self.starts) if start < last), default=0)

    def summed(self, profile: np.ndarray) -> np.ndarray:
        """Return the sum of `profile` (patch,) over all windows at each voxel of the axis, float64; 0 where none lies."""
        total = np.zeros(self.size)
        for start in self.starts:
            low, high = max(start, 0), min(start + self.patch, self.size)
            total[low:high] += profile[low - start : high - start]
        return total


class WindowLattice:
    """All windows of a volume: rows of windows along the last axis, layers of rows.

    Args:
        size: Voxels of the volume along each axis.
        patch: Voxels of a window, one number or one per axis.
        stride: Voxels between windows, likewise. None: half the patch, rounded up.
        order: Axes from the slowest to the fastest in the sequence of windows.
        cut: How many axes of `order` are cut into intervals: 0 (the volume is final at the end), 1 (planes are, layer by
            layer), 2 (rows of planes are, row by row).
        box: The voxels that matter. Windows that meet none of them are left out. None: all.

    Raises:
        ConfigError: If the numbers make no sense.
    """

    def __init__(
        self,
        size: Sequence[int],
        patch: int | Sequence[int],
        stride: int | Sequence[int] | None,
        *,
        order: Sequence[int] | None = None,
        cut: int = 0,
        box: Box | None = None,
    ):
        axes = len(size)
        if min(size, default=0) < 1:
            raise ConfigError(f"a volume of size {tuple(size)} has no voxels for a sliding window.")
        self.size, self.patch = tuple(size), axis_triple("patch_size", patch, axes)
        stride = tuple(-(-p // 2) for p in self.patch) if stride is None else axis_triple("patch_stride", stride, axes)
        self.order = tuple(range(axes)) if order is None else tuple(order)
        near: list[tuple[int, int] | None] = [None] * axes
        if box is not None:
            bounds = [part.indices(n)[:2] for part, n in zip(box, size, strict=True)]
            near = [*bounds] if all(low < high for low, high in bounds) else [(0, 0)] * axes
        self.near = near
        self.axes = [
            AxisWindows(n, p, s, near=around, cut=axis in self.order[:cut])
            for axis, (n, p, s, around) in enumerate(zip(size, self.patch, stride, near, strict=True))
        ]

    def corners(self) -> Iterator[tuple[int, ...]]:
        """Yield the first voxel of each window, in the volume's order of axes."""
        back = np.argsort(self.order)
        for ordered in itertools.product(*(self.axes[axis].starts for axis in self.order)):
            yield tuple(ordered[place] for place in back)

    def cells(self) -> list[tuple[int, tuple[int, ...]]]:
        """Return the parts of the volume that become final together, in the order in which they do.

        Returns:
            For each cell: how many windows must be done, and the number of its interval along each axis. A cell comes after
            its neighbours before it along every axis.
        """
        strides, after = [], 1
        for axis in reversed(self.order):
            strides.append(after)
            after *= len(self.axes[axis].starts)
        strides.reverse()
        found = []
        for intervals in itertools.product(*(range(len(self.axes[axis].intervals)) for axis in self.order)):
            last = [self.axes[axis].last_window(i) for axis, i in zip(self.order, intervals, strict=True)]
            done = sum(window * stride for window, stride in zip(last, strides, strict=True)) + 1
            found.append((done, last, intervals))
        found.sort()
        back = np.argsort(self.order)
        return [(done, tuple(intervals[place] for place in back)) for done, _, intervals in found]

    def box_of(self, cell: tuple[int, ...]) -> Box:
        """Return where a cell lies in the volume."""
        return tuple(slice(axis.edges[i], axis.edges[i + 1]) for axis, i in zip(self.axes, cell, strict=True))

    def inside(self, corner: tuple[int, ...]) -> tuple[Box, list[tuple[int, int]]]:
        """Return the part of the window at `corner` that lies in the volume, and how far it sticks out along each axis."""
        low = [max(start, 0) for start in corner]
        high = [min(start + p, n) for start, p, n in zip(corner, self.patch, self.size, strict=True)]
        margins = [
            (first - start, start + p - last)
            for first, last, start, p in zip(low, high, corner, self.patch, strict=True)
        ]
        return tuple(map(slice, low, high)), margins
