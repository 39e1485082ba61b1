"""The mean over windows: kept in cells, each of which is made at its first window and given away after its last."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from itkit._support.large_memory import ZeroedBlocks
from itkit.ops.array_library import device_of, empty_like, flip, float32, library_of, like, on_cpu, to_device, zeros
from itkit.ops.blending import blending_profiles
from itkit.ops.window_lattice import Box, WindowLattice
from itkit.ops.window_shares import WindowShares

OUTSIDE_LOGIT = -100.0
"""Logit of a class that is not there; its probability is 4e-44."""
_SCRATCH_BYTES = 1 << 20


class WindowMeans:
    """Keeps the weighted mean of the answers for windows, in float32 whatever their type.

    Args:
        lattice: Where windows and cells lie, and the order in which windows come; none may be left out.
        blending: ``"constant"`` or ``"gaussian"``.
        sigma_scale: Of the Gaussian.
        activation: What is done to logits before they are averaged: ``"softmax"``, ``"sigmoid"``, or None.
        independent: Whether classes exclude each other (False) or not.
        device: Where the means are kept; None: where the answers are. Torch only.
        outside: Scores (K,) of voxels outside of the lattice's box. None: the first class, or no class at all where the
            classes are independent or there is only one.
    """

    def __init__(
        self,
        lattice: WindowLattice,
        *,
        blending: str = "constant",
        sigma_scale: float = 0.125,
        activation: str | None = None,
        independent: bool = False,
        device: Any = None,
        outside: Sequence[float] | None = None,
    ):
        self._lattice, self._activation, self._independent = lattice, activation, independent
        self._device, self._outside = device, outside
        self._shares = WindowShares(lattice, blending_profiles(lattice.patch, blending, sigma_scale))
        self._cells: dict[tuple, Any] = {}
        self._example: Any = None
        self._blocks = ZeroedBlocks()
        self._classes = 0
        self._added = 0

    def add(self, volume: int, window: tuple[int, ...], answer: Any, *, activate: bool = True) -> None:
        """Take the answer for one window into the mean.

        If it fails for want of memory, the same call may be made again after `move`: what has been taken in is left out.

        Args:
            volume: Number of the volume.
            window: Position of the window along each axis.
            answer: Logits (K, *patch) of any floating type. Not modified.
            activate: Whether the activation is still to be done.
        """
        if self._example is None:
            self._example, self._classes = empty_like(answer), answer.shape[0]
        activation = self._activation if activate else None
        device = self._device if self._device is not None else device_of(answer)
        if activation is None:
            answer = to_device(answer, device)
        fine = self._lattice.order[:2]
        pieces = [
            axis.pieces(axis.starts[position], i in fine)
            for i, (axis, position) in enumerate(zip(self._lattice.axes, window, strict=True))
        ]
        for number, parts in enumerate(itertools.product(*pieces)):
            if number < self._added:
                continue
            cell = self._cell((volume, *(part.interval for part in parts)), device)
            place = tuple(part.window for part in parts)
            share = self._shares.of(window, place)
            move_mean(
                cell[(slice(None), *(part.inside for part in parts))],
                answer[(slice(None), *place)],
                share if isinstance(share, float) else like(share, answer, device),
                activation,
            )
            self._added += 1
        self._added = 0

    def averaged_mirrors(self, mean: Any, answers: Any, axes: tuple[int, ...], before: int) -> Any:
        """Return the mean of the answers for mirror images of the same windows, activated, float32.

        Args:
            mean: What this returned for the images before; None for the first.
            answers: Logits (B, K, *patch) for the images. Not modified.
            axes: Spatial axes along which the images are mirrored.
            before: How many images `mean` is of.
        """
        if mean is None:
            mean = zeros(tuple(answers.shape), answers, device_of(answers), self._blocks.zeros)
        for total, answer in zip(mean, answers, strict=True):
            answer = flip(answer, tuple(axis + 1 for axis in axes))
            move_mean(total, answer, 1.0 if before == 0 else 1.0 / (before + 1), self._activation)
        return mean

    def move(self, device: Any) -> bool:
        """Keep the means on another device from now on; say whether they were elsewhere before."""
        if self._example is None or isinstance(self._example, np.ndarray):
            return False
        torch = library_of(self._example)
        was = self._device if self._device is not None else self._example.device
        if torch.device(was).type == torch.device(device).type:
            return False
        for key in list(self._cells):
            self._cells[key] = self._cells[key].to(device)
        self._device = device
        return True

    def take(self, volume: int, cell: tuple[int, ...]) -> Any:
        """Return the finished scores (K, *spatial) of a cell, float32, and forget it."""
        device = self._device if self._device is not None else device_of(self._example)
        scores = self._cell((volume, *cell), device)
        del self._cells[(volume, *cell)]
        if any(near is not None for near in self._lattice.near):
            self._fill_outside(scores, self._lattice.box_of(cell))
        return scores

    def _cell(self, key: tuple, device: Any) -> Any:
        if key not in self._cells:
            shape = [part.stop - part.start for part in self._lattice.box_of(key[1:])]
            self._cells[key] = zeros((self._classes, *shape), self._example, device, self._blocks.zeros)
        return self._cells[key]

    def _fill_outside(self, scores: Any, box: Box) -> None:
        values = self._outside
        if values is None:
            low, high = (OUTSIDE_LOGIT, 0.0) if self._activation is None else (0.0, 1.0)
            values = [low] * self._classes
            if self._classes > 1 and not self._independent:
                values[0] = high
        for k, value in enumerate(values):
            for axis, (part, near) in enumerate(zip(box, self._lattice.near, strict=True)):
                at = (k, *[slice(None)] * axis)
                scores[(*at, slice(0, max(near[0] - part.start, 0)))] = value
                scores[(*at, slice(max(near[1] - part.start, 0), None))] = value


def move_mean(mean: Any, answer: Any, share: Any, activation: str | None = None) -> None:
    """Move `mean` (K, *spatial), float32, towards `answer` by `share` of the way, in place.

    What must be computed first is so in scratch memory, a few planes at a time where they lie in the memory of the CPU.

    Args:
        mean: The mean so far.
        answer: The new answer, any floating type, same shape. Not modified.
        share: A number, or an array that broadcasts to `answer`; the number 1 replaces the mean.
        activation: ``"softmax"`` over K or ``"sigmoid"``, done to the answer first; None: nothing.
    """
    numpy = isinstance(mean, np.ndarray)
    replace = isinstance(share, float) and share == 1.0
    step = max(answer.shape[1], 1)
    scratch = activation is not None or (not replace and (numpy or answer.dtype != mean.dtype))
    if scratch and on_cpu(answer):
        step = max(1, _SCRATCH_BYTES // (4 * answer.shape[0] * math.prod(answer.shape[2:])))
    for first in range(0, answer.shape[1], step):
        planes = slice(first, first + step)
        part, total = answer[:, planes], mean[:, planes]
        if activation is not None:
            part = to_device(activated(part, activation), device_of(mean))
        if replace:
            total[...] = part
            continue
        weight = share if isinstance(share, float) or share.shape[0] == 1 else share[planes]
        if not numpy:
            total.lerp_(float32(part), weight)
        else:
            part = np.subtract(part, total, dtype=np.float32)
            part *= weight
            total += part


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
