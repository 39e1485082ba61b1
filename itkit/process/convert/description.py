"""What a dataset says of itself besides its volumes: name, classes, modality, split, and whatever else `meta.json` holds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from itkit.errors import DataError
from itkit.process.documents import META_NAME, read_meta
from itkit.process.splits import PARTS, SPLIT_NAME, Split, read_split


@dataclass(frozen=True)
class Description:
    """What is known of a dataset.

    Attributes:
        name: Its name; None: unknown.
        classes: Names of label values 0, 1, ..., the background first; None: unknown.
        modality: Name of each channel; None: unknown.
        split: Part -> case ids; None: not divided.
        meta: All of ``meta.json``; empty without.
    """

    name: str | None = None
    classes: tuple[str, ...] | None = None
    modality: tuple[str, ...] | None = None
    split: Split | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def part_of(self, case_id: str) -> str | None:
        """Return the part of the split that a case is in; None: none, or there is no split."""
        return self._parts.get(case_id)

    @cached_property
    def _parts(self) -> dict[str, str]:
        return {case_id: part for part, names in (self.split or {}).items() for case_id in names}

    def text(self, key: str) -> str:
        """Return an entry of ``meta.json`` that is a text; empty if there is none."""
        value = self.meta.get(key, "")
        return value if isinstance(value, str) else ""


def read_described(root: str | os.PathLike) -> Description:
    """Read ``<root>/meta.json`` and ``<root>/split.json``; what is missing is unknown.

    Classes are the list ``classes``, or ``labels`` as ``{"0": name, ...}``; the name is ``name`` or ``dataset_name``.

    Raises:
        DataError: If a file is damaged, says nonsense, or puts a case into two parts.
    """
    root = Path(root)
    meta, path = read_meta(root), root / META_NAME
    classes = meta.get("classes")
    if classes is None and isinstance(meta.get("labels"), Mapping):
        classes = names_by_number(meta["labels"], "labels", path)
    name = meta.get("name", meta.get("dataset_name"))
    if name is not None and not isinstance(name, str):
        raise DataError(f"the name of the dataset is {name!r}, which is no text.", path)
    return Description(
        name=name,
        classes=None if classes is None else _names(classes, "classes", path),
        modality=None if not meta.get("modality") else _names(meta["modality"], "modality", path),
        split=read_disjoint_split(root / SPLIT_NAME) if (root / SPLIT_NAME).is_file() else None,
        meta=meta,
    )


def read_disjoint_split(path: Path) -> Split:
    """Read a split file, refused if a case is in two parts.

    Raises:
        DataError: If it cannot be read, has another form, or a case is in two parts.
    """
    split, seen = read_split(path), {}
    for part in PARTS:
        for case_id in split[part]:
            if seen.setdefault(case_id, part) != part:
                raise DataError(f"case {case_id!r} is in {seen[case_id]} and in {part}; remove it from one.", path)
    return split


def names_by_number(names: object, what: str, path: Path) -> tuple[str, ...]:
    """Return the names of ``{"0": name, "1": name, ...}``, in order.

    Args:
        names: What was read.
        what: Its key, to be named in the message.
        path: Its file, to be named in the message.

    Raises:
        DataError: If it has another form, or a number is missing.
    """
    try:
        by_number = {int(number): name for number, name in names.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{what} should be {{number: name}}, it is {names!r}.", path) from error
    if sorted(by_number) != list(range(len(by_number))):
        raise DataError(f"the numbers of {what} must be 0, 1, 2, ...; found {sorted(by_number)}.", path)
    return _names([by_number[number] for number in sorted(by_number)], what, path)


def _names(value: object, what: str, path: Path) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Mapping):
        return names_by_number(value, what, path)
    if not isinstance(value, Sequence) or not value or not all(isinstance(name, str) and name for name in value):
        raise DataError(f"{what} should be a list of names, it is {value!r}.", path)
    return tuple(value)
