"""Sample an array on a rotated, scaled, shifted and bent grid, in one interpolation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from itkit.errors import ConfigError
from itkit.io.warp import SPLINE_ORDER, spline_basis


class Warp:
    """Where each voxel of the output lies in the input: ``centre + matrix @ (voxel - middle of the output) + bend``.

    All positions are voxel indices in array order, (Z, Y, X) or (Y, X). Only the part of the input that the output can
    see is read, so that a small patch of a large volume is cheap.

    Args:
        size_in: Voxels of the input along each axis.
        size_out: Voxels of the output along each axis.
        matrix: (axes, axes), from output to input voxels.
        centre: Input position that comes to lie in the middle of the output. ``None``: the middle of the input.
        control: (*controls, axes) displacements in input voxels, the control values of a cubic B-spline over the output
            (at least 4 along each axis). ``None``: no bend.
        fill: What lies outside the input: ``"edge"`` repeats its border, a number is taken as the intensity (labels: 0).

    Raises:
        ConfigError: If `fill` is neither, or `control` has too few values.
    """

    def __init__(
        self,
        size_in: Sequence[int],
        size_out: Sequence[int],
        matrix: np.ndarray,
        *,
        centre: Sequence[float] | None = None,
        control: np.ndarray | None = None,
        fill: str | float = "edge",
    ):
        if fill != "edge" and isinstance(fill, str):
            raise ConfigError(f"fill {fill!r} of a warp must be 'edge' or a number.")
        if control is not None and min(control.shape[:-1]) <= SPLINE_ORDER:
            raise ConfigError(
                f"a bend needs at least {SPLINE_ORDER + 1} control values along each axis; found {control.shape[:-1]}."
            )
        self.fill = fill
        size_in, size_out = np.asarray(size_in), np.asarray(size_out)
        matrix = np.asarray(matrix, np.float64)
        centre = (size_in - 1) / 2 if centre is None else np.asarray(centre, np.float64)
        first = centre - matrix @ ((size_out - 1) / 2)

        extent = matrix * (size_out - 1)
        low = first + np.minimum(extent, 0).sum(axis=1)
        high = first + np.maximum(extent, 0).sum(axis=1)
        if control is not None:
            flat = control.reshape(-1, len(size_in))
            low, high = low + flat.min(axis=0), high + flat.max(axis=0)
        start = np.clip(np.floor(low) - 1, 0, size_in - 1).astype(int)
        stop = np.clip(np.ceil(high) + 2, start + 1, size_in).astype(int)
        self.box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        self.grid = _grid(stop - start, size_out, matrix, first - start, control)

    def image(self, array: np.ndarray) -> np.ndarray:
        """Return the image (C, *size_in) on the output grid, linearly interpolated, (C, *size_out), float32."""
        source = torch.from_numpy(np.require(array[(slice(None), *self.box)], np.float32, ["C", "W"]))[None]
        if self.fill in ("edge", 0):
            return self._sample(source, "bilinear")[0].numpy()
        return (self._sample(source - self.fill, "bilinear")[0] + self.fill).numpy()

    def label(self, array: np.ndarray, *, smooth: bool = False) -> np.ndarray:
        """Return the label map (*size_in) on the output grid, (*size_out), with its own dtype and no new value.

        Args:
            array: Integer label map. Values up to 2**24 survive exactly.
            smooth: False: the nearest voxel. True: each class is interpolated linearly and the largest share wins, which
                gives smoother borders for the time of one more image per class present.
        """
        source = array[self.box]
        if not smooth:
            values = torch.from_numpy(source.astype(np.float32))[None, None]
            return self._sample(values, "nearest")[0, 0].numpy().astype(array.dtype)
        classes = _present(source)
        if self.fill != "edge":  # outside is background, so 0 must be the class whose share is what the others leave
            classes = np.concatenate([[0], classes[classes != 0]]).astype(array.dtype)
        first, others = classes[:1], classes[1:]
        if not len(others):
            return np.full(tuple(self.grid.shape[1:-1]), first[0], array.dtype)
        shares = (source[None] == others.reshape(-1, *[1] * source.ndim)).astype(np.float32)
        sampled = self._sample(torch.from_numpy(shares)[None], "bilinear")[0]
        largest = 1 - sampled.sum(dim=0)
        winner = torch.zeros_like(largest, dtype=torch.uint8 if len(classes) <= 256 else torch.int32)
        for number, share in enumerate(sampled, start=1):
            winner = torch.maximum(winner, (share > largest).to(winner.dtype) * number)
            largest = torch.maximum(largest, share)
        return classes.take(winner.numpy())

    def _sample(self, source: Tensor, mode: str) -> Tensor:
        padding = "border" if self.fill == "edge" else "zeros"
        return F.grid_sample(source, self.grid, mode=mode, padding_mode=padding, align_corners=False)


def _grid(
    size_in: np.ndarray, size_out: np.ndarray, matrix: np.ndarray, first: np.ndarray, control: np.ndarray | None
) -> Tensor:
    """Return the positions as (1, *size_out, axes), normalised to [-1, 1] and in (X, Y, Z) order, as grid_sample asks.

    Position and bend are products of one factor per axis; so the last, large step is a single matrix product.
    """
    axes = len(size_in)
    scale = 2 / size_in
    offset = ((2 * first + 1) / size_in - 1)[::-1].astype(np.float32)
    steps = (matrix * scale[:, None])[::-1].astype(np.float32)  # row: coordinate X, Y, Z; column: output axis Z, Y, X

    plane = offset.reshape([1] * (axes - 1) + [axes])
    for axis in range(1, axes):
        shape = [1] * (axes - 1) + [axes]
        shape[axis - 1] = int(size_out[axis])
        plane = plane + np.outer(np.arange(size_out[axis], dtype=np.float32), steps[:, axis]).reshape(shape)
    rows = [plane.reshape(1, -1), np.tile(steps[:, 0], int(np.prod(size_out[1:])))[None]]
    factors = [np.ones((size_out[0], 1), np.float32), np.arange(size_out[0], dtype=np.float32)[:, None]]
    if control is not None:
        bend = (control * scale)[..., ::-1].astype(np.float32)
        for axis in range(axes - 1, 0, -1):
            basis = spline_basis(int(size_out[axis]), control.shape[axis])
            bend = np.moveaxis(np.tensordot(basis, bend, axes=(1, axis)), 0, axis)
        rows.append(bend.reshape(control.shape[0], -1))
        factors.append(spline_basis(int(size_out[0]), control.shape[0]))
    left, right = torch.from_numpy(np.concatenate(factors, axis=1)), torch.from_numpy(np.concatenate(rows))
    return (left @ right).reshape(1, *size_out.tolist(), axes)


def _present(label: np.ndarray) -> np.ndarray:
    """Return the values that occur, sorted; counting is faster than sorting where the values are small."""
    if label.dtype in (np.uint8, np.uint16):
        return np.flatnonzero(np.bincount(label.ravel())).astype(label.dtype)
    return np.unique(label)
