"""Write files so that no reader ever sees half of one."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replace_when_complete(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it onto `path` when the block ends well.

    The temporary name keeps the suffixes of `path` (writers choose the format by them), begins with a dot, and is
    removed if the block raises. The data are flushed to the disk before the rename.

    Args:
        path: The final file. Its folder is made if it is missing. An existing file is replaced at once.

    Raises:
        OSError: If the folder cannot be written or the disk is full; it names `path`, which is then as it was before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", suffix=f".part-{path.name}", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (None, name):  # a failing write names no file, a failing open the temporary one
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` (UTF-8) to `path`, all of it or nothing."""
    with replace_when_complete(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, document: Any) -> None:
    """Write `document` as indented JSON to `path`, all of it or nothing."""
    write_text(path, json.dumps(document, indent=1, ensure_ascii=False, default=str) + "\n")
