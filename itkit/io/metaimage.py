"""The header of a MetaImage (.mha, .mhd): what it claims, and how ours is written."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from itkit.errors import DataError
from itkit.io.claims import FileHeader, grid, header_fields, require_three_dimensions
from itkit.io.geometry import Geometry, nearest_axes

_TYPES = {
    "CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4", "ULONG": "u4",
    "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8",
}  # fmt: skip
_NAMES = {kind: name for name, kind in _TYPES.items() if name not in ("LONG", "ULONG")}
_STORED = "CompressedDataSize = {:<20}"
_DATA_FILE = re.compile(rb"^[ \t]*ElementDataFile[ \t]*=[ \t]*([^\r\n]*)(\r?\n)?", re.MULTILINE)


def header_is_whole(start: bytes) -> bool:
    """Say whether the bytes `start` of a file hold the last line of the header, with its end."""
    match = _DATA_FILE.search(start)
    return match is not None and match.group(2) is not None


def parse_header(path: Path, start: bytes) -> FileHeader:
    """Return what the first bytes `start` of the file at `path` claim.

    Raises:
        DataError: If a needed field is missing or makes no sense.
        ValueError: If a number is none.
    """
    match = _DATA_FILE.search(start)
    if match is None:
        raise DataError("the MetaImage header has no ElementDataFile.", path)
    fields = header_fields(start[: match.start()].decode("latin-1").splitlines(), "=")
    for name in ("DimSize", "ElementType"):
        if name.lower() not in fields:
            raise DataError(f"the MetaImage header has no {name}.", path)

    def yes(name: str) -> bool:
        return fields.get(name, "false").lower() in ("true", "1")

    size_xyz = [int(value) for value in fields["dimsize"].split()]
    if int(fields.get("ndims", len(size_xyz))) != len(size_xyz):
        raise DataError(f"NDims is {fields['ndims']}, DimSize has {len(size_xyz)} numbers.", path)
    code = fields["elementtype"].removeprefix("MET_").removesuffix("_ARRAY")
    if code not in _TYPES:
        raise DataError(f"ElementType {fields['elementtype']} is not a number type of MetaImage.", path)
    require_three_dimensions(len(size_xyz), path)
    dtype = np.dtype(_TYPES[code])
    channels = int(fields.get("elementnumberofchannels", 1))
    if channels != 1 and len(size_xyz) == 4:
        raise DataError("has a time axis and several values per voxel; only one of the two can be channels.", path)
    shape = tuple(reversed(size_xyz)) + ((channels,) if channels != 1 else ())
    name = match.group(1).decode("utf-8", "surrogateescape").strip()
    if name.split()[:1] == ["LIST"] or re.search(r"%\d*d", name):
        raise DataError("the voxels are spread over several files; save the volume as one .mha file.", path)
    data_path = path if name.upper() == "LOCAL" else path.parent / name
    offset = match.end() if data_path is path else 0
    binary, compressed = fields.get("binarydata", "true").lower() in ("true", "1"), yes("compresseddata")
    skip = int(fields.get("headersize", 0))
    if skip == -1 and binary and not compressed:
        if not data_path.is_file():
            raise DataError(f"the voxels should be in {name!r}, which is not there.", path)
        offset = max(data_path.stat().st_size - math.prod(shape) * dtype.itemsize, 0)
    elif skip > 0:
        offset += skip
    big = yes("elementbyteordermsb") or yes("binarydatabyteordermsb")
    geometry = _geometry(fields, size_xyz)
    written = "elementspacing" in fields or "elementsize" in fields
    return FileHeader(
        shape=shape,
        bytes_per_value=dtype.itemsize if binary else 2,
        dtype=dtype.newbyteorder(">" if big else "<") if binary else None,
        data_path=data_path,
        data_offset=offset,
        encoding="text" if not binary else "zlib" if compressed else "raw",
        stored_bytes=int(fields["compresseddatasize"]) if compressed and "compresseddatasize" in fields else None,
        spacing_zyx=geometry.spacing_zyx if written else None,
        channels_fastest=channels != 1,
        geometry=geometry,
        channels=channels if channels != 1 else size_xyz[3] if len(size_xyz) == 4 else None,
    )


def make_header(
    geometry: Geometry,
    channels: int | None,
    dtype: np.dtype,
    *,
    data_file: str = "LOCAL",
    stored_bytes: int | None = None,
) -> bytes:
    """Return the header of a little-endian binary MetaImage; its length does not depend on `stored_bytes`.

    Args:
        geometry: The grid; every bit of it is kept.
        channels: Values per voxel, stored fastest; None for one.
        dtype: Type of a value.
        data_file: Name of the file with the voxels; ``"LOCAL"``: they follow the header.
        stored_bytes: Bytes of the zlib-compressed voxels; None: they are not compressed.
    """
    direction = np.reshape(geometry.direction_xyz, (3, 3))
    axes, signs = nearest_axes(geometry.direction_xyz)
    # The letter names the side that an axis comes from.
    letters = "".join(("RAI" if sign > 0 else "LPS")[axis] for axis, sign in zip(axes, signs, strict=True))
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        f"CompressedData = {stored_bytes is not None}",
        *([] if stored_bytes is None else [_STORED.format(stored_bytes)]),
        f"TransformMatrix = {_numbers(direction.T.ravel())}",
        f"Offset = {_numbers(geometry.origin_xyz)}",
        "CenterOfRotation = 0 0 0",
        f"AnatomicalOrientation = {letters}",
        f"ElementSpacing = {_numbers(reversed(geometry.spacing_zyx))}",
        f"DimSize = {' '.join(str(count) for count in reversed(geometry.size_zyx))}",
        *([] if channels is None else [f"ElementNumberOfChannels = {channels}"]),
        f"ElementType = MET_{_NAMES[f'{dtype.kind}{dtype.itemsize}']}",
        f"ElementDataFile = {data_file}",
    ]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def with_stored_bytes(header: bytes, stored_bytes: int) -> bytes:
    """Return a `header` that was made with ``stored_bytes=0`` with their number in it; its length stays."""
    return header.replace(_STORED.format(0).encode(), _STORED.format(stored_bytes).encode(), 1)


def _geometry(fields: dict[str, str], size_xyz: list[int]) -> Geometry:
    def numbers(*names: str, default: list[float]) -> list[float]:
        found = next((fields[name] for name in names if name in fields), None)
        if found is None:
            return default
        values = [float(value) for value in found.split()]
        if len(values) != len(default):
            raise ValueError(f"{names[0]} has {len(values)} numbers, not {len(default)}")
        return values

    n = len(size_xyz)
    spacing = numbers("elementspacing", "elementsize", default=[1.0] * n)
    origin = numbers("offset", "origin", "position", default=[0.0] * n)
    turned = numbers("transformmatrix", "rotation", "orientation", default=np.eye(n).ravel().tolist())
    # A row of TransformMatrix is the direction of one index axis; in a direction matrix that is a column.
    direction = [turned[n * k + i] for i in range(3) for k in range(3)]
    return grid(size_xyz[:3], spacing[:3], origin[:3], direction)


def _numbers(values) -> str:
    return " ".join(f"{float(value) + 0.0:.17g}" for value in values)
