"""TorchIO's way: ``image/``, ``label/`` and ``subjects.csv``, one row a subject, from which `torchio.Subject`s are made."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from itkit.errors import DataError, UsageError
from itkit.process.convert.description import Description
from itkit.process.convert.layout import ForeignCase, LayoutConversion, inside
from itkit.process.splits import PARTS

SUBJECTS_NAME = "subjects.csv"
COLUMNS = ("subject", "split", "image", "label")


@dataclass(frozen=True)
class TorchIO(LayoutConversion):
    """``subjects.csv`` has the columns `COLUMNS`: the case's name, its part (empty without one), and its files relative to
    the folder (no label: empty).

    Args:
        no_csv: On the way there, write the volumes alone.

    Raises:
        UsageError: If `no_csv` is given on the way back.
    """

    name: ClassVar[str] = "itk_convert torchio"
    formats: ClassVar[tuple[str, ...]] = ("nii.gz", "nii", "nrrd", "mha")
    image_folder: ClassVar[str] = "image"
    label_folder: ClassVar[str] = "label"
    document_names: ClassVar[tuple[str, ...]] = (SUBJECTS_NAME,)
    no_csv: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.back and self.no_csv:
            raise UsageError(f"{self.name}: --no-csv has no meaning with --back, which reads {SUBJECTS_NAME}.")

    def same_part(self, there: str | None, here: str | None) -> bool:
        return there is None or there == here

    def make_documents(self, about: Description, cases: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        if self.no_csv:
            return {}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for case in cases:
            writer.writerow((case["name"], case["part"] or "", case["images"][0], case["label"] or ""))
        return {SUBJECTS_NAME: text.getvalue()}

    def read_layout(self) -> tuple[Description, list[ForeignCase]]:
        root = Path(self.source)
        path = root / SUBJECTS_NAME
        try:
            with open(path, encoding="utf-8-sig", newline="") as stream:
                rows = list(csv.DictReader(stream))
        except FileNotFoundError as error:
            raise DataError("no such file; itk_convert torchio writes it beside image/ and label/.", path) from error
        except (OSError, ValueError, csv.Error) as error:
            raise DataError(f"cannot be read ({error}).", path) from error
        cases = [_case(root, row, number, path) for number, row in enumerate(rows, 2)]
        split = {part: [case.name for case in cases if case.part == part] for part in PARTS}
        return Description(split=split if any(split.values()) else None), cases


def _case(root: Path, row: Mapping[str, str], number: int, path: Path) -> ForeignCase:
    if not row.get("subject") or not row.get("image"):
        raise DataError(f"line {number} names no subject or no image; the columns are {', '.join(COLUMNS)}.", path)
    part = row.get("split") or None
    if part not in (None, *PARTS):
        raise DataError(f"line {number} has the split {part!r}; it is one of {', '.join(PARTS)}, or empty.", path)
    label = row.get("label")
    return ForeignCase(
        row["subject"], (inside(root, row["image"], path),), inside(root, label, path) if label else None, part
    )
