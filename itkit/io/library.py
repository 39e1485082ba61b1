"""What SimpleITK makes of a file: for the few formats of numbers and frames that our own readers leave to it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from itkit.errors import DataError, GeometryError
from itkit.io.geometry import Geometry

PIXEL_TYPES = {
    getattr(sitk, f"sitk{vector}{name}"): np.dtype(name.lower())
    for vector in ("", "Vector")
    for name in (
        "Int8", "UInt8", "Int16", "UInt16", "Int32", "UInt32", "Int64", "UInt64", "Float32", "Float64",
    )
}  # fmt: skip
"""SimpleITK's pixel types that are numbers, and NumPy's names for them."""
_READERS = {
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
    ".nii": "NiftiImageIO",
    ".nii.gz": "NiftiImageIO",
    ".nrrd": "NrrdImageIO",
}


class LibraryReader:
    """One file, read by SimpleITK with the reader of its format.

    Args:
        path: The file.
        suffix: Its format, one of `itkit.io.headers.FORMATS`.

    Attributes:
        geometry: The grid, not yet checked.
        channels: Values per voxel; None for a volume without a channel axis.
        dtype: Type of a value.

    Raises:
        DataError: If SimpleITK refuses the header, or the voxels are not numbers of a volume.
        GeometryError: If SimpleITK refuses the place in space.
    """

    def __init__(self, path: Path, suffix: str):
        self._path, self._reader = path, sitk.ImageFileReader()
        reader = self._reader
        reader.SetImageIO(_READERS[suffix])
        reader.SetFileName(os.fspath(path))
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            kind = GeometryError if "orthonormal" in str(error) or "determinant" in str(error) else DataError
            raise kind(f"the header is refused: {reason_of(error)}", path) from error
        dimension, size_xyz = reader.GetDimension(), reader.GetSize()
        if dimension not in (3, 4):
            raise DataError(f"is {dimension}-dimensional; a volume has the axes X, Y, Z and perhaps channels.", path)
        if reader.GetPixelIDValue() not in PIXEL_TYPES:
            raise DataError(
                f"voxels of type {sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())} are not numbers.", path
            )
        components, direction = (
            reader.GetNumberOfComponents(),
            np.reshape(reader.GetDirection(), (dimension, dimension)),
        )
        if dimension == 4 and components > 1:
            raise DataError("has a time axis and several values per voxel; only one of the two can be channels.", path)
        vector = components > 1 or reader.GetPixelIDValue() >= sitk.sitkVectorUInt8
        self.geometry = Geometry(
            tuple(reversed(size_xyz[:3])),
            tuple(reversed(reader.GetSpacing()[:3])),
            tuple(reader.GetOrigin()[:3]),
            tuple(float(value) for value in direction[:3, :3].ravel()),
        )
        self.channels = size_xyz[3] if dimension == 4 else components if vector else None
        self.dtype = PIXEL_TYPES[reader.GetPixelIDValue()]

    def read(self) -> np.ndarray:
        """Return the voxels, (Z, Y, X) or (C, Z, Y, X).

        Raises:
            DataError: If SimpleITK cannot read them.
        """
        try:
            return array_of(self._reader.Execute())
        except RuntimeError as error:
            raise DataError(f"cannot be read: {reason_of(error)}", self._path) from error


def array_of(image: sitk.Image) -> np.ndarray:
    """Return a copy of the voxels of a three-dimensional image, components first."""
    array = sitk.GetArrayFromImage(image)
    if image.GetPixelID() >= sitk.sitkVectorUInt8:
        size_zyx, channels = image.GetSize()[::-1], image.GetNumberOfComponentsPerPixel()
        array = np.ascontiguousarray(np.moveaxis(array.reshape(*size_zyx, channels), -1, 0))
    return array


def reason_of(error: Exception) -> str:
    """Return the last words of a library's exception, without its source file names."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^.*(ITK ERROR|sitk::ERROR):\s*", "", lines[-1]) if lines else type(error).__name__
