"""What a volume file claims in its own header, read byte by byte before any library believes it."""

from __future__ import annotations

import math
import os
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from itkit.errors import DataError

FORMATS = (".nii.gz", ".mha", ".mhd", ".nii", ".nrrd")
"""File name endings of volumes; ``.nii.gz`` first, because a name is matched from the left of this list."""
MAX_HEADER_BYTES = 1 << 20
"""A text header that does not end within this many bytes is not a header."""

_META_TYPES = {
    "CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4", "ULONG": "u4",
    "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8",
}  # fmt: skip
_NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}


@dataclass(frozen=True)
class FileHeader:
    """The claims of one file.

    Attributes:
        shape: Array axes from the slowest to the fastest, as they lie in the file.
        bytes_per_value: Bytes of one stored number.
        dtype: NumPy type with byte order, or None if the numbers need a library to be understood.
        data_path: File that holds the numbers (not the header's file for .mhd).
        data_offset: Where they begin; in the decompressed stream if `whole_file_compressed`.
        encoding: ``"raw"``, ``"zlib"``, ``"gzip"``, or ``"text"`` (anything else a library must decode).
        whole_file_compressed: The compression includes the header (.nii.gz).
        spacing_zyx: Spacing as written, in mm; zeros and NaN are still in it. None if not written.
        channels_fastest: The last axis of `shape` holds channels.
        stored_bytes: Bytes of the compressed numbers, where the header says so.
    """

    shape: tuple[int, ...]
    bytes_per_value: int
    dtype: np.dtype | None
    data_path: Path
    data_offset: int
    encoding: str
    whole_file_compressed: bool = False
    spacing_zyx: tuple[float, ...] | None = None
    channels_fastest: bool = False
    stored_bytes: int | None = None

    @property
    def data_bytes(self) -> int:
        """Bytes that the numbers take, decompressed."""
        return math.prod(self.shape) * self.bytes_per_value


def volume_suffix(path: str | os.PathLike) -> str:
    """Return which of `FORMATS` the name `path` ends with (letter case ignored), or an empty string."""
    name = os.path.basename(os.fspath(path)).lower()
    return next((suffix for suffix in FORMATS if name.endswith(suffix) and len(name) > len(suffix)), "")


def volume_stem(path: str | os.PathLike) -> str:
    """Return the file name without its folder and volume suffix: ``"a/case_1.nii.gz"`` gives ``"case_1"``."""
    name = os.path.basename(os.fspath(path))
    return name[: len(name) - len(volume_suffix(name))]


def read_file_header(path: str | os.PathLike) -> FileHeader:
    """Return what the file at `path` claims to hold.

    Raises:
        DataError: If the file is missing, empty, of no known format, or its header makes no sense.
    """
    path = Path(path)
    suffix = volume_suffix(path)
    if not suffix:
        raise DataError(f"is not a volume file; known formats are {', '.join(sorted(FORMATS))}.", path)
    try:
        if not path.is_file():
            raise DataError("is a folder, not a volume file." if path.is_dir() else "no such file.", path)
        if path.stat().st_size == 0:
            raise DataError("the file is empty. Copy it again from its source.", path)
        with open(path, "rb") as stream:
            start = stream.read(MAX_HEADER_BYTES if suffix not in (".nii", ".nii.gz") else 1 << 14)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error}).", path) from error
    parse = {".mha": _meta, ".mhd": _meta, ".nrrd": _nrrd}.get(suffix, _nifti)
    try:
        header = parse(path, start)
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise DataError(f"the header cannot be understood ({type(error).__name__}: {error}).", path) from error
    if not header.shape or min(header.shape) < 1:
        raise DataError(f"the header claims the size {header.shape} (slowest axis first).", path)
    return header


def _fields(path: Path, lines: list[str], separator: str) -> dict[str, str]:
    return {
        key.strip().lower(): value.strip()
        for key, found, value in (line.partition(separator) for line in lines)
        if found and not key.startswith("#")
    }


def _meta(path: Path, start: bytes) -> FileHeader:
    match = re.search(rb"^[ \t]*ElementDataFile[ \t]*=[ \t]*([^\r\n]*)\r?\n?", start, re.MULTILINE)
    if match is None:
        raise DataError("the MetaImage header has no ElementDataFile.", path)
    fields = _fields(path, start[: match.start()].decode("latin-1").splitlines(), "=")
    for name in ("DimSize", "ElementType"):
        if name.lower() not in fields:
            raise DataError(f"the MetaImage header has no {name}.", path)

    def yes(name: str) -> bool:
        return fields.get(name, "false").lower() in ("true", "1")

    size_xyz = [int(value) for value in fields["dimsize"].split()]
    if int(fields.get("ndims", len(size_xyz))) != len(size_xyz):
        raise DataError(f"NDims is {fields['ndims']}, DimSize has {len(size_xyz)} numbers.", path)
    code = fields["elementtype"].removeprefix("MET_").removesuffix("_ARRAY")
    if code not in _META_TYPES:
        raise DataError(f"ElementType {fields['elementtype']} is not a number type of MetaImage.", path)
    dtype = np.dtype(_META_TYPES[code])
    channels = int(fields.get("elementnumberofchannels", 1))
    shape = tuple(reversed(size_xyz)) + ((channels,) if channels != 1 else ())
    name = match.group(1).decode("latin-1").strip()
    if name.startswith("LIST") or "%" in name:
        raise DataError("the voxels are spread over several files; save the volume as one .mha file.", path)
    data_path = path if name.upper() == "LOCAL" else path.parent / name
    offset = match.end() if data_path is path else 0
    binary, compressed = fields.get("binarydata", "true").lower() in ("true", "1"), yes("compresseddata")
    skip = int(fields.get("headersize", 0))
    if skip == -1 and binary and not compressed:
        if not data_path.is_file():
            raise DataError(f"the voxels should be in {name}, which is not there.", path)
        offset = max(data_path.stat().st_size - math.prod(shape) * dtype.itemsize, 0)
    elif skip > 0:
        offset += skip
    big = yes("elementbyteordermsb") or yes("binarydatabyteordermsb")
    spacing = fields.get("elementspacing", fields.get("elementsize"))
    return FileHeader(
        shape=shape,
        bytes_per_value=dtype.itemsize if binary else 2,
        dtype=dtype.newbyteorder(">" if big else "<") if binary else None,
        data_path=data_path,
        data_offset=offset,
        encoding="text" if not binary else "zlib" if compressed else "raw",
        stored_bytes=int(fields["compresseddatasize"]) if compressed and "compresseddatasize" in fields else None,
        spacing_zyx=None if spacing is None else _spacing(spacing.split()),
        channels_fastest=channels != 1,
    )


def _nifti(path: Path, start: bytes) -> FileHeader:
    compressed = volume_suffix(path) == ".nii.gz"
    if compressed:
        try:
            # Far less than the whole, so that a checksum at the end is not met here.
            start = zlib.decompressobj(31).decompress(start, 348)
        except zlib.error as error:
            raise DataError(f"is not a gzip file ({error}).", path) from error
    if len(start) < 348:
        raise DataError(f"the file ends inside the NIfTI header, after {len(start)} bytes.", path)
    order = next((order for order in "<>" if struct.unpack_from(order + "i", start)[0] in (348, 540)), None)
    if order is None:
        raise DataError("does not begin like a NIfTI file.", path)
    if struct.unpack_from(order + "i", start)[0] == 540:
        raise DataError("is NIfTI-2, which is not read; save it as NIfTI-1, .mha or .nrrd.", path)
    magic, dim = start[344:347], struct.unpack_from(order + "8h", start, 40)
    datatype, bits = struct.unpack_from(order + "2h", start, 70)
    pixdim = struct.unpack_from(order + "8f", start, 76)
    offset, slope, intercept = struct.unpack_from(order + "3f", start, 108)
    if magic != b"n+1":
        raise DataError("is not a single-file NIfTI (a .hdr/.img pair or ANALYZE file is not read).", path)
    if not 1 <= dim[0] <= 7:
        raise DataError(f"the NIfTI header claims {dim[0]} dimensions.", path)
    size_xyz = list(dim[1 : dim[0] + 1])
    if not math.isfinite(offset) or offset < 0:
        raise DataError(f"the voxels should begin at byte {offset}.", path)
    while len(size_xyz) > 3 and size_xyz[-1] == 1:
        size_xyz.pop()
    plain = datatype in _NIFTI_TYPES and len(size_xyz) <= 4
    # The standard: a slope of 0 means "not scaled"; programs read what is not finite as 0.
    slope, intercept = (value if math.isfinite(value) else 0.0 for value in (slope, intercept))
    scaled = slope != 0 and (slope, intercept) != (1.0, 0.0)
    dtype = np.dtype(order + _NIFTI_TYPES[datatype]) if plain and not scaled else None
    return FileHeader(
        shape=tuple(reversed(size_xyz)),
        bytes_per_value=max(bits // 8, 1) if dtype is None else dtype.itemsize,
        dtype=dtype,
        data_path=path,
        data_offset=int(offset),
        encoding="gzip" if compressed else "raw",
        whole_file_compressed=compressed,
        spacing_zyx=tuple(reversed(pixdim[1:4])),
    )


def _nrrd(path: Path, start: bytes) -> FileHeader:
    if not start.startswith(b"NRRD"):
        raise DataError("does not begin like a NRRD file.", path)
    end = re.search(rb"\r?\n\r?\n", start)
    if end is None and b"\ndata file:" not in start and b"\ndatafile:" not in start:
        raise DataError("the NRRD header does not end.", path)
    lines = start[: end.start() if end else len(start)].decode("latin-1").splitlines()[1:]
    fields = _fields(path, [line for line in lines if ":=" not in line], ":")
    for name in ("sizes", "type", "encoding"):
        if name not in fields:
            raise DataError(f"the NRRD header has no field '{name}'.", path)
    sizes = [int(value) for value in fields["sizes"].split()]
    if int(fields.get("dimension", len(sizes))) != len(sizes):
        raise DataError(f"dimension is {fields['dimension']}, sizes has {len(sizes)} numbers.", path)
    if fields["type"].lower() not in _NRRD_TYPES:
        raise DataError(f"type {fields['type']!r} is not a number type.", path)
    dtype = np.dtype(_NRRD_TYPES[fields["type"].lower()])
    encoding = fields["encoding"].lower()
    name = fields.get("data file", fields.get("datafile"))
    if name is not None and (name.upper().startswith("LIST") or "%" in name):
        raise DataError("the voxels are spread over several files; save the volume as one file.", path)
    if encoding.startswith("bz"):
        raise DataError("bzip2 compression is not read; save the volume with gzip compression.", path)
    encoding = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}.get(encoding, "text")
    kinds = fields.get("kinds", "").lower().split()
    in_space = ("domain", "space", "time")
    channels_fastest = len(sizes) == 4 and len(kinds) == 4 and kinds[0] not in in_space
    skips = {fields.get(key, "0") for key in ("byte skip", "byteskip", "line skip", "lineskip")}
    strange = skips != {"0"} or (len(sizes) == 4 and not channels_fastest)
    if encoding == "raw" and dtype.itemsize > 1 and "endian" not in fields:
        raise DataError("the NRRD header does not say the byte order (field 'endian').", path)
    order = ">" if fields.get("endian", "little").lower() == "big" else "<"
    spacing = None
    if "space directions" in fields:
        vectors = re.findall(r"\(([^)]*)\)", fields["space directions"])
        spacing = _spacing([math.hypot(*(float(value) for value in vector.split(","))) for vector in vectors])
    elif "spacings" in fields:
        values = [float(value) for value in fields["spacings"].split()]
        spacing = _spacing(values[1:] if channels_fastest else values)
    return FileHeader(
        shape=tuple(reversed(sizes)),
        bytes_per_value=dtype.itemsize if encoding != "text" else 1,
        dtype=None if strange or encoding == "text" else dtype.newbyteorder(order),
        data_path=path if name is None else path.parent / name,
        data_offset=0 if name is not None or end is None else end.end(),
        encoding=encoding,
        spacing_zyx=spacing,
        channels_fastest=channels_fastest,
    )


def _spacing(values: list) -> tuple[float, ...]:
    """The first three numbers, from (X, Y, Z) to (Z, Y, X)."""
    return tuple(reversed([float(value) for value in values[:3]]))
