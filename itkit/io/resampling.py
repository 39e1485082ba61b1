"""Put a volume on another grid: another spacing, another size, or the grid of another volume."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from itkit.errors import UsageError
from itkit.io.geometry import Geometry, index_to_world, require_possible, require_spacing
from itkit.io.interpolation import (
    Taps,
    distinct_values,
    linear_taps,
    nearest_taps,
    resample_labels_separable,
    resample_separable,
    smooth_taps,
)
from itkit.io.volumes import Volume, VolumeHeader, from_image, to_image

KINDS = ("image", "label", "label_linear")
"""How values between voxels are made: linearly; from the nearest voxel; linearly per class, then the largest share."""
ALIGNED_VOX = 1e-4
"""Two grids are parallel if taking them so moves no sample by more than this, in voxels of the source."""
_EDGE_VOX = 0.5 + 1e-6


def resample_to_spacing(
    volume: Volume, spacing_zyx: Sequence[float | None], *, kind: str, antialias: bool = False
) -> Volume:
    """Return `volume` on a grid with the asked voxel spacing.

    The physical centre of the first voxel, the direction and the pixel type stay as they are; only the number of voxels
    and their spacing change. Beyond the last voxel's centre the nearest voxel is continued.

    Args:
        volume: Volume of any direction. Not modified.
        spacing_zyx: Voxel spacing in mm, order (Z, Y, X). ``None`` keeps the spacing of that axis.
        kind: ``"image"`` interpolates linearly and rounds for integer types; ``"label"`` takes the nearest neighbour;
            ``"label_linear"`` interpolates each class linearly and takes the largest share. With both no new class value can
            appear.
        antialias: Images only: smooth along axes whose voxels become larger, see `antialias_sigma_vox`.

    Returns:
        A new volume. Size along an axis is ``max(1, round(n * old / new))``, so the extent is kept to half a new voxel. A
        voxel that is not finite makes those not finite that it has a share in.

    Raises:
        GeometryError: If a spacing is not a positive finite number.
        UsageError: If `kind` is none of the three, or `antialias` is asked of labels.
    """
    grid = spacing_grid(volume.geometry, spacing_zyx)
    return _on_axes(volume, grid, [0.0, 0.0, 0.0], kind, antialias)


def resample_to_size(volume: Volume, size_zyx: Sequence[int | None], *, kind: str, antialias: bool = False) -> Volume:
    """Return `volume` on a grid with the asked number of voxels over the same field of view.

    The outer edges of the field of view and the direction stay exactly as they are; the spacing becomes
    ``n * old / new size``, and the centre of the first voxel moves accordingly, by half the difference of the spacings.

    Args:
        volume: Volume of any direction. Not modified.
        size_zyx: Voxels along (Z, Y, X). ``None`` keeps the number along that axis.
        kind: As for `resample_to_spacing`.
        antialias: As for `resample_to_spacing`.

    Returns:
        A new volume of the same pixel type.

    Raises:
        UsageError: If a size is not a positive whole number, or as for `resample_to_spacing`.
    """
    grid = size_grid(volume.geometry, size_zyx)
    shift = [(old / new - 1) / 2 for old, new in zip(volume.size_zyx, grid.size_zyx, strict=True)]
    return _on_axes(volume, grid, shift, kind, antialias)


def resample_to_grid(volume: Volume, target: Geometry | Volume | VolumeHeader, *, kind: str, fill: float = 0) -> Volume:
    """Return the values of `volume` at the physical places of another grid's voxels.

    Args:
        volume: Volume of any direction. Not modified.
        target: The grid, or what lies on it.
        kind: As for `resample_to_spacing`.
        fill: Value of voxels that lie outside of `volume`, more than half a voxel from its outermost centres.

    Returns:
        A new volume of the same pixel type on exactly the grid of `target`. (On a grid that is not parallel to the old one,
        64-bit integer images are interpolated in float64.)

    Raises:
        GeometryError: If one of the two grids is impossible.
        UsageError: If `kind` is none of the three, or the pixel type cannot hold `fill`.
    """
    _require_kind(kind, False)
    target, dtype = target.geometry, volume.array.dtype
    require_possible(target)
    require_possible(volume.geometry)
    with np.errstate(all="ignore"):
        held = np.asarray(fill).astype(dtype)
    if not (held == fill or (math.isnan(fill) and dtype.kind == "f")):
        raise UsageError(f"voxels of type {dtype} cannot hold the fill value {fill}.")
    matrix = np.linalg.inv(index_to_world(volume.geometry)) @ index_to_world(target)
    sources = _parallel_axes(matrix, target.size_zyx)
    array = np.full(volume.array.shape[:-3] + tuple(target.size_zyx), held, dtype)
    if sources is None:
        _resample_oblique(volume, target, array, kind, fill)
    else:
        _resample_parallel(volume, array, matrix, sources, kind)
    return Volume(array, target.spacing_zyx, target.origin_xyz, target.direction_xyz)


def spacing_grid(geometry: Geometry, spacing_zyx: Sequence[float | None]) -> Geometry:
    """Return the grid that `resample_to_spacing` makes of `geometry`; None keeps the spacing of an axis."""
    old = geometry.geometry
    spacing = tuple(float(was if new is None else new) for was, new in zip(old.spacing_zyx, spacing_zyx, strict=True))
    require_spacing(spacing)
    size = tuple(
        max(1, round(count * was / new)) for count, was, new in zip(old.size_zyx, old.spacing_zyx, spacing, strict=True)
    )
    return Geometry(size, spacing, old.origin_xyz, old.direction_xyz)


def size_grid(geometry: Geometry, size_zyx: Sequence[int | None]) -> Geometry:
    """Return the grid that `resample_to_size` makes of `geometry`; None keeps the number of voxels of an axis."""
    old = geometry.geometry
    size = tuple(was if new is None else new for was, new in zip(old.size_zyx, size_zyx, strict=True))
    if not all(count == int(count) and count >= 1 for count in size):
        raise UsageError(f"size {size} (Z, Y, X) is not made of positive whole numbers.")
    if size == tuple(old.size_zyx):
        return old
    matrix = index_to_world(old)
    ratio_xyz = np.array([was / new for was, new in zip(old.size_zyx, size, strict=True)][::-1])
    origin = matrix[:3, 3] + matrix[:3, :3] @ ((ratio_xyz - 1) / 2)
    spacing = tuple(was * ratio for was, ratio in zip(old.spacing_zyx, ratio_xyz[::-1].tolist(), strict=True))
    return Geometry(tuple(int(count) for count in size), spacing, tuple(origin.tolist()), old.direction_xyz)


def antialias_sigma_vox(old: float, new: float) -> float:
    """Return the deviation, in old voxels, of the Gaussian that takes voxels of size `old` to the blur of size `new`.

    A voxel of size s is taken to blur like a Gaussian whose full width at half maximum is s; the variances of blurs add up
    (Cardoso et al., Scale factor point spread function matching, MICCAI 2015). 0 where voxels do not become larger.
    """
    return math.sqrt(max((new / old) ** 2 - 1, 0) / (8 * math.log(2)))


def _require_kind(kind: str, antialias: bool) -> None:
    if kind not in KINDS:
        raise UsageError(f"kind is 'image', 'label' or 'label_linear', not {kind!r}.")
    if antialias and kind != "image":
        raise UsageError(f"antialias is for images; kind is {kind!r}.")


def _on_axes(volume: Volume, grid: Geometry, shift_zyx: list[float], kind: str, antialias: bool) -> Volume:
    """`volume` on `grid`, whose axes are its own; voxel 0 of `grid` lies at `shift_zyx` in voxels."""
    _require_kind(kind, antialias)
    if grid == volume.geometry:
        return Volume(volume.array.copy(), grid.spacing_zyx, grid.origin_xyz, grid.direction_xyz)
    taps = []
    for axis in range(3):
        old, new, size = volume.spacing_zyx[axis], grid.spacing_zyx[axis], volume.size_zyx[axis]
        positions = shift_zyx[axis] + np.arange(grid.size_zyx[axis]) * (new / old)
        sigma = antialias_sigma_vox(old, new) if antialias else 0.0
        taps.append(smooth_taps(positions, size, sigma) if sigma > 0.05 else _taps(positions, size, kind))
    array = _channelwise(volume.array, tuple(taps), kind)
    return Volume(array, grid.spacing_zyx, grid.origin_xyz, grid.direction_xyz)


def _taps(positions: np.ndarray, size: int, kind: str) -> Taps:
    return (nearest_taps if kind == "label" else linear_taps)(positions, size)


def _channelwise(array: np.ndarray, taps_zyx: tuple[Taps, Taps, Taps], kind: str) -> np.ndarray:
    resample = resample_labels_separable if kind == "label_linear" else resample_separable
    return np.stack([resample(part, taps_zyx) for part in array]) if array.ndim == 4 else resample(array, taps_zyx)


def _parallel_axes(matrix: np.ndarray, size_zyx: tuple[int, ...]) -> list[int] | None:
    """For the target's index axes (x, y, z): which index axis of the source each runs along; None if they are not parallel."""
    far_xyz = np.array([count - 1 for count in reversed(size_zyx)], dtype=float)
    # The axis of the source that one voxel of the target's moves along most; single slices count as one step.
    sources = [int(np.argmax(np.abs(matrix[:3, k]))) for k in range(3)]
    if sorted(sources) != [0, 1, 2]:
        return None
    aside = np.abs(matrix[:3, :3]) * far_xyz
    aside[sources, range(3)] = 0
    return sources if aside.sum(axis=1).max() <= ALIGNED_VOX else None


def _resample_parallel(volume: Volume, out: np.ndarray, matrix: np.ndarray, sources: list[int], kind: str) -> None:
    lead = volume.array.ndim - 3
    source = volume.array.transpose(*range(lead), *(lead + 2 - sources[k] for k in (2, 1, 0)))
    taps, inside = [], []
    for axis, k in enumerate((2, 1, 0)):
        size, row = source.shape[lead + axis], sources[k]
        positions = matrix[row, 3] + np.arange(out.shape[lead + axis]) * matrix[row, k]
        if matrix[row, k] < 0:
            source = np.flip(source, lead + axis)
            positions = size - 1 - positions
        there = np.flatnonzero((positions >= -_EDGE_VOX) & (positions <= size - 1 + _EDGE_VOX))
        if not len(there):
            return
        inside.append(slice(int(there[0]), int(there[-1]) + 1))
        taps.append(_taps(positions[inside[-1]], size, kind))
    out[(..., *inside)] = _channelwise(source, tuple(taps), kind)


def _resample_oblique(volume: Volume, target: Geometry, out: np.ndarray, kind: str, fill: float) -> None:
    """Fill `out` by SimpleITK, one thread, channel by channel."""
    import SimpleITK as sitk

    def resample(values: np.ndarray, interpolator: int, outside: float) -> np.ndarray:
        resampler = sitk.ResampleImageFilter()
        resampler.SetNumberOfThreads(1)
        resampler.SetInterpolator(interpolator)
        resampler.SetDefaultPixelValue(float(outside))
        resampler.SetSize([int(count) for count in reversed(target.size_zyx)])
        resampler.SetOutputSpacing([float(value) for value in reversed(target.spacing_zyx)])
        resampler.SetOutputOrigin([float(value) for value in target.origin_xyz])
        resampler.SetOutputDirection([float(value) for value in target.direction_xyz])
        image = to_image(Volume(values, volume.spacing_zyx, volume.origin_xyz, volume.direction_xyz))
        return from_image(resampler.Execute(image)).array

    several = volume.array.ndim == 4
    for values, goal in zip(volume.array if several else [volume.array], out if several else [out], strict=True):
        if kind == "label":
            goal[...] = resample(values, sitk.sitkNearestNeighbor, fill)
        elif kind == "image":
            work = np.float32 if values.dtype.itemsize <= 2 else np.float64
            found = resample(values if values.dtype.kind == "f" else values.astype(work), sitk.sitkLinear, fill)
            goal[...] = np.rint(found, out=found) if values.dtype.kind != "f" else found
        else:
            inside = resample(np.ones(values.shape, np.float32), sitk.sitkNearestNeighbor, 0) > 0
            best = np.zeros(goal.shape, np.float32)
            for label in distinct_values(values):
                share = resample((values == label).astype(np.float32), sitk.sitkLinear, 0)
                better = inside & (share > best + 1e-6)
                np.copyto(best, share, where=better)
                np.copyto(goal, label, where=better)
