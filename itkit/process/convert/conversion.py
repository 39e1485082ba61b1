"""``conversion.json``: which documents a conversion has written, and which case ids it had to change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from itkit._support.files import write_json, write_text
from itkit.errors import DataError

CONVERSION_NAME = "conversion.json"


def read_names(folder: Path) -> dict[str, str]:
    """Return name in this layout -> case id, for the cases of a converted folder whose name could not stay.

    Raises:
        DataError: If ``conversion.json`` is damaged.
    """
    return dict(_read(folder)["names"])


def require_ours(folder: Path, tool: str, documents: tuple[str, ...]) -> None:
    """Refuse a folder that another tool made, or with documents that are not (or no longer) as this tool left them.

    Args:
        folder: The destination.
        tool: What is about to write there.
        documents: Names of the documents that it may write.

    Raises:
        DataError: If so.
    """
    known = _read(folder)
    if known["tool"] not in (None, tool):
        raise DataError(f"holds what `{known['tool']}` has written; choose another folder.", folder)
    for name in documents:
        path = folder / name
        if path.is_file() and _checksum(path.read_bytes()) not in known["documents"].get(name, ()):
            raise DataError(
                f"exists and is not, or no longer, as `{tool}` wrote it. Move it away or choose another folder; nothing was "
                "done.",
                path,
            )


def write_documents(folder: Path, tool: str, documents: Mapping[str, str], names: Mapping[str, str]) -> list[Path]:
    """Write documents and remember them, so that `require_ours` knows them again, also after a kill between two files.

    A document of an earlier run that is not among them now is removed.

    Args:
        folder: The destination.
        tool: What writes.
        documents: Name -> text.
        names: Name in this layout -> case id, where they differ.

    Returns:
        The files.
    """
    old = _read(folder)["documents"]
    new = {name: [_checksum(text.encode())] for name, text in documents.items()}
    either = {name: [*old.get(name, ()), *new.get(name, ())] for name in (*old, *new)}
    _write(folder, tool, either, names)
    for name in old.keys() - new.keys():
        (folder / name).unlink(missing_ok=True)
    for name, text in documents.items():
        write_text(folder / name, text)
    _write(folder, tool, new, names)
    return [*(folder / name for name in documents), folder / CONVERSION_NAME]


def as_ascii_json(document: object) -> str:
    """Return JSON that reads the same in every locale: libraries open such files without naming an encoding."""
    return json.dumps(document, indent=1) + "\n"


def _write(folder: Path, tool: str, documents: Mapping[str, list[str]], names: Mapping[str, str]) -> None:
    write_json(folder / CONVERSION_NAME, {"tool": tool, "documents": documents, "names": dict(sorted(names.items()))})


def _read(folder: Path) -> dict:
    path = folder / CONVERSION_NAME
    if not path.is_file():
        return {"tool": None, "documents": {}, "names": {}}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        texts = (document["tool"], *document["names"].values())
        if isinstance(document["documents"], dict) and all(isinstance(text, str) for text in texts):
            return document
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"cannot be read ({error}); remove it.", path) from error
    raise DataError("is not what itk_convert writes; remove it.", path)


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
