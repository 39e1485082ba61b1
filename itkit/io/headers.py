"""What a volume file claims in its own header, read byte by byte before any library believes it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from itkit.errors import DataError
from itkit.io import metaimage, nifti, nrrd
from itkit.io.claims import FileHeader
from itkit.io.compression import inflate_start

__all__ = [
    "FORMATS",
    "FileHeader",
    "MAX_HEADER_BYTES",
    "read_file_header",
    "claimed_files",
    "volume_files",
    "volume_stem",
    "volume_suffix",
]

FORMATS = (".nii.gz", ".mha", ".mhd", ".nii", ".nrrd")
"""File name endings of volumes; ``.nii.gz`` first, because a name is matched from the left of this list."""
MAX_HEADER_BYTES = 1 << 20
"""A text header that does not end within this many bytes is not a header."""
_FIRST_BYTES = 1 << 12
_NIFTI_BYTES = 540


def volume_suffix(path: str | os.PathLike) -> str:
    """Return which of `FORMATS` the name `path` ends with (letter case ignored), or an empty string."""
    name = os.path.basename(os.fspath(path)).lower()
    if name.endswith(FORMATS):
        for suffix in FORMATS:
            if name.endswith(suffix) and len(name) > len(suffix):
                return suffix
    return ""


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
        with open(path, "rb", buffering=0) as stream:
            start = stream.read(_FIRST_BYTES)
            if suffix == ".nii.gz":
                start = _inflated(stream, start, path)
            elif suffix != ".nii":
                whole = nrrd.header_is_whole if suffix == ".nrrd" else metaimage.header_is_whole
                if len(start) == _FIRST_BYTES and not whole(start):
                    start += stream.read(MAX_HEADER_BYTES - _FIRST_BYTES)
    except FileNotFoundError as error:
        raise DataError("no such file.", path) from error
    except IsADirectoryError as error:
        raise DataError("is a folder, not a volume file.", path) from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error}).", path) from error
    if not start:
        raise DataError("the file is empty. Copy it again from its source.", path)
    try:
        if suffix in (".nii", ".nii.gz"):
            header = nifti.parse_header(path, start, compressed=suffix == ".nii.gz")
        else:
            header = (nrrd if suffix == ".nrrd" else metaimage).parse_header(path, start)
    except (ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise DataError(f"the header cannot be understood ({type(error).__name__}: {error}).", path) from error
    if not header.shape or min(header.shape) < 1:
        raise DataError(f"the header claims the size {header.shape} (slowest axis first).", path)
    return header


def claimed_files(path: str | os.PathLike) -> tuple[Path, ...]:
    """Return the files that make up the volume at `path` by its header, there or not: its own, and that of its voxels (.mhd)."""
    path = Path(path)
    try:
        data_path = read_file_header(path).data_path
    except DataError:
        return (path,)
    return (path,) if data_path == path else (path, data_path)


def volume_files(path: str | os.PathLike) -> tuple[Path, ...]:
    """Return what of `claimed_files` is there; its own file in any case."""
    own, *voxels = claimed_files(path)
    return own, *(part for part in voxels if part.is_file())


def _inflated(stream, start: bytes, path: Path) -> bytes:
    """The first bytes of a gzip stream, decompressed; a long file name or comment of gzip may come before them."""
    if not start:
        return start
    try:
        found = inflate_start(start, _NIFTI_BYTES)
        if len(found) < _NIFTI_BYTES and len(start) == _FIRST_BYTES:
            found = inflate_start(start + stream.read(MAX_HEADER_BYTES), _NIFTI_BYTES)
    except ValueError as error:
        raise DataError(f"is not a gzip file ({error}).", path) from error
    if not found:
        raise DataError("the compressed data end before the NIfTI header. Copy it again from its source.", path)
    return found
