"""The documented names for NIfTI files; each leads to the one place that holds the code."""

from __future__ import annotations

import os

from itkit.errors import DataError
from itkit.io.headers import volume_suffix
from itkit.io.volumes import Volume, read_volume, write_volume

__all__ = ["read_nifti", "write_nifti"]


def read_nifti(path: str | os.PathLike) -> Volume:
    """Return the NIfTI file at `path` (.nii, .nii.gz; version 1 or 2) as a volume; see `itkit.io.volumes.read_volume`.

    Raises:
        DataError: If the name is none of a NIfTI file, or the file cannot be read.
        GeometryError: If the geometry is impossible.
    """
    _require_nifti(path)
    return read_volume(path)


def write_nifti(path: str | os.PathLike, volume: Volume, *, series: bool = False) -> None:
    """Write `volume` to the NIfTI-1 file at `path`; see `itkit.io.volumes.write_volume`.

    Args:
        path: Ends with .nii, or with .nii.gz to compress.
        volume: Not modified.
        series: Put channels on the fourth axis, as datasets of several modalities do, not on the fifth as a vector.

    Raises:
        DataError: If the name is none of a NIfTI file, or the file cannot be written.
        GeometryError: If the geometry is impossible.
    """
    _require_nifti(path)
    write_volume(path, volume, series=series)


def _require_nifti(path: str | os.PathLike) -> None:
    if volume_suffix(path) not in (".nii", ".nii.gz"):
        raise DataError("is not a name for a NIfTI file; it ends with .nii or .nii.gz.", path)
