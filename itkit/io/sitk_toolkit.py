"""The documented names for work with volumes and SimpleITK images; each leads to the one place that holds the code."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from itkit.io import orientation as _orientation
from itkit.io import resampling as _resampling
from itkit.io.geometry import Geometry, compare_geometries, require_same_grid
from itkit.io.orientation import orientation
from itkit.io.repair import fix_geometry, read_repaired
from itkit.io.volumes import (
    Volume,
    VolumeHeader,
    from_image,
    read_header,
    read_volume,
    to_image,
    volume_bytes,
    write_volume,
)

if TYPE_CHECKING:
    import SimpleITK as sitk

__all__ = [
    "Volume", "VolumeHeader", "compare_geometries", "fix_geometry", "from_image", "get_direction", "get_origin", "get_size",
    "get_spacing", "orientation", "read_header", "read_image", "read_repaired", "read_volume", "reorient",
    "require_same_grid", "resample_to_grid", "resample_to_size", "resample_to_spacing", "to_image", "volume_bytes",
    "write_image", "write_volume",
]  # fmt: skip


def read_image(path: str | os.PathLike) -> sitk.Image:
    """Return the volume file at `path` as a SimpleITK image, read by `read_volume` with all its checks."""
    return to_image(read_volume(path))


def write_image(image: sitk.Image | Volume, path: str | os.PathLike, *, compress: bool = True) -> None:
    """Write a three-dimensional SimpleITK image, or a volume, to `path` by `write_volume`."""
    write_volume(path, _as_volume(image), compress=compress)


def get_size(source: str | os.PathLike | sitk.Image | Volume) -> tuple[int, int, int]:
    """Return the number of voxels, (Z, Y, X), of a volume file, a SimpleITK image or a volume."""
    return _geometry(source).size_zyx


def get_spacing(source: str | os.PathLike | sitk.Image | Volume) -> tuple[float, float, float]:
    """Return the voxel spacing in mm, (Z, Y, X), of a volume file, a SimpleITK image or a volume."""
    return _geometry(source).spacing_zyx


def get_origin(source: str | os.PathLike | sitk.Image | Volume) -> tuple[float, float, float]:
    """Return the first voxel's centre in mm, (X, Y, Z), of a volume file, a SimpleITK image or a volume."""
    return _geometry(source).origin_xyz


def get_direction(source: str | os.PathLike | sitk.Image | Volume) -> tuple[float, ...]:
    """Return the nine direction numbers, row by row, (X, Y, Z), of a volume file, a SimpleITK image or a volume."""
    return _geometry(source).direction_xyz


def resample_to_spacing(
    volume: Volume | sitk.Image, spacing_zyx: Sequence[float | None], *, kind: str, antialias: bool = False
) -> Volume | sitk.Image:
    """Do `itkit.io.resampling.resample_to_spacing`; an image in gives an image out."""
    done = _resampling.resample_to_spacing(_as_volume(volume), spacing_zyx, kind=kind, antialias=antialias)
    return _like(volume, done)


def resample_to_size(
    volume: Volume | sitk.Image, size_zyx: Sequence[int | None], *, kind: str, antialias: bool = False
) -> Volume | sitk.Image:
    """Do `itkit.io.resampling.resample_to_size`; an image in gives an image out."""
    return _like(volume, _resampling.resample_to_size(_as_volume(volume), size_zyx, kind=kind, antialias=antialias))


def resample_to_grid(
    volume: Volume | sitk.Image, target: Geometry | Volume | sitk.Image, *, kind: str, fill: float = 0
) -> Volume | sitk.Image:
    """Do `itkit.io.resampling.resample_to_grid`; an image in gives an image out."""
    grid = target if isinstance(target, Geometry) else _geometry(target)
    return _like(volume, _resampling.resample_to_grid(_as_volume(volume), grid, kind=kind, fill=fill))


def reorient(volume: Volume | sitk.Image, code: str) -> Volume | sitk.Image:
    """Do `itkit.io.orientation.reorient`; an image in gives an image out."""
    return _like(volume, _orientation.reorient(_as_volume(volume), code))


def _as_volume(thing: Volume | sitk.Image) -> Volume:
    return thing if isinstance(thing, Volume) else from_image(thing)


def _like(thing: Volume | sitk.Image, volume: Volume) -> Volume | sitk.Image:
    return volume if isinstance(thing, Volume) else to_image(volume)


def _geometry(source) -> Geometry:
    if isinstance(source, (str, os.PathLike)):
        return read_header(source).geometry
    if hasattr(source, "geometry"):
        return source.geometry
    size, spacing = tuple(reversed(source.GetSize())), tuple(reversed(source.GetSpacing()))
    return Geometry(size, spacing, tuple(source.GetOrigin()), tuple(source.GetDirection()))
