"""The weighted sum over windows: kept in cells, each of which is made at its first window and given away after its last."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from itkit.ops.array_library import device_of, flip, float32, library_of, like, on_cpu, to_device, zeros
from itkit.ops.blending import blending_profiles, outer_product
from itkit.ops.window_lattice import Box, WindowLattice

OUTSIDE_LOGIT = -100.0
"""Logit of a class that is not there; its probability is 4e-44."""
_SCRATCH_BYTES = 1 << 21


class WindowSums:
    """Adds answers for windows and divides by the sum of their weights.

    Args:
        lattice: Where windows and cells lie.
        blending: ``"constant"`` or ``"gaussian"``.
        sigma_scale: Of the Gaussian.
        activation: What is done to logits before they are added: ``"softmax"``, ``"sigmoid"``, or None.
        repeats: How many answers for each window are added (mirror images).
        device: Where the sums are kept; None: where the answers are. Torch only.
        outside: Scores (K,) of voxels outside of the lattice's box. None: the first class, or no class at all where the
            classes are independent (sigmoid) or there is only one.
    """

    def __init__(
        self,
        lattice: WindowLattice,
        *,
        blending: str = "constant",
        sigma_scale: float = 0.125,
        activation: str | None = None,
        independent: bool = False,
        repeats: int = 1,
        device: Any = None,
        outside: Sequence[float] | None = None,
    ):
        self._lattice, self._activation, self._independent = lattice, activation, independent
        self._device, self._outside = device, outside
        profiles = blending_profiles(lattice.patch, blending, sigma_scale)
        self._weight: Any = None if blending == "constant" else outer_product(profiles)
        # The windows form a lattice, so the sum of their weights is a product of one profile per axis.
        self._summed = [axis.summed(profile) for axis, profile in zip(lattice.axes, profiles, strict=True)]
        self._summed[0] = self._summed[0] * repeats
        self._cells: dict[tuple, Any] = {}
        self._example: Any = None
        self._classes = 0
        self._added = 0

    def add(self, volume: int, corner: tuple[int, ...], answer: Any, mirrored: tuple[int, ...] = ()) -> None:
        """Add the answer for one window.

        If it fails for want of memory, the same call may be made again after `move`: what has been added is left out.

        Args:
            volume: Number of the volume.
            corner: First voxel of the window.
            answer: Logits (K, *patch) of any floating type. Not modified.
            mirrored: Spatial axes along which window and answer are mirrored.
        """
        self.meet(answer)
        device = self._device if self._device is not None else device_of(answer)
        if self._activation is None:
            answer = to_device(answer, device)
        answer = flip(answer, tuple(axis + 1 for axis in mirrored))
        if self._weight is not None and isinstance(self._weight, np.ndarray):
            self._weight = like(self._weight, answer, device)
        pieces = [axis.pieces(start) for axis, start in zip(self._lattice.axes, corner, strict=True)]
        for number, parts in enumerate(itertools.product(*pieces)):
            if number < self._added:
                continue
            cell = self._cell((volume, *(part.interval for part in parts)), device)
            window = tuple(part.window for part in parts)
            self._add_piece(
                cell[(slice(None), *(part.inside for part in parts))],
                answer[(slice(None), *window)],
                None if self._weight is None else self._weight[window],
            )
            self._added += 1
        self._added = 0

    def meet(self, answer: Any) -> None:
        """Learn library, device and number of classes from an answer (K, ...)."""
        if self._example is None:
            self._example, self._classes = answer[:0], answer.shape[0]

    def move(self, device: Any) -> bool:
        """Keep the sums on another device from now on; say whether they were elsewhere before."""
        if isinstance(self._example, np.ndarray) or self._example is None:
            return False
        was = self._device if self._device is not None else self._example.device
        if library_of(self._example).device(was).type == library_of(self._example).device(device).type:
            return False
        for key in list(self._cells):
            self._cells[key] = self._cells[key].to(device)
        if self._weight is not None and not isinstance(self._weight, np.ndarray):
            self._weight = self._weight.to(device)
        self._device = device
        return True

    def take(self, volume: int, cell: tuple[int, ...], *, mean: bool = True) -> Any:
        """Return the finished scores (K, *spatial) of a cell, float32, and forget it.

        Args:
            volume: Number of the volume.
            cell: Number of the interval along each axis.
            mean: Divide by the sum of the weights, which the largest class does not need.
        """
        device = self._device if self._device is not None else device_of(self._example)
        box = self._lattice.box_of(cell)
        scores = self._cell((volume, *cell), device)
        del self._cells[(volume, *cell)]
        if mean:
            self._divide(scores, [np.where(s[part] > 0, s[part], 1) for s, part in zip(self._summed, box, strict=True)])
        if any(near is not None for near in self._lattice.near):
            self._fill_outside(scores, box)
        return scores

    def _cell(self, key: tuple, device: Any) -> Any:
        if key not in self._cells:
            shape = [part.stop - part.start for part in self._lattice.box_of(key[1:])]
            self._cells[key] = zeros((self._classes, *shape), self._example, device)
        return self._cells[key]

    def _add_piece(self, total: Any, window: Any, weight: Any) -> None:
        """Add a piece of a window in float32; what must be computed first is so in scratch memory, plane by plane on a CPU."""
        plain = self._activation is None and window.dtype == total.dtype
        if plain and (weight is None or not isinstance(window, np.ndarray)):
            _add(total, window, weight)
            return
        step = window.shape[1]
        if on_cpu(window):
            plane = 4 * self._classes * int(np.prod(window.shape[2:]))
            step = max(1, _SCRATCH_BYTES // plane)
        for first in range(0, window.shape[1], step):
            planes = slice(first, first + step)
            part = window[:, planes]
            if self._activation is not None:
                part = to_device(activated(part, self._activation), device_of(total))
            _add(total[:, planes], part, None if weight is None else weight[planes])

    def _divide(self, scores: Any, sums: Sequence[np.ndarray]) -> None:
        if all((values == 1).all() for values in sums):
            return
        scores /= like(outer_product(sums), scores)

    def _fill_outside(self, scores: Any, box: Box) -> None:
        values = self._outside
        if values is None:
            low, high = (OUTSIDE_LOGIT, 0.0) if self._activation is None else (0.0, 1.0)
            values = [low] * self._classes
            if self._classes > 1 and not self._independent:
                values[0] = high
        for k, value in enumerate(values):
            for axis, (part, near) in enumerate(zip(box, self._lattice.near, strict=True)):
                before = (k, *[slice(None)] * axis, slice(0, max(near[0] - part.start, 0)))
                after = (k, *[slice(None)] * axis, slice(max(near[1] - part.start, 0), None))
                scores[before] = value
                scores[after] = value


def activated(logits: Any, activation: str) -> Any:
    """Return probabilities of logits (K, ...) in a new array, float32."""
    values = float32(logits)
    if not isinstance(values, np.ndarray):
        return values.softmax(0) if activation == "softmax" else values.sigmoid()
    if activation == "sigmoid":
        with np.errstate(over="ignore"):  # exp(-x) of a very negative x is infinite, and 1 / (1 + inf) is right
            return 1 / (1 + np.exp(-values))
    values = values - values.max(axis=0)
    np.exp(values, out=values)
    values /= values.sum(axis=0)
    return values


def _add(total: Any, part: Any, weight: Any) -> None:
    """Add ``part * weight`` to `total` in place, in float32; torch does it in one pass."""
    if weight is None:
        total += part
    elif isinstance(total, np.ndarray):
        total += part * weight
    else:
        total.addcmul_(float32(part), weight)
