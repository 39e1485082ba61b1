"""``split.json``: which case is for training, for validation and for testing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from itkit.errors import DataError

SPLIT_NAME = "split.json"
PARTS = ("train", "val", "test")

Split = dict[str, list[str]]


def read_split(path: str | os.PathLike) -> Split:
    """Read a split file: ``{"train": [case ids], "val": [...], "test": [...]}``.

    Raises:
        DataError: If it cannot be read or has another form.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}).", path) from error
    except ValueError as error:
        raise DataError(f"is not JSON ({error}).", path) from error
    return check_split(document, path)


def check_split(document: object, path: str | os.PathLike | None) -> Split:
    """Return the three parts as lists of names; a missing part is an empty list.

    Args:
        document: What was read.
        path: File to name in the message.

    Raises:
        DataError: If it has other parts, a part is no list of names, or a part names a case twice.
    """
    if not isinstance(document, Mapping) or not document or not set(document) <= set(PARTS):
        found = sorted(map(str, document)) if isinstance(document, Mapping) else type(document).__name__
        raise DataError(f"a split has the parts {', '.join(PARTS)}; found {found}.", path)
    split: Split = {}
    for part in PARTS:
        names = document.get(part, [])
        if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
            raise DataError(f"part {part!r} of a split must be a list of case names.", path)
        repeated = {name for name in names if list(names).count(name) > 1} if len(set(names)) < len(names) else set()
        if repeated:
            raise DataError(f"part {part!r} names the case {min(repeated)!r} more than once.", path)
        split[part] = list(names)
    return split
