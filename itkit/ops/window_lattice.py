"""Where the windows of a volume lie, in which order they come, and when a part of the volume has met its last one.

Only integers and one number per voxel of an axis here: no array of the volume's size, no network.
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
    """A part of a window along one axis."""

    interval: int
    """The interval of the axis that it falls into."""
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
        cut: Cut the axis into intervals wherever a window begins or ends, so that each is final at one moment; else it is one
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
        self.size, self.patch, self.stride, self.starts = size, patch, stride, starts
        self._borders = sorted({edge for start in starts for edge in self.inside(start)})
        edges = {0, size}
        if cut:
            edges |= set(self._borders)
            # Where no window lies, intervals are no longer than a patch either.
            edges |= {edge for low, high in itertools.pairwise(sorted(edges)) for edge in range(low, high, patch)}
        self.edges = sorted(edges)

    @property
    def intervals(self) -> list[tuple[int, int]]:
        """First and last (exclusive) voxel of each interval."""
        return list(itertools.pairwise(self.edges))

    def inside(self, start: int) -> tuple[int, int]:
        """Return first and last (exclusive) voxel of the axis that the window at `start` covers."""
        return max(start, 0), min(start + self.patch, self.size)

    def pieces(self, start: int, fine: bool) -> list[Piece]:
        """Return the parts of the window at `start` in each interval; what sticks out is in none.

        Args:
            start: First voxel of the window.
            fine: Cut wherever another window begins or ends, also within an interval.
        """
        low, high = self.inside(start)
        cuts = {low, high, *(edge for edge in self.edges if low < edge < high)}
        if fine:
            cuts.update(edge for edge in self._borders if low < edge < high)
        found = []
        for first, last in itertools.pairwise(sorted(cuts)):
            interval = bisect.bisect_right(self.edges, first) - 1
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

    def summed(self, profile: np.ndarray, windows: range) -> np.ndarray:
        """Return the sum of `profile` (patch,) over some windows at each voxel of the axis, float64; 0 where none lies."""
        total = np.zeros(self.size)
        for start in self.starts[windows.start : windows.stop]:
            low, high = self.inside(start)
            total[low:high] += profile[low - start : high - start]
        return total


class WindowLattice:
    """All windows of a volume: layers of rows of windows.

    The windows of a row, along the last axis of `order`, come one after the other, the rows of a layer too. Where the last
    layer is shifted inside and so shares more planes with the one before than layers usually share, the rows of both take turns
    if that leaves less to be remembered.

    Args:
        size: Voxels of the volume along each axis.
        patch: Voxels of a window, one number or one per axis.
        stride: Voxels between windows, likewise. None: half the patch, rounded up.
        order: Axes from the slowest to the fastest in the sequence of windows.
        cut: How many axes of `order` are cut into intervals: 0 (the volume is final at the end), 1 (planes are, layer by
            layer), 2 (rows of planes are, row by row).
        box: The voxels that matter. Windows that meet none of them are left out. None: all.

    Attributes:
        layers: The layers whose rows take turns, as ranges of positions.

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
        self.layers = (
            self._layers() if cut == 2 else [range(i, i + 1) for i in range(len(self.axes[self.order[0]].starts))]
        )

    def _layers(self) -> list[range]:
        planes, rows = self.axes[self.order[0]], self.axes[self.order[1]]
        count = len(planes.starts)
        single = [range(i, i + 1) for i in range(count)]
        if count < 2:
            return single
        gap = planes.starts[-1] - planes.starts[-2]
        apart = (planes.patch - gap) * rows.size + gap * rows.patch
        together = (planes.patch - planes.stride) * rows.size + (planes.stride + gap) * rows.patch
        return single if apart <= together else [*single[:-2], range(count - 2, count)]

    def windows(self) -> Iterator[tuple[int, ...]]:
        """Yield the position in `AxisWindows.starts` along each axis, window by window."""
        back = np.argsort(self.order)
        row_axis, *others = self.order[1:]
        for layers in self.layers:
            for row in range(len(self.axes[row_axis].starts)):
                for layer in layers:
                    for rest in itertools.product(*(range(len(self.axes[axis].starts)) for axis in others)):
                        ordered = (layer, row, *rest)
                        yield tuple(ordered[place] for place in back)

    def corner(self, window: tuple[int, ...]) -> tuple[int, ...]:
        """Return the first voxel of a window; negative where it sticks out."""
        return tuple(axis.starts[i] for axis, i in zip(self.axes, window, strict=True))

    def cells(self) -> list[tuple[int, tuple[int, ...]]]:
        """Return the parts of the volume that become final together, in the order in which they do.

        Returns:
            For each cell: how many windows must be done, and the number of its interval along each axis. A cell comes after
            its neighbours before it along every axis.
        """
        place_of = {window: place for place, window in enumerate(self.windows(), 1)}
        found = []
        for ordered in itertools.product(*(range(len(self.axes[axis].intervals)) for axis in self.order)):
            cell = tuple(ordered[place] for place in np.argsort(self.order))
            last = tuple(axis.last_window(interval) for axis, interval in zip(self.axes, cell, strict=True))
            found.append((place_of[last], ordered, cell))
        return [(done, cell) for done, _, cell in sorted(found)]

    def box_of(self, cell: tuple[int, ...]) -> Box:
        """Return where a cell lies in the volume."""
        return tuple(slice(axis.edges[i], axis.edges[i + 1]) for axis, i in zip(self.axes, cell, strict=True))

    def inside(self, window: tuple[int, ...]) -> tuple[Box, list[tuple[int, int]]]:
        """Return the part of a window that lies in the volume, and how far it sticks out along each axis."""
        corner = self.corner(window)
        bounds = [axis.inside(start) for axis, start in zip(self.axes, corner, strict=True)]
        margins = [
            (low - start, start + p - high) for (low, high), start, p in zip(bounds, corner, self.patch, strict=True)
        ]
        return tuple(slice(*bound) for bound in bounds), margins
