"""Read and write a volume: its numbers, its type and its place in space, all checked, none changed."""

from __future__ import annotations

import math
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from itkit._support.files import replace_when_complete
from itkit.errors import DataError, GeometryError
from itkit.io.geometry import Geometry, require_possible, require_spacing
from itkit.io.headers import FileHeader, read_file_header, volume_suffix

MAX_DEFLATE_RATIO = 1032
"""Deflate cannot make data smaller than by this factor (zlib's technical notes)."""
PIXEL_TYPES = {
    sitk.sitkInt8: np.dtype("int8"),
    sitk.sitkUInt8: np.dtype("uint8"),
    sitk.sitkInt16: np.dtype("int16"),
    sitk.sitkUInt16: np.dtype("uint16"),
    sitk.sitkInt32: np.dtype("int32"),
    sitk.sitkUInt32: np.dtype("uint32"),
    sitk.sitkInt64: np.dtype("int64"),
    sitk.sitkUInt64: np.dtype("uint64"),
    sitk.sitkFloat32: np.dtype("float32"),
    sitk.sitkFloat64: np.dtype("float64"),
    sitk.sitkVectorInt8: np.dtype("int8"),
    sitk.sitkVectorUInt8: np.dtype("uint8"),
    sitk.sitkVectorInt16: np.dtype("int16"),
    sitk.sitkVectorUInt16: np.dtype("uint16"),
    sitk.sitkVectorInt32: np.dtype("int32"),
    sitk.sitkVectorUInt32: np.dtype("uint32"),
    sitk.sitkVectorInt64: np.dtype("int64"),
    sitk.sitkVectorUInt64: np.dtype("uint64"),
    sitk.sitkVectorFloat32: np.dtype("float32"),
    sitk.sitkVectorFloat64: np.dtype("float64"),
}
"""SimpleITK's pixel types that are numbers, and NumPy's names for them."""
_READERS = {
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
    ".nii": "NiftiImageIO",
    ".nii.gz": "NiftiImageIO",
    ".nrrd": "NrrdImageIO",
}


@dataclass(frozen=True)
class VolumeHeader:
    """What a file says of its volume, without the voxels.

    Attributes:
        geometry: Size, spacing, origin and direction.
        channels: Number of values per voxel; None for a volume without a channel axis.
        dtype: Type of the array that reading the volume gives.
    """

    geometry: Geometry
    channels: int | None
    dtype: np.dtype


@dataclass(frozen=True)
class Volume:
    """An array in space.

    Attributes:
        array: Voxels, (Z, Y, X), or (C, Z, Y, X) where a voxel has several values.
        spacing_zyx: Distance of voxel centres in mm, order (Z, Y, X).
        origin_xyz: Physical place of the first voxel's centre in mm, order (X, Y, Z), SimpleITK's frame.
        direction_xyz: Nine numbers, row by row, as `itkit.io.geometry.Geometry` describes them.
    """

    array: np.ndarray
    spacing_zyx: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin_xyz: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction_xyz: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

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
    path = Path(path)
    _claims(path)
    return _library_header(path)[1]


def read_volume(path: str | os.PathLike, *, header_only: bool = False) -> Volume | VolumeHeader:
    """Read the volume at `path` (.mha, .mhd, .nii, .nii.gz, .nrrd) and distrust it.

    Length and checksums of compressed data are verified while they are decompressed. The pixel type stays the file's;
    NIfTI data with a scale factor become floating point, as in SimpleITK. A fourth dimension (NIfTI series such as the
    modalities of an MR examination) becomes the channel axis.

    Args:
        path: The file.
        header_only: Return what `read_header` returns.

    Returns:
        A volume with an own, writable array in native byte order.

    Raises:
        DataError: If the file is missing, empty, truncated, corrupt, asks for more bytes than it has, or is of no known
            format.
        GeometryError: If spacing, origin or direction are impossible.
    """
    path = Path(path)
    if header_only:
        return read_header(path)
    file, array = _claims(path), None
    try:
        # The voxels first: where the compressed data are damaged, that is the reason to give.
        if file.dtype is not None:
            array = _decode(file, path)
        elif file.encoding in ("gzip", "zlib"):
            _decompress(file, path, keep=False)
        reader, header = _library_header(path)
        geometry = header.geometry
        if array is None or array.size != math.prod(geometry.size_zyx) * (header.channels or 1):
            array = _array_of(_execute(reader, path))
    except MemoryError as error:
        raise DataError(f"does not fit into the memory: {file.data_bytes / 2**30:.1f} GiB of voxels.", path) from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error}).", path) from error
    array = array.reshape(((header.channels,) if header.channels else ()) + tuple(geometry.size_zyx))
    return Volume(array, geometry.spacing_zyx, geometry.origin_xyz, geometry.direction_xyz)


def write_volume(path: str | os.PathLike, volume: Volume, *, compress: bool = True) -> None:
    """Write `volume` to `path`; the suffix chooses the format. All of it is written or nothing.

    NIfTI stores the geometry in 32-bit floats; the other formats keep every bit of it.

    Args:
        path: The file. Its folder is made if needed; an existing file is replaced when the new one is complete.
        volume: Not modified.
        compress: Compress the voxels (.nii and .nii.gz follow their suffix).

    Raises:
        DataError: If the format is unknown, cannot hold the pixel type, or the file cannot be written.
        GeometryError: If the geometry is impossible.
    """
    path = Path(path)
    suffix = volume_suffix(path)
    if not suffix:
        raise DataError(f"is not a name for a volume; known formats are {', '.join(sorted(_READERS))}.", path)
    if volume.array.dtype.newbyteorder("=") not in PIXEL_TYPES.values():
        raise DataError(
            f"voxels of type {volume.array.dtype} cannot be stored; convert them first, e.g. bool to uint8.", path
        )
    require_possible(volume.geometry, path)
    try:
        with replace_when_complete(path) as temporary:
            sitk.WriteImage(to_image(volume), os.fspath(temporary), useCompression=compress and suffix != ".nii")
            if suffix == ".mhd":
                _name_data_file(temporary, path)
            else:
                read_header(temporary)
    except (OSError, RuntimeError) as error:
        raise DataError(f"cannot be written ({_reason(error)}).", path) from error


def to_image(volume: Volume) -> sitk.Image:
    """Return `volume` as a SimpleITK image with a copy of the voxels; channels become components."""
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
    return Volume(
        _array_of(image), tuple(reversed(image.GetSpacing())), tuple(image.GetOrigin()), tuple(image.GetDirection())
    )


def _claims(path: Path) -> FileHeader:
    """What the file itself says, as far as it is possible."""
    file = read_file_header(path)
    if file.spacing_zyx is not None:
        require_spacing(file.spacing_zyx, path)
    _require_bytes(file, path)
    return file


def _library_header(path: Path) -> tuple[sitk.ImageFileReader, VolumeHeader]:
    """What SimpleITK makes of the header; it knows the rules of each format for the place in space."""
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        kind = GeometryError if "orthonormal" in str(error) or "determinant" in str(error) else DataError
        raise kind(f"the header is refused: {_reason(error)}", path) from error
    dimension, size_xyz = reader.GetDimension(), reader.GetSize()
    if dimension not in (3, 4):
        raise DataError(f"is {dimension}-dimensional; a volume has the axes X, Y, Z and perhaps channels.", path)
    if reader.GetPixelIDValue() not in PIXEL_TYPES:
        raise DataError(
            f"voxels of type {sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())} are not numbers.", path
        )
    components, direction = reader.GetNumberOfComponents(), np.reshape(reader.GetDirection(), (dimension, dimension))
    if dimension == 4 and components > 1:
        raise DataError("has a time axis and several values per voxel; only one of the two can be channels.", path)
    vector = components > 1 or reader.GetPixelIDValue() >= sitk.sitkVectorUInt8
    geometry = Geometry(
        tuple(reversed(size_xyz[:3])),
        tuple(reversed(reader.GetSpacing()[:3])),
        tuple(reader.GetOrigin()[:3]),
        tuple(float(value) for value in direction[:3, :3].ravel()),
    )
    require_possible(geometry, path)
    channels = size_xyz[3] if dimension == 4 else components if vector else None
    return reader, VolumeHeader(geometry, channels, PIXEL_TYPES[reader.GetPixelIDValue()])


def _require_bytes(file: FileHeader, path: Path) -> None:
    """Refuse a header that asks for more than the file can hold, before anything is allocated."""
    try:
        there = file.data_path.stat().st_size
    except OSError as error:
        raise DataError(f"the voxels should be in {file.data_path.name}, which is not there.", path) from error
    claimed = file.data_bytes
    if file.encoding in ("gzip", "zlib"):
        stored = there if file.whole_file_compressed else there - file.data_offset
        possible, needed = stored * MAX_DEFLATE_RATIO, claimed + file.data_offset * file.whole_file_compressed
        if file.stored_bytes is not None and stored < file.stored_bytes:
            needed, possible = file.stored_bytes, stored
    else:
        possible, needed = there - file.data_offset, claimed - (file.encoding == "text")
    if needed > possible:
        raise DataError(
            f"the header asks for {needed:,} bytes of voxels, the file holds at most {max(possible, 0):,}: it is "
            "truncated or its header is wrong. Copy it again from its source.",
            path,
        )


def _decode(file: FileHeader, path: Path) -> np.ndarray:
    """The voxels as (Z, Y, X) or (C, Z, Y, X), native byte order, owned."""
    count = math.prod(file.shape)
    if file.encoding == "raw":
        flat = np.fromfile(file.data_path, dtype=file.dtype, count=count, offset=file.data_offset)
    else:
        stream, start = _decompress(file, path), file.data_offset if file.whole_file_compressed else 0
        flat = np.frombuffer(stream, dtype=file.dtype, count=count, offset=start)
    array = flat.reshape(file.shape)
    if file.channels_fastest:
        array = np.moveaxis(array, -1, 0)
    return np.require(array, dtype=file.dtype.newbyteorder("="), requirements=["C", "O", "W"])


def _decompress(file: FileHeader, path: Path, *, keep: bool = True) -> bytes:
    """Decompress once, verify length and checksum, and return the bytes (empty unless `keep`)."""
    stored = file.data_path.read_bytes()
    rest = memoryview(stored)[0 if file.whole_file_compressed else file.data_offset :]
    wanted = file.data_bytes + (file.data_offset if file.whole_file_compressed else 0)
    parts, length = [], 0
    try:
        while True:
            stream = zlib.decompressobj(47)
            while not stream.eof:
                limit = wanted - length if keep and length < wanted else 1 << 20
                part = stream.decompress(rest, limit)
                rest = stream.unconsumed_tail
                if keep and length < wanted:
                    parts.append(part)
                length += len(part)
                if not part and not rest and not stream.eof:
                    raise DataError(
                        f"the compressed data end after {length:,} of {wanted:,} bytes. Copy it again from its source.",
                        path,
                    )
            rest = stream.unused_data
            if length >= wanted or not rest:
                break
    except zlib.error as error:
        raise DataError(f"the compressed data are corrupt ({error}). Copy it again from its source.", path) from error
    if length < wanted:
        raise DataError(f"the compressed data hold {length:,} bytes, the header asks for {wanted:,}.", path)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _reader(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_READERS[volume_suffix(path)])
    reader.SetFileName(os.fspath(path))
    return reader


def _execute(reader: sitk.ImageFileReader, path: Path) -> sitk.Image:
    try:
        return reader.Execute()
    except RuntimeError as error:
        raise DataError(f"cannot be read: {_reason(error)}", path) from error


def _array_of(image: sitk.Image) -> np.ndarray:
    array = sitk.GetArrayFromImage(image)
    if image.GetPixelID() >= sitk.sitkVectorUInt8:
        size_zyx, channels = image.GetSize()[::-1], image.GetNumberOfComponentsPerPixel()
        array = np.ascontiguousarray(np.moveaxis(array.reshape(*size_zyx, channels), -1, 0))
    return array


def _name_data_file(temporary: Path, path: Path) -> None:
    """Give the second file of an .mhd pair its final name, in the header and on disk."""
    text = temporary.read_text(encoding="latin-1")
    written = temporary.parent / re.search(r"^ElementDataFile = (.*)$", text, re.MULTILINE).group(1)
    try:
        read_header(temporary)
        final = path.with_suffix(written.suffix)
        temporary.write_text(text.replace(written.name, final.name), encoding="latin-1")
        os.replace(written, final)
    finally:
        written.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """The last words of a library's exception, without its source file names."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^.*(ITK ERROR|sitk::ERROR):\s*", "", lines[-1]) if lines else type(error).__name__
