"""Write files so that no reader ever sees half of one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from itkit._support.transient import retrying

_FOLDERS_CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES, errno.EPERM)
"""How file systems say that a folder cannot be flushed."""
_staged: ContextVar[bool] = ContextVar("itkit_staged", default=False)
_KEPT_BYTES = 200
"""Bytes of the final name that the temporary one repeats; with what is added, file systems take 255."""
_UMASK = os.umask(
    0o077
)  # asked for once: it can only be read by setting it, which threads must not do at the same time
os.umask(_UMASK)


@contextlib.contextmanager
def replace_when_complete(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it onto `path` when the block ends well.

    The temporary name keeps the suffixes of `path` (writers choose the format by them), begins with a dot, and is
    removed if the block raises. The data are flushed to the disk before the rename, and the folder after it, so that the
    rename survives a loss of power too.

    Args:
        path: The final file. Its folder is made if it is missing. An existing file is replaced at once.

    Raises:
        OSError: If the folder cannot be written or the disk is full; it names `path`, which is then as it was before.
            (Only if flushing the folder fails, `path` is the new file, and a loss of power could bring the old one back.)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if _staged.get():
        yield path
        return
    # A long name has no room for more letters: its end, with the suffixes, is kept.
    tail = os.fsencode(path.name)[-_KEPT_BYTES:].decode("utf-8", "ignore")
    handle, name = tempfile.mkstemp(prefix=".", suffix=f".part-{tail}", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        flush_file(temporary)
        temporary.chmod(0o666 & ~_UMASK)
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        if error.filename in (None, name):  # a failing write names no file, a failing open the temporary one
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_to_stage() -> Iterator[None]:
    """Let `replace_when_complete` write in place while the block runs: all files go to a folder that nobody looks into, and
    whoever opens the block moves them when all are complete, and sees to their safety on the disk.
    """
    token = _staged.set(True)
    try:
        yield
    finally:
        _staged.reset(token)


def flush_file(path: str | os.PathLike) -> None:
    """Let the content of `path` survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_folder(folder: str | os.PathLike) -> None:
    """Let names that were made, renamed or removed in `folder` survive a loss of power, where the system can do that."""
    if os.name == "nt":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _FOLDERS_CANNOT:
            raise
    finally:
        os.close(handle)


def flush_file_system(folder: str | os.PathLike) -> None:
    """Let all that was written to the file system of `folder` survive a loss of power: one wait for many files.

    Raises:
        OSError: If something could not be written to the disk.
    """
    try:
        flush = ctypes.CDLL(None, use_errno=True).syncfs
    except (AttributeError, OSError, TypeError):  # not Linux
        if hasattr(os, "sync"):
            os.sync()
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if flush(handle):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), os.fspath(folder))
    finally:
        os.close(handle)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` (UTF-8) to `path`, all of it or nothing; errors that pass are waited out."""

    def write() -> None:
        with replace_when_complete(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    retrying(write)


def write_json(path: str | os.PathLike, document: Any) -> None:
    """Write `document` as indented JSON to `path`, all of it or nothing."""
    write_text(path, json.dumps(document, indent=1, ensure_ascii=False, default=str) + "\n")
