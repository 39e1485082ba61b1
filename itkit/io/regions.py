"""Read boxes of a volume from its file, so that the whole volume need not fit into the memory."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from itkit.errors import DataError, UsageError
from itkit.io.claims import FileHeader
from itkit.io.compression import inflated_parts
from itkit.io.headers import read_file_header
from itkit.io.volumes import VolumeHeader, read_header, read_volume
from itkit.io.voxels import scaled_values

Box = tuple[slice, ...]


class RegionReader(ABC):
    """A volume file (.mha, .mhd, .nii, .nii.gz, .nrrd) from which boxes are read; made by `open_regions`, used with ``with``.

    Voxels that are not compressed are read where they lie. Compressed ones can only be met in their order: planes are
    decompressed as they are asked for and kept as far back as the deepest box so far reaches, so boxes should go forward
    along Z. A box that lies further back begins anew from the first plane: right, and slow.

    The few kinds of file that a library must understand are read whole.

    Attributes:
        header: Size, place in space, channels and type of the voxels.
        restarts: How often decompression began anew.
    """

    def __init__(self, path: Path, header: VolumeHeader):
        self.header, self.restarts = header, 0
        self._path = path

    @property
    def channels(self) -> int:
        """Values per voxel; 1 for a volume without a channel axis."""
        return self.header.channels or 1

    def read(self, box: Box) -> np.ndarray:
        """Return the voxels of a box as (C, *box), what `itkit.io.volumes.read_volume` has there.

        Args:
            box: Slices along (Z, Y, X) without steps.

        Raises:
            UsageError: If the box is empty or reaches beyond the volume.
            DataError: If the file is truncated or, as far as it has been decompressed, corrupt. Checksums are met with the
                last plane.
        """
        size = self.header.geometry.size_zyx
        bounds = [(part.start or 0, n if part.stop is None else part.stop) for part, n in zip(box, size, strict=True)]
        if not all(0 <= low < high <= n for (low, high), n in zip(bounds, size, strict=True)) or any(
            part.step not in (None, 1) for part in box
        ):
            raise UsageError(f"{self._path}: the box {bounds} is empty or not within the size {tuple(size)} (Z, Y, X).")
        return self._read(*bounds)

    @abstractmethod
    def _read(self, z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]) -> np.ndarray:
        """Return the voxels from the first to the second (exclusive) number along each axis."""

    def close(self) -> None:
        """Close the file."""
        return

    def __enter__(self) -> RegionReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_regions(path: str | os.PathLike) -> RegionReader:
    """Open the volume at `path` for reading boxes.

    Raises:
        DataError: If the file is missing, too short for its header, or of no known format.
        GeometryError: If its geometry is impossible.
    """
    path = Path(path)
    header, file = read_header(path), read_file_header(path)
    if file.dtype is None or file.geometry is None or file.encoding == "text":
        return _WholeReader(path, header)
    return (_PlainReader if file.encoding == "raw" else _CompressedReader)(path, header, file)


class _WholeReader(RegionReader):
    def __init__(self, path: Path, header: VolumeHeader):
        super().__init__(path, header)
        array = read_volume(path).array
        self._array = array if array.ndim == 4 else array[None]

    def _read(self, z, y, x) -> np.ndarray:
        return self._array[(slice(None), *(slice(*bound) for bound in (z, y, x)))].copy()


class _FileReader(RegionReader):
    """What plain and compressed voxels share: the order in which numbers lie, and what becomes of them."""

    def __init__(self, path: Path, header: VolumeHeader, file: FileHeader):
        super().__init__(path, header)
        self._file = file
        self._interleaved = self.channels if file.channels_fastest else 1
        self._separate = 1 if file.channels_fastest else self.channels
        depth, self._rows, self._columns = header.geometry.size_zyx
        self._depth = depth
        self._row_bytes = self._columns * self._interleaved * file.bytes_per_value
        self._plane_bytes = self._rows * self._row_bytes

    def _values(self, rows: np.ndarray, x: tuple[int, int]) -> np.ndarray:
        """Bytes of rows, (separate channels, Z, Y, row), as values (C, Z, Y, X) of columns `x`."""
        numbers = rows.view(self._file.dtype).reshape(*rows.shape[:3], self._columns, self._interleaved)
        numbers = numbers[:, :, :, slice(*x)]
        numbers = np.moveaxis(numbers, -1, 1).reshape(self.channels, *numbers.shape[1:4])
        if self._file.scale is None:
            return np.ascontiguousarray(numbers, dtype=self._file.dtype.newbyteorder("="))
        return scaled_values(numbers.reshape(-1), self._file.scale, self._file.value_dtype).reshape(numbers.shape)


class _PlainReader(_FileReader):
    def __init__(self, path: Path, header: VolumeHeader, file: FileHeader):
        super().__init__(path, header, file)
        try:
            self._descriptor: int | None = os.open(file.data_path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror or error}).", path) from error

    def _read(self, z, y, x) -> np.ndarray:
        rows = np.empty((self._separate, z[1] - z[0], y[1] - y[0], self._row_bytes), np.uint8)
        for channel in range(self._separate):
            for plane in range(*z):
                number = channel * self._depth + plane
                begin = self._file.data_offset + number * self._plane_bytes + y[0] * self._row_bytes
                self._fill(memoryview(rows[channel, plane - z[0]]).cast("B"), begin)
        return self._values(rows, x)

    def _fill(self, out: memoryview, begin: int) -> None:
        done = 0
        while done < len(out):
            try:
                count = os.preadv(self._descriptor, [out[done:]], begin + done)
            except OSError as error:
                raise DataError(f"cannot be read ({error.strerror or error}).", self._path) from error
            if count == 0:
                raise DataError("the file ends before the last voxel. Copy it again from its source.", self._path)
            done += count

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _CompressedReader(_FileReader):
    def __init__(self, path: Path, header: VolumeHeader, file: FileHeader):
        super().__init__(path, header, file)
        self._streams = [
            _Planes(file, path, channel * self._depth, self._depth, self._plane_bytes)
            for channel in range(self._separate)
        ]

    def _read(self, z, y, x) -> np.ndarray:
        rows = np.empty((self._separate, z[1] - z[0], y[1] - y[0], self._row_bytes), np.uint8)
        for out, stream in zip(rows, self._streams, strict=True):
            self.restarts += stream.reach(*z)
            for place, plane in enumerate(stream.planes(*z)):
                begin = y[0] * self._row_bytes
                out[place] = np.frombuffer(plane, np.uint8, out[place].size, begin).reshape(out[place].shape)
        return self._values(rows, x)

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


class _Planes:
    """The planes of one channel of a compressed file, met in their order, some of the last ones kept."""

    def __init__(self, file: FileHeader, path: Path, first: int, depth: int, plane_bytes: int):
        self._file, self._path, self._first, self._depth, self._plane_bytes = file, path, first, depth, plane_bytes
        self._kept: list[bytes] = []
        self._base, self._deepest = 0, 0
        self._coming: Iterator[bytes] | None = None

    def reach(self, low: int, high: int) -> bool:
        """Have planes `low` to `high`; say whether that meant to begin anew."""
        anew = low < self._base
        if anew:
            self.close()
        if self._coming is None:
            self._coming = self._decompressed()
        self._deepest = max(self._deepest, high - low)
        while self._base + len(self._kept) < high:
            self._kept.append(next(self._coming))
            drop = min(max(low - self._deepest, 0) - self._base, len(self._kept))
            if drop > 0:
                del self._kept[:drop]
                self._base += drop
        if high == self._depth and self._coming is not None:
            for _ in self._coming:  # to the end, where the checksum is
                pass
        return anew

    def planes(self, low: int, high: int) -> Sequence[bytes]:
        return self._kept[low - self._base : high - self._base]

    def close(self) -> None:
        if self._coming is not None:
            self._coming.close()
        self._kept, self._base, self._coming = [], 0, None

    def _decompressed(self) -> Iterator[bytes]:
        whole = self._file.whole_file_compressed
        skip = (self._file.data_offset if whole else 0) + self._first * self._plane_bytes
        wanted = self._file.data_bytes + (self._file.data_offset if whole else 0)
        count, held = 0, bytearray()
        try:
            with open(self._file.data_path, "rb", buffering=0) as stream:
                stream.seek(0 if whole else self._file.data_offset)
                for part in inflated_parts(stream, wanted=wanted, path=self._path):
                    fresh = min(skip, len(part))
                    skip -= fresh
                    held += memoryview(part)[fresh:]
                    while len(held) >= self._plane_bytes and count < self._depth:
                        yield bytes(memoryview(held)[: self._plane_bytes])
                        del held[: self._plane_bytes]
                        count += 1
                    if count == self._depth:
                        held.clear()
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror or error}).", self._path) from error
