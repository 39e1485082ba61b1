"""The numbers of a volume, from a file into an array and back, in slabs."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from itkit.errors import DataError
from itkit.io.claims import FileHeader, require_memory
from itkit.io.compression import SAMPLE_BYTES, SMALL_SAMPLE_BYTES, Deflater, inflate

_SLAB_BYTES = 1 << 22
_SAMPLED_PART, _WORD = 32, 8


def load_voxels(file: FileHeader, path: str | os.PathLike) -> np.ndarray:
    """Return the numbers that `file` claims, as (Z, Y, X) or (C, Z, Y, X): native byte order, scaled, owned, writable.

    Raises:
        DataError: If the data are truncated, corrupt or do not fit into the memory.
    """
    count = math.prod(file.shape)
    require_memory(count * max(file.bytes_per_value, file.value_dtype.itemsize), path)
    if file.encoding == "raw":
        flat = np.fromfile(file.data_path, dtype=file.dtype, count=count, offset=file.data_offset)
        if flat.size != count:
            raise DataError(f"the file holds {flat.size:,} of {count:,} numbers. Copy it again from its source.", path)
    else:
        flat = np.empty(count, file.dtype)
        _inflate_file(file, memoryview(flat.view(np.uint8)), path)
    if not flat.dtype.isnative:
        flat = flat.byteswap(inplace=True).view(flat.dtype.newbyteorder("="))
    if file.scale is not None:
        flat = scaled_values(flat, file.scale, file.value_dtype)
    array = flat.reshape(file.shape)
    return np.ascontiguousarray(np.moveaxis(array, -1, 0)) if file.channels_fastest else array


def verify_voxels(file: FileHeader, path: str | os.PathLike) -> None:
    """Verify length and checksum of compressed numbers that a library will read; nothing is kept."""
    if file.encoding in ("gzip", "zlib"):
        _inflate_file(file, None, path)


def store_voxels(
    stream: BinaryIO,
    array: np.ndarray,
    *,
    channels_fastest: bool,
    compression: str | None,
    header: bytes = b"",
    thorough: bool = False,
) -> int:
    """Write `array` to `stream`, little-endian, slab by slab.

    Args:
        stream: Open for writing.
        array: (Z, Y, X) or (C, Z, Y, X), any byte order and layout.
        channels_fastest: Store the channels of a voxel side by side; else one volume after the other.
        compression: ``"gzip"``, ``"zlib"``, or None.
        header: Bytes that come before the voxels inside the compressed stream.
        thorough: As for `itkit.io.compression.Deflater`.

    Returns:
        Bytes written.

    Raises:
        OSError: If the disk is full, or not everything was taken.
    """
    slabs = _slabs(array, channels_fastest and array.ndim == 4)
    if compression is None:
        stream.write(header)
        written = len(header) + sum(stream.write(slab) for slab in slabs)
    else:
        deflater = Deflater(stream.write, _sample(array), gzip=compression == "gzip", thorough=thorough)
        deflater.feed(memoryview(header))
        for slab in slabs:
            deflater.feed(slab)
        deflater.finish()
        written = deflater.bytes_out
        if deflater.bytes_in != len(header) + array.nbytes:
            raise OSError(errno.EIO, f"{deflater.bytes_in:,} of {len(header) + array.nbytes:,} bytes were compressed")
    stream.flush()
    return written


def _inflate_file(file: FileHeader, out: memoryview | None, path: str | os.PathLike) -> None:
    whole = file.whole_file_compressed
    with open(file.data_path, "rb", buffering=0) as stream:
        stream.seek(0 if whole else file.data_offset)
        skip = file.data_offset if whole else 0
        inflate(stream, out, wanted=file.data_bytes + skip, skip=skip, path=path)


def scaled_values(flat: np.ndarray, scale: tuple[float, float], dtype: np.dtype) -> np.ndarray:
    """Return stored numbers (one axis) as values of type `dtype`: times the first of `scale`, plus the second."""
    out, step = np.empty(flat.shape, dtype), _SLAB_BYTES // 8
    for begin in range(0, flat.size, step):
        values = flat[begin : begin + step].astype(np.float64)
        values *= scale[0]
        values += scale[1]
        out[begin : begin + step] = values
    return out


def _slabs(array: np.ndarray, channels_fastest: bool) -> Iterator[memoryview]:
    """The bytes of `array`, little-endian, in pieces of a few MiB; nothing is copied where they lie so already."""
    dtype = array.dtype.newbyteorder("<")
    if array.flags.c_contiguous and array.dtype == dtype and not channels_fastest:
        yield memoryview(array.reshape(-1).view(np.uint8))
        return
    if array.ndim == 4 and not channels_fastest:
        for channel in array:
            yield from _slabs(channel, False)
        return
    depth = array.shape[-3]
    step = max(1, _SLAB_BYTES // max(array.nbytes // depth, 1))
    for first in range(0, depth, step):
        slab = array[..., first : first + step, :, :]
        slab = np.ascontiguousarray(np.moveaxis(slab, 0, -1) if channels_fastest else slab, dtype=dtype)
        yield memoryview(slab.reshape(-1).view(np.uint8))


def _sample(array: np.ndarray) -> memoryview:
    """Bytes from the middle of `array`, enough to judge how it compresses, and few beside what there is to compress."""
    volume = array[array.shape[0] // 2] if array.ndim == 4 else array
    wanted = min(max(array.nbytes // _SAMPLED_PART, SMALL_SAMPLE_BYTES), SAMPLE_BYTES)
    planes = min(-(-wanted // max(volume[0].nbytes, 1)), len(volume))
    first = (len(volume) - planes) // 2
    piece = np.ascontiguousarray(volume[first : first + planes]).reshape(-1).view(np.uint8)
    begin = max(piece.size - wanted, 0) // 2 // _WORD * _WORD
    return memoryview(piece[begin : begin + wanted])
