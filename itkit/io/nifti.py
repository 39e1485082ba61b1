"""The header of a NIfTI file, version 1 or 2: what it claims, which of its two places counts, and how ours is written."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from itkit.errors import DataError
from itkit.io.claims import FileHeader, require_three_dimensions
from itkit.io.geometry import (
    ORIGIN_RTOL_EQUAL,
    SPACING_RTOL_EQUAL,
    Geometry,
    direction_deviation,
    largest_displacement_mm,
)

HEADER_BYTES = {348: 1, 540: 2}
"""The first number of a header, its own length, and the version of the format that it belongs to."""
SFORM_ATOL = 1e-4
"""A sform less orthonormal than this gives way to a qform, where there is one (as in SimpleITK)."""
_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_CODES = {kind: code for code, kind in _TYPES.items()}
_COLOURS_AND_COMPLEX = {32, 128, 1792, 2304}
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}
_VECTOR, _DISPLACEMENT = 1007, 1006
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MAX_SIZE = 32767
_VOXELS_BEGIN = 352


@dataclass(frozen=True)
class _Fields:
    """The fields of either version that count."""

    dim: tuple[int, ...]
    datatype: int
    bits: int
    pixdim: tuple[float, ...]
    offset: float
    scale: tuple[float, float]
    units: int
    intent: int
    qform_code: int
    sform_code: int
    quaternion: tuple[float, ...]
    sform: tuple[float, ...]
    magic: bytes


def parse_header(path: Path, start: bytes, *, compressed: bool) -> FileHeader:
    """Return what the first (decompressed) bytes `start` of the file at `path` claim.

    The place in space is chosen as SimpleITK chooses it: the sform if its code is 1 (scanner) or there is no qform; else the
    qform; a sform that is not orthonormal within `SFORM_ATOL` gives way to the qform, if there is one; without either, the
    axes are those of space and the origin is 0. The spacing is always ``pixdim``. Where the two places differ, or the
    sform's columns have another length than ``pixdim``, a note says so.

    Raises:
        DataError: If it is no NIfTI file, or its header makes no sense.
        struct.error: If the header is not whole.
    """
    if len(start) < 348:
        raise DataError(f"the file ends inside the NIfTI header, after {len(start)} bytes.", path)
    order = next((order for order in "<>" if struct.unpack_from(order + "i", start)[0] in HEADER_BYTES), None)
    if order is None:
        hint = " It is gzip-compressed: name it .nii.gz." if start.startswith(b"\x1f\x8b") else ""
        raise DataError(f"does not begin like a NIfTI file.{hint}", path)
    version = HEADER_BYTES[struct.unpack_from(order + "i", start)[0]]
    if version == 2 and len(start) < 540:
        raise DataError(f"the file ends inside the NIfTI-2 header, after {len(start)} bytes.", path)
    fields = (_version_1 if version == 1 else _version_2)(start, order)
    if fields.magic != (b"n+1" if version == 1 else b"n+2"):
        raise DataError("is not a single-file NIfTI (a .hdr/.img pair or ANALYZE file is not read).", path)
    if not 1 <= fields.dim[0] <= 7:
        raise DataError(f"the NIfTI header claims {fields.dim[0]} dimensions.", path)
    size_xyz = list(fields.dim[1 : fields.dim[0] + 1])
    if not math.isfinite(fields.offset) or fields.offset < 0:
        raise DataError(f"the voxels should begin at byte {fields.offset}.", path)
    while len(size_xyz) > 3 and size_xyz[-1] == 1:
        size_xyz.pop()
    # A vector per voxel lies on the fifth axis, behind a time axis without length.
    shape = tuple(reversed(size_xyz))
    channels = size_xyz[3] if len(size_xyz) == 4 else None
    if len(size_xyz) == 5 and size_xyz[3] == 1:
        channels, shape = size_xyz[4], shape[:1] + shape[2:]
    elif len(size_xyz) == 3 and fields.intent == _VECTOR and fields.dim[0] == 5:
        channels, shape = 1, (1, *shape)
    require_three_dimensions(len(shape), path)
    if fields.datatype not in _TYPES and fields.datatype not in _COLOURS_AND_COMPLEX:
        raise DataError(f"datatype {fields.datatype} is not a number type of NIfTI.", path)
    plain = fields.datatype in _TYPES and fields.intent != _DISPLACEMENT
    # The standard: a slope of 0 means "not scaled"; programs read what is not finite as 0.
    slope, intercept = (value if math.isfinite(value) else 0.0 for value in fields.scale)
    scaled = slope != 0 and (slope, intercept) != (1.0, 0.0)
    dtype = np.dtype(order + _TYPES[fields.datatype]) if plain else None
    with np.errstate(all="ignore"):  # what is not finite is refused later, by name
        geometry, notes = _geometry(fields, size_xyz[:3])
    return FileHeader(
        shape=shape,
        bytes_per_value=max(fields.bits // 8, 1) if dtype is None else dtype.itemsize,
        dtype=dtype,
        data_path=path,
        data_offset=int(fields.offset),
        encoding="gzip" if compressed else "raw",
        whole_file_compressed=compressed,
        spacing_zyx=geometry.spacing_zyx,
        geometry=geometry if plain else None,
        channels=channels,
        scale=(slope, intercept) if scaled else None,
        notes=notes,
    )


def make_header(
    geometry: Geometry, channels: int | None, dtype: np.dtype, *, path: Path, series: bool = False
) -> bytes:
    """Return the 352 bytes before the voxels of a little-endian NIfTI-1 file.

    Both places in space are written with code 1 (scanner): the sform as it is, the qform as the nearest rotation. The format
    holds them in 32-bit floats.

    Args:
        geometry: The grid.
        channels: Values per voxel; None for one.
        dtype: Type of a value.
        path: To be named in a message.
        series: Put channels on the fourth axis (time), as multi-modal datasets do; else on the fifth, as a vector.

    Raises:
        DataError: If an axis has more voxels than the format can count.
    """
    sizes = list(reversed(geometry.size_zyx)) + ([] if channels is None else [channels] if series else [1, channels])
    if max(sizes) > _MAX_SIZE:
        raise DataError(
            f"an axis of {max(sizes):,} voxels; NIfTI-1 counts to {_MAX_SIZE:,}. Write .mha or .nrrd.", path
        )
    header = bytearray(_VOXELS_BEGIN)
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(geometry.direction_xyz, (3, 3)) * geometry.spacing_zyx[::-1]
    matrix[:3, 3] = geometry.origin_xyz
    sform = _TO_LPS @ matrix + 0.0
    quaternion, handedness = _quaternion(_TO_LPS[:3, :3] @ np.reshape(geometry.direction_xyz, (3, 3)))
    struct.pack_into("<i", header, 0, 348)
    header[38:39] = b"r"
    struct.pack_into("<8h", header, 40, len(sizes), *sizes, *[1] * (7 - len(sizes)))
    struct.pack_into(
        "<3h", header, 68, _VECTOR if channels is not None and not series else 0,
        _CODES[f"{dtype.kind}{dtype.itemsize}"], 8 * dtype.itemsize,
    )  # fmt: skip
    beyond = [1.0] * (len(sizes) - 3) + [0.0] * (7 - len(sizes))
    struct.pack_into("<8f", header, 76, handedness, *reversed(geometry.spacing_zyx), *beyond)
    struct.pack_into("<3f", header, 108, _VOXELS_BEGIN, 1, 0)
    header[123] = 2 + 8  # mm and s
    struct.pack_into("<2h", header, 252, 1, 1)
    struct.pack_into("<6f", header, 256, *quaternion, *sform[:3, 3])
    struct.pack_into("<12f", header, 280, *sform[:3].ravel())
    header[344:348] = b"n+1\0"
    return bytes(header)


def _version_1(start: bytes, order: str) -> _Fields:
    def get(kind: str, at: int) -> tuple:
        return struct.unpack_from(order + kind, start, at)

    return _Fields(
        get("8h", 40), *get("2h", 70), get("8f", 76), get("f", 108)[0], get("2f", 112), start[123], get("h", 68)[0],
        *get("2h", 252), get("6f", 256), get("12f", 280), start[344:347],
    )  # fmt: skip


def _version_2(start: bytes, order: str) -> _Fields:
    def get(kind: str, at: int) -> tuple:
        return struct.unpack_from(order + kind, start, at)

    return _Fields(
        get("8q", 16), *get("2h", 12), get("8d", 104), get("q", 168)[0], get("2d", 176), get("i", 500)[0],
        get("i", 504)[0], *get("2i", 344), get("6d", 352), get("12d", 400), start[4:7],
    )  # fmt: skip


def _geometry(fields: _Fields, size_xyz: list[int]) -> tuple[Geometry, tuple[str, ...]]:
    size_xyz, notes = size_xyz + [1] * (3 - len(size_xyz)), []
    mm = _MM_PER_UNIT.get(fields.units & 7, 1.0)
    spacing_zyx = tuple(mm * value for value in reversed(fields.pixdim[1:4]))
    if mm != 1.0:
        notes.append(f"the header gives lengths in {'m' if mm > 1 else 'µm'}; they were turned into mm.")

    def place(direction: np.ndarray, origin) -> Geometry:
        direction, origin = _TO_LPS[:3, :3] @ direction + 0.0, mm * (_TO_LPS[:3, :3] @ origin) + 0.0
        return Geometry(
            tuple(reversed(size_xyz)), spacing_zyx, tuple(origin.tolist()), tuple(direction.ravel().tolist())
        )

    rows = np.reshape(fields.sform, (3, 4))
    lengths = np.sqrt(np.square(rows[:, :3]).sum(axis=0))
    by_sform = place(rows[:, :3] / lengths, rows[:, 3])
    by_qform = place(_rotation(fields.quaternion[:3], fields.pixdim[0]), np.array(fields.quaternion[3:]))
    if fields.sform_code > 0 and (fields.sform_code == 1 or fields.qform_code <= 0):
        deviation = direction_deviation(by_sform.direction_xyz)
        if fields.qform_code > 0 and not deviation <= SFORM_ATOL:
            notes.append(f"the sform is not orthonormal (off by {deviation:.3g}); the qform is used.")
            return by_qform, tuple(notes)
        used, geometry = "sform", by_sform
        if not np.allclose(mm * lengths, spacing_zyx[::-1], rtol=SPACING_RTOL_EQUAL, atol=0):
            written = ", ".join(f"{mm * value:.6g}" for value in reversed(lengths))
            notes.append(f"the sform's columns are ({written}) mm long (Z, Y, X), pixdim says otherwise and is used.")
    elif fields.qform_code > 0:
        used, geometry = "qform", by_qform
    else:
        return place(_TO_LPS[:3, :3], np.zeros(3)), (*notes, "there is neither sform nor qform; the place is unknown.")
    if fields.sform_code > 0 and fields.qform_code > 0:
        apart = largest_displacement_mm(by_sform, by_qform)
        if not apart <= ORIGIN_RTOL_EQUAL * min(abs(value) for value in spacing_zyx):
            notes.append(f"sform and qform place a voxel up to {apart:.3g} mm apart; the {used} is used.")
    return geometry, tuple(notes)


def _rotation(quaternion: tuple[float, ...], handedness: float) -> np.ndarray:
    """The matrix of a unit quaternion (b, c, d) whose first part is not stored; its third column turned if asked."""
    b, c, d = quaternion
    rest = 1.0 - (b * b + c * c + d * d)
    if rest < 1e-7:  # the standard: too near to a half turn for 32-bit floats
        length = math.sqrt(b * b + c * c + d * d) or 1.0
        a, b, c, d = 0.0, b / length, c / length, d / length
    else:
        a = math.sqrt(rest)
    matrix = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
    ])  # fmt: skip
    if handedness < 0:
        matrix[:, 2] *= -1
    return matrix


def _quaternion(direction: np.ndarray) -> tuple[tuple[float, float, float], float]:
    """Parts (b, c, d) of the rotation nearest to `direction`, and -1 if its third column had to be turned for that, else 1."""
    left, _, right = np.linalg.svd(direction)
    matrix = left @ right
    handedness = 1.0 if np.linalg.det(matrix) > 0 else -1.0
    matrix[:, 2] *= handedness
    squares = np.array([
        1 + matrix[0, 0] + matrix[1, 1] + matrix[2, 2], 1 + matrix[0, 0] - matrix[1, 1] - matrix[2, 2],
        1 - matrix[0, 0] + matrix[1, 1] - matrix[2, 2], 1 - matrix[0, 0] - matrix[1, 1] + matrix[2, 2],
    ])  # fmt: skip
    # Four times the products of the largest part with all four; dividing by the largest keeps the digits.
    products = np.array([
        [squares[0], matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]],
        [matrix[2, 1] - matrix[1, 2], squares[1], matrix[1, 0] + matrix[0, 1], matrix[0, 2] + matrix[2, 0]],
        [matrix[0, 2] - matrix[2, 0], matrix[1, 0] + matrix[0, 1], squares[2], matrix[2, 1] + matrix[1, 2]],
        [matrix[1, 0] - matrix[0, 1], matrix[0, 2] + matrix[2, 0], matrix[2, 1] + matrix[1, 2], squares[3]],
    ])  # fmt: skip
    row = products[int(np.argmax(squares))]
    unit = row / np.linalg.norm(row)
    unit = unit if unit[0] >= 0 else -unit
    return tuple((unit[1:] + 0.0).tolist()), handedness
