"""How much a window counts beside those that came before it, so that a mean can be kept instead of a sum.

A mean that each new answer moves a little is bounded by the answers, whatever their number and size. And where all answers for a
voxel are the same number, it is that number to the bit, which a sum divided by its weight need not be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from itkit.ops.window_lattice import WindowLattice


@dataclass(frozen=True)
class _Ratio:
    """Weights of windows over that of one window, along one axis, at each of its voxels.

    Of all windows; of those before it (of the layers before the ones whose rows take turns with it); of the layers whose
    rows take turns, and of those among them that come first.
    """

    all: np.ndarray
    before: np.ndarray
    together: np.ndarray
    turned: np.ndarray


class WindowShares:
    """The share of each window in the weighted mean of all windows up to it.

    With v the weight of a window at a voxel and V that of all windows before it, the share is v / (V + v). Windows form a
    lattice, so V / v is a sum of few products of one number per axis.

    Args:
        lattice: The windows and their order.
        profiles: Weights (patch,) along each axis.
    """

    def __init__(self, lattice: WindowLattice, profiles: Sequence[np.ndarray]):
        self._lattice, self._back = lattice, np.argsort(lattice.order)
        self._ratios: list[list[_Ratio]] = []
        for axis, profile in zip(lattice.axes, profiles, strict=True):
            count, found = len(axis.starts), []
            layered = len(self._ratios) == lattice.order[0]
            for window, start in enumerate(axis.starts):
                turns = (
                    next(layers for layers in lattice.layers if window in layers)
                    if layered
                    else range(window, window + 1)
                )
                own = np.ones(axis.patch)
                low, high = axis.inside(start)
                own[: high - low] = profile[low - start : high - start]

                def over(
                    windows: range, axis=axis, own=own, low=low, high=high, start=start, profile=profile
                ) -> np.ndarray:
                    ratio = np.zeros(axis.patch)
                    ratio[low - start : high - start] = axis.summed(profile, windows)[low:high] / own[: high - low]
                    return ratio

                found.append(
                    _Ratio(over(range(count)), over(range(turns.start)), over(turns), over(range(turns.start, window)))
                )
            self._ratios.append(found)

    def of(self, window: tuple[int, ...], part: Sequence[slice]) -> np.ndarray | float:
        """Return the shares of a window in a part of it.

        Args:
            window: Its position along each axis.
            part: Slices of the window, within the volume.

        Returns:
            Float32, broadcastable to the part; a number where it is 1 everywhere.
        """
        layer, row, *rest = (self._ratios[axis][window[axis]] for axis in self._lattice.order)
        z, y, *x = (part[axis] for axis in self._lattice.order)
        layers = [layer.before[z], layer.together[z], layer.turned[z]]
        rows = [row.all[y], row.before[y]]
        if all((values == values[0]).all() for values in (*layers, *rows)):
            layers, rows = [values[:1] for values in layers], [values[:1] for values in rows]
        # Earlier layers; earlier rows of the layers that take turns; this row of those that come first.
        plane = np.multiply.outer(layers[0], rows[0]) + np.multiply.outer(layers[1], rows[1]) + layers[2][:, None]
        ratio = plane.astype(np.float32)
        if rest:
            ratio = ratio[..., None] * rest[0].all[x[0]].astype(np.float32)
            ratio += rest[0].before[x[0]].astype(np.float32)
        ratio += 1
        if plane.size == 1 and (ratio == 1).all():
            return 1.0
        np.reciprocal(ratio, out=ratio)
        return np.ascontiguousarray(ratio.transpose(self._back))
