"""What a volume file says of itself, whatever its format, and whether the file can hold that much."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from itkit.errors import DataError
from itkit.io.geometry import Geometry

MAX_DEFLATE_RATIO = 1032
"""Deflate cannot make data smaller than by this factor (zlib's technical notes)."""
MEMORY_SHARE = 0.9
"""Part of the memory that is free now which one volume may take."""
_WORTH_ASKING_BYTES = 1 << 30


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
        geometry: The grid as written, not yet checked; None if a library must make sense of it.
        channels: Values per voxel; None for a volume without a channel axis.
        scale: Slope and intercept that turn stored numbers into values; None if they are the values.
        notes: What is worth knowing although the file can be read.
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
    geometry: Geometry | None = None
    channels: int | None = None
    scale: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()

    @property
    def data_bytes(self) -> int:
        """Bytes that the numbers take, decompressed."""
        return math.prod(self.shape) * self.bytes_per_value

    @property
    def value_dtype(self) -> np.dtype | None:
        """Type of the values in memory, native byte order: scaled numbers become floating point (float64 stays so)."""
        if self.dtype is None or self.scale is None:
            return None if self.dtype is None else self.dtype.newbyteorder("=")
        return np.dtype("float64" if self.dtype.itemsize == 8 and self.dtype.kind == "f" else "float32")


def header_fields(lines: list[str], separator: str) -> dict[str, str]:
    """Return the fields of a text header, names in lower case; lines without `separator` and comments are left out."""
    return {
        key.strip().lower(): value.strip()
        for key, found, value in (line.partition(separator) for line in lines)
        if found and not key.startswith("#")
    }


def grid(
    size_xyz: list[int], spacing_xyz: list[float], origin_xyz: list[float], direction_xyz: list[float]
) -> Geometry:
    """Return the `Geometry` of triples in the files' order; nothing is checked but that there are three and nine numbers."""
    if (len(size_xyz), len(spacing_xyz), len(origin_xyz), len(direction_xyz)) != (3, 3, 3, 9):
        raise ValueError("spacing, origin or direction have a wrong number of values")
    return Geometry(tuple(reversed(size_xyz)), tuple(reversed(spacing_xyz)), tuple(origin_xyz), tuple(direction_xyz))


def require_three_dimensions(dimensions: int, path: Path) -> None:
    """Refuse what is neither a volume nor a volume with one axis of channels."""
    if dimensions not in (3, 4):
        raise DataError(
            f"is {dimensions}-dimensional; a volume has the axes X, Y, Z and perhaps channels. Save a picture as a volume "
            "of one slice.",
            path,
        )


def require_bytes(file: FileHeader, path: str | os.PathLike) -> None:
    """Refuse a header that asks for more than the file can hold, before anything is allocated.

    Raises:
        DataError: If the file is too short for what it claims; for compressed data: even at the best ratio that deflate can
            reach.
    """
    try:
        there = os.stat(file.data_path).st_size
    except (OSError, ValueError) as error:  # ValueError: a damaged name with a null byte
        raise DataError(f"the voxels should be in {file.data_path.name!r}, which is not there.", path) from error
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


def require_memory(needed: int, path: str | os.PathLike) -> None:
    """Refuse voxels of `needed` bytes where less memory is free.

    Raises:
        DataError: If `needed` is more than `MEMORY_SHARE` of what is free. Its cause is a `MemoryError`: the fault is not the
            file's.
    """
    if needed < _WORTH_ASKING_BYTES:
        return
    import psutil

    free = psutil.virtual_memory().available
    if needed > MEMORY_SHARE * free:
        raise DataError(
            f"does not fit into the memory: {needed / 2**30:.1f} GiB of voxels, {free / 2**30:.1f} GiB are free.", path
        ) from MemoryError()
