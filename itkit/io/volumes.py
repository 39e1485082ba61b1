"""Read and write a volume: its numbers, its type and its place in space, all checked, none changed."""

from __future__ import annotations

import errno
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from itkit._support.files import replace_when_complete
from itkit.errors import DataError
from itkit.io import metaimage, nifti, nrrd
from itkit.io.claims import FileHeader, require_bytes
from itkit.io.geometry import Geometry, require_possible, require_spacing
from itkit.io.headers import FORMATS, read_file_header, volume_suffix
from itkit.io.voxels import load_voxels, store_voxels, verify_voxels

if TYPE_CHECKING:
    import SimpleITK as sitk

STORABLE = tuple(
    np.dtype(name)
    for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
)
"""The types of voxel that every format can hold."""


@dataclass(frozen=True)
class VolumeHeader:
    """What a file says of its volume, without the voxels.

    Attributes:
        geometry: Size, spacing, origin and direction.
        channels: Number of values per voxel; None for a volume without a channel axis.
        dtype: Type of the array that reading the volume gives.
        notes: What is worth knowing although the file can be read, e.g. that its two places in space differ.
    """

    geometry: Geometry
    channels: int | None
    dtype: np.dtype
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Volume:
    """An array in space.

    Attributes:
        array: Voxels, (Z, Y, X), or (C, Z, Y, X) where a voxel has several values.
        spacing_zyx: Distance of voxel centres in mm, order (Z, Y, X).
        origin_xyz: Physical place of the first voxel's centre in mm, order (X, Y, Z), SimpleITK's frame.
        direction_xyz: Nine numbers, row by row, as `itkit.io.geometry.Geometry` describes them.
        notes: Those of the header it was read with, see `VolumeHeader`.
    """

    array: np.ndarray
    spacing_zyx: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin_xyz: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction_xyz: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if self.array.ndim not in (3, 4):
            raise DataError(
                f"a volume has the axes (Z, Y, X) or (C, Z, Y, X); the array's shape is {self.array.shape}."
            )

    @property
    def size_zyx(self) -> tuple[int, int, int]:
        """Voxels along (Z, Y, X)."""
        return tuple(self.array.shape[-3:])

    @property
    def geometry(self) -> Geometry:
        """The grid, without the voxels."""
        return Geometry(self.size_zyx, self.spacing_zyx, self.origin_xyz, self.direction_xyz)


def read_header(path: str | os.PathLike) -> VolumeHeader:
    """Return type and place in space of the volume at `path`, without reading its voxels.

    The file's size is held against what the header claims: exactly for plain files, by what compression can reach at
    most for compressed ones.

    Raises:
        DataError: If the file is missing, empty, damaged, too short, or of no known format.
        GeometryError: If the geometry is impossible.
    """
    header = read_unchecked(path, header_only=True)
    require_possible(header.geometry, path)
    return header


def read_volume(path: str | os.PathLike, *, header_only: bool = False) -> Volume | VolumeHeader:
    """Read the volume at `path` (.mha, .mhd, .nii, .nii.gz, .nrrd) and distrust it.

    Length and checksums of compressed data are verified while they are decompressed; plain files have no checksum, and
    MetaImage and NIfTI headers have none either: there a changed bit that leaves a possible file cannot be found. The
    pixel type stays the file's; NIfTI data with a scale factor become floating point, as in SimpleITK. A fourth dimension
    (NIfTI series such as the modalities of an MR examination) becomes the channel axis; files of two dimensions, or of
    more than four, are refused.

    Args:
        path: The file.
        header_only: Return what `read_header` returns.

    Returns:
        A volume with an own, writable array in native byte order.

    Raises:
        DataError: If the file is missing, empty, truncated, corrupt, asks for more bytes than it or the memory has, or is of
            no known format.
        GeometryError: If spacing, origin or direction are impossible. `itkit.io.repair.read_repaired` reads files whose
            direction is not orthonormal.
    """
    found = read_unchecked(path, header_only=header_only)
    require_possible(found.geometry, path)
    return found


def read_unchecked(path: str | os.PathLike, *, header_only: bool = False) -> Volume | VolumeHeader:
    """Do what `read_volume` does, but let every origin and direction pass.

    Raises:
        DataError: As for `read_volume`.
        GeometryError: If a spacing is not a positive finite number.
    """
    path = Path(path)
    file, array = _claims(path), None
    if header_only:
        return _header(file, path)[0]
    try:
        # The voxels first: where the compressed data are damaged, that is the reason to give.
        if file.dtype is not None:
            array = load_voxels(file, path)
        else:
            verify_voxels(file, path)
        header, library = _header(file, path)
        if array is None or array.size != math.prod(header.geometry.size_zyx) * (header.channels or 1):
            array = library.read()
    except MemoryError as error:
        raise DataError(f"does not fit into the memory: {file.data_bytes / 2**30:.1f} GiB of voxels.", path) from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error}).", path) from error
    geometry = header.geometry
    array = array.reshape(((header.channels,) if header.channels else ()) + tuple(geometry.size_zyx))
    return Volume(array, geometry.spacing_zyx, geometry.origin_xyz, geometry.direction_xyz, header.notes)


def volume_bytes(path: str | os.PathLike) -> int:
    """Return how many bytes the voxels of the file at `path` take in memory, from its header alone.

    Reading peaks at about this much, and for NIfTI files with a scale factor, or channels side by side, at twice this.

    Raises:
        DataError: If the file is missing, empty, too short for its header, or of no known format.
    """
    file = read_file_header(path)
    require_bytes(file, path)
    dtype = file.value_dtype
    return math.prod(file.shape) * (file.bytes_per_value if dtype is None else dtype.itemsize)


def write_volume(path: str | os.PathLike, volume: Volume, *, compress: bool = True, series: bool = False) -> None:
    """Write `volume` to `path`; the suffix chooses the format. All of it is written or nothing.

    NIfTI stores the geometry in 32-bit floats; the other formats keep every bit of it (NRRD: of directions times
    spacings). The same volume makes the same bytes.

    Args:
        path: The file. Its folder is made if needed; an existing file is replaced when the new one is complete.
        volume: Not modified.
        compress: Compress the voxels (.nii and .nii.gz follow their suffix).
        series: NIfTI only: put channels on the fourth axis, as datasets of several modalities do, not on the fifth.

    Raises:
        DataError: If the format is unknown, cannot hold the pixel type or size, or the file cannot be written.
        GeometryError: If the geometry is impossible.
    """
    path = Path(path)
    suffix = volume_suffix(path)
    if not suffix:
        raise DataError(f"is not a name for a volume; known formats are {', '.join(sorted(FORMATS))}.", path)
    if volume.array.dtype.newbyteorder("=") not in STORABLE:
        raise DataError(
            f"voxels of type {volume.array.dtype} cannot be stored; convert them first, e.g. bool to uint8.", path
        )
    require_possible(volume.geometry, path)
    try:
        if suffix == ".mhd":
            _write_pair(path, volume, compress)
        else:
            with replace_when_complete(path) as temporary:
                _write_one(temporary, path, suffix, volume, compress, series)
    except OSError as error:
        raise DataError(f"cannot be written ({error.strerror or error}).", path) from error


def to_image(volume: Volume) -> sitk.Image:
    """Return `volume` as a SimpleITK image with a copy of the voxels; channels become components."""
    import SimpleITK as sitk

    array = volume.array.astype(volume.array.dtype.newbyteorder("="), copy=False)
    if array.ndim == 4:
        array = np.ascontiguousarray(np.moveaxis(array, 0, -1))
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
    image.SetSpacing([float(value) for value in reversed(volume.spacing_zyx)])
    image.SetOrigin([float(value) for value in volume.origin_xyz])
    image.SetDirection([float(value) for value in volume.direction_xyz])
    return image


def from_image(image: sitk.Image) -> Volume:
    """Return a three-dimensional SimpleITK image as a volume with a copy of the voxels."""
    from itkit.io.library import array_of

    return Volume(
        array_of(image), tuple(reversed(image.GetSpacing())), tuple(image.GetOrigin()), tuple(image.GetDirection())
    )


def _claims(path: Path) -> FileHeader:
    """What the file itself says, as far as it is possible."""
    file = read_file_header(path)
    if file.spacing_zyx is not None:
        require_spacing(file.spacing_zyx, path)
    require_bytes(file, path)
    return file


def _header(file: FileHeader, path: Path):
    """The header, and SimpleITK's reader where it was needed."""
    if file.dtype is not None and file.geometry is not None:
        return VolumeHeader(file.geometry, file.channels, file.value_dtype, file.notes), None
    from itkit.io.library import LibraryReader

    library = LibraryReader(path, volume_suffix(path))
    require_spacing(library.geometry.spacing_zyx, path)
    return VolumeHeader(library.geometry, library.channels, library.dtype, file.notes), library


def _write_one(temporary: Path, path: Path, suffix: str, volume: Volume, compress: bool, series: bool) -> None:
    array, geometry, dtype = volume.array, volume.geometry, volume.array.dtype
    channels = array.shape[0] if array.ndim == 4 else None
    with open(temporary, "wb") as stream:
        if suffix in (".nii", ".nii.gz"):
            header = nifti.make_header(geometry, channels, dtype, path=path, series=series)
            compression = "gzip" if suffix == ".nii.gz" else None
            # SimpleITK's own level is high for this format and low for the others; ours follows it where it matters.
            size = store_voxels(
                stream, array, channels_fastest=False, compression=compression, header=header, thorough=True
            )
        elif suffix == ".nrrd":
            size = stream.write(nrrd.make_header(geometry, channels, dtype, compressed=compress))
            size += store_voxels(stream, array, channels_fastest=True, compression="gzip" if compress else None)
        else:
            header = metaimage.make_header(geometry, channels, dtype, stored_bytes=0 if compress else None)
            size = stream.write(header)
            stored = store_voxels(stream, array, channels_fastest=True, compression="zlib" if compress else None)
            size += stored
            if compress:
                stream.seek(0)
                stream.write(metaimage.with_stored_bytes(header, stored))
        _require_size(stream, size)


def _write_pair(path: Path, volume: Volume, compress: bool) -> None:
    """Write header and voxels of an .mhd; both are complete before either gets its name, and the old header goes first."""
    data_path = path.with_suffix(".zraw" if compress else ".raw")
    if data_path.name.startswith("LIST") or "%" in data_path.name:
        raise DataError("readers of MetaImage take this name for a list or pattern of files; write .mha instead.", path)
    channels = volume.array.shape[0] if volume.array.ndim == 4 else None
    with replace_when_complete(path) as temporary, replace_when_complete(data_path) as data:
        with open(data, "wb") as stream:
            stored = store_voxels(stream, volume.array, channels_fastest=True, compression="zlib" if compress else None)
            _require_size(stream, stored)
        temporary.write_bytes(
            metaimage.make_header(
                volume.geometry,
                channels,
                volume.array.dtype,
                data_file=data_path.name,
                stored_bytes=stored if compress else None,
            )
        )
        if temporary != path:  # a reader must never meet the old header with the new voxels
            path.unlink(missing_ok=True)


def _require_size(stream, size: int) -> None:
    stream.flush()
    there = os.fstat(stream.fileno()).st_size
    if there != size:
        raise OSError(errno.EIO, f"{there:,} of {size:,} bytes arrived on the disk")
