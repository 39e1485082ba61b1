"""The header of a NRRD file: what it claims, and how ours is written."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from itkit.errors import DataError
from itkit.io.claims import FileHeader, grid, header_fields, require_three_dimensions
from itkit.io.geometry import Geometry

_TYPES = {
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
_NAMES = {
    "i1": "int8", "u1": "uint8", "i2": "int16", "u2": "uint16", "i4": "int32", "u4": "uint32", "i8": "int64",
    "u8": "uint64", "f4": "float", "f8": "double",
}  # fmt: skip
_SIGNS_TO_LPS = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (1, 1, 1)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1, -1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1, -1, 1)),
}
_END = re.compile(rb"\r?\n\r?\n")


def header_is_whole(start: bytes) -> bool:
    """Say whether the bytes `start` of a file hold the empty line that ends the header (or are no NRRD at all)."""
    return not start.startswith(b"NRRD") or _END.search(start) is not None


def parse_header(path: Path, start: bytes) -> FileHeader:
    """Return what the first bytes `start` of the file at `path` claim.

    Raises:
        DataError: If a needed field is missing or makes no sense.
        ValueError: If a number is none.
    """
    if not start.startswith(b"NRRD"):
        raise DataError("does not begin like a NRRD file.", path)
    end = _END.search(start)
    if end is None and b"\ndata file:" not in start and b"\ndatafile:" not in start:
        raise DataError("the NRRD header does not end.", path)
    lines = start[: end.start() if end else len(start)].decode("utf-8", "surrogateescape").splitlines()[1:]
    fields = header_fields([line for line in lines if ":=" not in line], ":")
    for name in ("sizes", "type", "encoding"):
        if name not in fields:
            raise DataError(f"the NRRD header has no field '{name}'.", path)
    sizes = [int(value) for value in fields["sizes"].split()]
    if int(fields.get("dimension", len(sizes))) != len(sizes):
        raise DataError(f"dimension is {fields['dimension']}, sizes has {len(sizes)} numbers.", path)
    if fields["type"].lower() not in _TYPES:
        raise DataError(f"type {fields['type']!r} is not a number type.", path)
    dtype = np.dtype(_TYPES[fields["type"].lower()])
    encoding = fields["encoding"].lower()
    name = fields.get("data file", fields.get("datafile"))
    if name is not None and (name.split()[:1] == ["LIST"] or re.search(r"%\d*d", name)):
        raise DataError("the voxels are spread over several files; save the volume as one file.", path)
    if encoding.startswith("bz"):
        raise DataError("bzip2 compression is not read; save the volume with gzip compression.", path)
    require_three_dimensions(len(sizes), path)
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
        spacing = _first_three([math.hypot(*vector) for vector in _vectors(fields["space directions"])])
    elif "spacings" in fields:
        values = [float(value) for value in fields["spacings"].split()]
        spacing = _first_three(values[1:] if channels_fastest else values)
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", ""))) - {"mm", ""}
    return FileHeader(
        shape=tuple(reversed(sizes)),
        bytes_per_value=dtype.itemsize if encoding != "text" else 1,
        dtype=None if strange or encoding == "text" else dtype.newbyteorder(order),
        data_path=path if name is None else path.parent / name,
        data_offset=0 if name is not None or end is None else end.end(),
        encoding=encoding,
        spacing_zyx=spacing,
        channels_fastest=channels_fastest,
        geometry=None if strange else _geometry(fields, sizes[channels_fastest:]),
        channels=sizes[0] if channels_fastest else None,
        notes=(f"the header gives lengths in {', '.join(sorted(units))}; they are read as mm.",) if units else (),
    )


def make_header(geometry: Geometry, channels: int | None, dtype: np.dtype, *, compressed: bool) -> bytes:
    """Return the header of a little-endian NRRD file with attached voxels, in the LPS frame.

    Args:
        geometry: The grid. Its directions and spacings are stored as products.
        channels: Values per voxel, stored fastest; None for one.
        dtype: Type of a value.
        compressed: The voxels that follow are gzip-compressed.
    """
    columns = (np.reshape(geometry.direction_xyz, (3, 3)) * geometry.spacing_zyx[::-1]).T
    several = channels is not None
    sizes = ([channels] if several else []) + list(reversed(geometry.size_zyx))
    lines = [
        "NRRD0004",
        f"type: {_NAMES[f'{dtype.kind}{dtype.itemsize}']}",
        f"dimension: {len(sizes)}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(count) for count in sizes)}",
        f"space directions: {'none ' * several}{' '.join(_vector(column) for column in columns)}",
        f"kinds: {'vector ' * several}domain domain domain",
        "endian: little",
        f"encoding: {'gzip' if compressed else 'raw'}",
        f"space origin: {_vector(geometry.origin_xyz)}",
    ]
    return ("\n".join(lines) + "\n\n").encode("ascii")


def _geometry(fields: dict[str, str], sizes: list[int]) -> Geometry | None:
    """The grid, where the frame is one of the three named ones; anything else is left to a library."""
    signs = _SIGNS_TO_LPS.get(fields.get("space", "").lower())
    vectors = _vectors(fields.get("space directions", ""))
    if signs is None or len(vectors) != 3 or {len(vector) for vector in vectors} != {3}:
        return None
    origin = (_vectors(fields.get("space origin", "")) or [(0.0, 0.0, 0.0)])[0]
    spacing = [math.hypot(*vector) for vector in vectors]
    if not all(spacing):
        return grid(sizes, spacing, [*origin], [0.0] * 9)
    direction = [signs[i] * vectors[k][i] / spacing[k] for i in range(3) for k in range(3)]
    return grid(sizes, spacing, [sign * value for sign, value in zip(signs, origin, strict=True)], direction)


def _vectors(text: str) -> list[tuple[float, ...]]:
    return [tuple(float(value) for value in vector.split(",")) for vector in re.findall(r"\(([^)]*)\)", text)]


def _vector(values) -> str:
    return "(" + ",".join(f"{float(value) + 0.0:.17g}" for value in values) + ")"


def _first_three(values: list[float]) -> tuple[float, ...]:
    """The first three numbers, from (X, Y, Z) to (Z, Y, X)."""
    return tuple(reversed(values[:3]))
