"""The documented names for work with volumes; each leads to the one place that holds the code."""

from __future__ import annotations

import os

from itkit.io.geometry import compare_geometries, require_same_grid
from itkit.io.orientation import orientation, reorient
from itkit.io.resampling import resample_to_spacing
from itkit.io.volumes import (
    Volume,
    VolumeHeader,
    from_image,
    read_header,
    read_volume,
    to_image,
    write_volume,
)

__all__ = [
    "Volume", "VolumeHeader", "compare_geometries", "from_image", "get_direction", "get_origin", "get_size",
    "get_spacing", "orientation", "read_header", "read_volume", "reorient", "require_same_grid", "resample_to_spacing",
    "to_image", "write_volume",
]  # fmt: skip


def get_size(path: str | os.PathLike) -> tuple[int, int, int]:
    """Return the number of voxels, (Z, Y, X), of the volume file at `path`."""
    return read_header(path).geometry.size_zyx


def get_spacing(path: str | os.PathLike) -> tuple[float, float, float]:
    """Return the voxel spacing in mm, (Z, Y, X), of the volume file at `path`."""
    return read_header(path).geometry.spacing_zyx


def get_origin(path: str | os.PathLike) -> tuple[float, float, float]:
    """Return the first voxel's centre in mm, (X, Y, Z), of the volume file at `path`."""
    return read_header(path).geometry.origin_xyz


def get_direction(path: str | os.PathLike) -> tuple[float, ...]:
    """Return the nine direction numbers, row by row, (X, Y, Z), of the volume file at `path`."""
    return read_header(path).geometry.direction_xyz
