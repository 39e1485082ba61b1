"""Deflate and inflate in small pieces with ISA-L: bounded memory, length and checksum verified."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from isal import igzip_lib, isal_zlib

from itkit.errors import DataError

TRAILING_BYTES = 1 << 20
"""How many decompressed bytes may follow the voxels; more is a file that is not what its header says."""
LABEL_LIKE_RATIO = 0.12
"""A sample that shrinks below this part of itself is like a label map."""
SMALL_SAMPLE_BYTES, SAMPLE_BYTES = 1 << 13, 1 << 17
"""Of no more than the first of them, it is not worth trying levels; no more than the second is looked at."""
_CHUNK = 1 << 18
_PIECE = 1 << 20
_GZIP, _ZLIB = 31, 15


def inflate_start(start: bytes, count: int) -> bytes:
    """Return the first `count` bytes, or what there is, of a gzip stream that begins with `start`; no checksum is met.

    Raises:
        ValueError: If it is no gzip stream.
    """
    try:
        return isal_zlib.decompressobj(wbits=_GZIP).decompress(start, count)
    except igzip_lib.IsalError as error:
        raise ValueError(str(error)) from error


def inflate(stream: BinaryIO, out: memoryview | None, *, wanted: int, skip: int, path: str | os.PathLike) -> None:
    """Decompress all of `stream` (gzip, also of several members, or zlib) and verify length and checksums.

    Args:
        stream: Open at the first compressed byte.
        out: Takes the decompressed bytes from `skip` on; None throws them away.
        wanted: Decompressed bytes that there must be.
        skip: Bytes before those that `out` takes.
        path: File to be named in messages.

    Raises:
        DataError: If the data end early, are corrupt, or go on for more than `TRAILING_BYTES` after `wanted`.
    """
    length = 0
    for part in inflated_parts(stream, wanted=wanted, path=path):
        if out is not None and length + len(part) > skip and length < wanted:
            first = max(skip - length, 0)
            last = min(wanted - length, len(part))
            out[length + first - skip : length + last - skip] = part[first:last]
        length += len(part)


def inflated_parts(stream: BinaryIO, *, wanted: int, path: str | os.PathLike) -> Iterator[bytes]:
    """Yield what `inflate` decompresses, in parts of at most a MiB; length and checksums are verified at the end.

    Raises:
        DataError: As for `inflate`.
    """
    length, chunk, ended = 0, stream.read(_CHUNK), False
    try:
        while chunk:
            piece = isal_zlib.decompressobj(wbits=_GZIP if chunk[:2] == b"\x1f\x8b" else _ZLIB)
            while not piece.eof:
                if not chunk:
                    chunk = stream.read(_CHUNK)
                    ended = not chunk
                part = piece.decompress(chunk, _PIECE)
                chunk = piece.unconsumed_tail
                if part:
                    length += len(part)
                    if length > wanted + TRAILING_BYTES:
                        raise DataError(
                            f"the compressed data go on after the {wanted:,} bytes that the header describes: the header is "
                            "wrong, or it is a decompression bomb.",
                            path,
                        )
                    yield part
                elif ended and not piece.eof:
                    raise DataError(
                        f"the compressed data end after {length:,} of {wanted:,} bytes. Copy it again from its source.",
                        path,
                    )
            chunk = piece.unused_data or stream.read(_CHUNK)
            if length >= wanted:
                break
    except igzip_lib.IsalError as error:
        raise DataError(f"the compressed data are corrupt ({error}). Copy it again from its source.", path) from error
    if length < wanted:
        raise DataError(f"the compressed data hold {length:,} bytes, the header asks for {wanted:,}.", path)


class Deflater:
    """Compress a stream in small pieces.

    ISA-L's level 2 or 3 is taken, whichever makes a sample smaller; 2 where there is too little for that to be worth a try.

    Args:
        write: Takes the compressed bytes.
        sample: Bytes from the middle of what will be compressed.
        gzip: Make a gzip stream; else a zlib stream.
        thorough: Leave data whose sample almost vanishes (label maps) to zlib's level 6: slower, and a third smaller again.
    """

    def __init__(
        self, write: Callable[[bytes], object], sample: bytes | memoryview, *, gzip: bool, thorough: bool = False
    ):
        self._write, self.bytes_in, self.bytes_out = write, 0, 0
        window, sample = _GZIP if gzip else _ZLIB, memoryview(sample)[:SAMPLE_BYTES]
        levels = (2, 3) if len(sample) > SMALL_SAMPLE_BYTES else (2,)
        sizes = (
            {level: len(isal_zlib.compress(sample, level)) for level in levels} if levels[1:] or thorough else {2: 0}
        )
        level = min(sizes, key=sizes.__getitem__)
        if thorough and sizes[level] < LABEL_LIKE_RATIO * len(sample):
            self._stream = zlib.compressobj(6, zlib.DEFLATED, window, 9)
        else:
            self._stream = isal_zlib.compressobj(level, wbits=window)

    def feed(self, data: memoryview) -> None:
        """Compress `data` (bytes) and write what is ready."""
        for begin in range(0, len(data), _PIECE):
            self._put(self._stream.compress(data[begin : begin + _PIECE]))
        self.bytes_in += len(data)

    def finish(self) -> None:
        """Write the rest, with the checksum and the length."""
        self._put(self._stream.flush())

    def _put(self, part: bytes) -> None:
        if part:
            self._write(part)
            self.bytes_out += len(part)
