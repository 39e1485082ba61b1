"""What is known of a dataset beside its volumes (`meta.json`, `split.json`), carried along by the tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from itkit._support.files import replace_when_complete
from itkit.errors import DataError
from itkit.process.splits import SPLIT_NAME

META_NAME = "meta.json"


def read_meta(folder: Path) -> dict:
    """Return ``<folder>/meta.json``, at least ``{"name", "classes"}`` where a converter wrote it; empty if there is none.

    Raises:
        DataError: If it is not a JSON object.
    """
    path = Path(folder) / META_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error}).", path) from error
    if not isinstance(document, dict):
        raise DataError("is not a JSON object.", path)
    return document


def carry_documents(source: Path, destination: Path, names: tuple[str, ...] = (META_NAME, SPLIT_NAME)) -> list[Path]:
    """Copy the documents of a dataset that the destination does not have; return what lies there now.

    A document that is there already stays as it is; `differing_documents` says so.
    """
    present = []
    for name in names:
        there, here = Path(source) / name, Path(destination) / name
        if there.is_file() and not here.exists():
            with replace_when_complete(here) as temporary:
                shutil.copyfile(there, temporary)
        if here.is_file():
            present.append(here)
    return present


def differing_documents(
    source: Path, destination: Path, names: tuple[str, ...] = (META_NAME, SPLIT_NAME)
) -> str | None:
    """Return a sentence about the documents that are not as in the source (any more); None if there is none."""
    pairs = [(Path(source) / name, Path(destination) / name) for name in names]
    different = [
        here.name
        for there, here in pairs
        if there.is_file() and here.is_file() and there.read_bytes() != here.read_bytes()
    ]
    if not different:
        return None
    return (
        f"{' and '.join(different)} of the destination: not as in the source, left as it is; remove it to have it carried "
        "along again"
    )
