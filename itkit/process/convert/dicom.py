"""`itk_convert dicom`: every series of a DICOM folder becomes one volume, and a table says what it came from."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import itertools
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from itkit._support.optional import require
from itkit.errors import DataError, UsageError
from itkit.io.dicom import DicomSeries, find_series, read_series
from itkit.process.cases import IMAGE_FOLDER
from itkit.process.convert.conversion import require_ours, write_documents
from itkit.process.convert.fidelity import write_kept
from itkit.process.convert.layout import BACK_FORMATS
from itkit.process.operation import Ask, Operation, Product, Stage, Task, require_apart

SERIES_NAME = "series.csv"
DAMAGED = "damaged"
"""Cases below it are files, or folders, that cannot be read; no series is called so, for names hold no ``/``."""
NAMINGS = ("patient", "uid", "hash")
"""How a volume is called: by patient, date, number and description; by the series' UID; by a part of that UID's SHA-256."""
IDENTIFYING = ("patient_id", "study_date", "study_uid", "series_uid", "description")
"""What is noted nowhere where volumes are called by a hash."""
COLUMNS = (
    "case", "state", "file", "patient_id", "study_date", "study_uid", "series_uid", "series_number", "description", "modality",
    "patient_position", "slices", "files", "size_zyx", "spacing_zyx", "dtype", "rescale_slope", "rescale_intercept", "reason",
    "notes",
)  # fmt: skip
_WORD_LENGTH, _NAME_BYTES, _HASH_LENGTH = 40, 150, 12


@dataclass(frozen=True)
class SeriesTask(Task):
    """The conversion of one series.

    Attributes:
        series: What `itkit.io.dicom` found; None for a file that cannot be read and may belong to any series.
        facts: What its headers say besides, column -> value.
        damage: The file, and why it cannot be read.
    """

    series: DicomSeries | None = None
    facts: tuple[tuple[str, str], ...] = ()
    damage: tuple[Path, str] | None = None


@dataclass(frozen=True)
class ConvertDicom(Operation):
    """Series are told apart, sorted and judged by `itkit.io.dicom.find_series`; one with a problem fails with all of them.

    Nothing is repaired: a series with missing or doubled slices, a leaning stack or mixed spacings has no grid on which its
    voxels could honestly be put.

    Args:
        source: Folder of DICOM files, searched with all folders below it. Not modified.
        destination: Gets ``image/`` and ``series.csv``.
        format: Format of the volumes, without the leading dot.
        name_by: One of `NAMINGS`.
        only: Modalities to convert, e.g. ``("CT", "MR")``; None: all.
        min_slices: Series with fewer slices are passed over, e.g. localisers.

    Raises:
        UsageError: If the format or the naming is unknown, or the destination lies inside the source.
    """

    name: ClassVar[str] = "itk_convert dicom"
    source: str
    destination: str
    format: str = "mha"
    name_by: str = "patient"
    only: tuple[str, ...] | None = None
    min_slices: int = 1

    def __post_init__(self):
        require_apart(self.source, self.destination)
        if self.suffix.lstrip(".") not in BACK_FORMATS:
            raise UsageError(f"{self.name}: the format is one of {', '.join(BACK_FORMATS)}, not {self.format!r}.")
        if self.name_by not in NAMINGS:
            raise UsageError(f"{self.name}: --name-by is one of {', '.join(NAMINGS)}, not {self.name_by!r}.")

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: what was found stays in the main process."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @property
    def suffix(self) -> str:
        """Ending of the volumes."""
        return "." + self.format.lstrip(".").lower()

    def parameters(self) -> dict[str, Any]:
        return {"format": self.suffix, "name_by": self.name_by}

    def tasks(self) -> Sequence[Task]:
        require_ours(Path(self.destination), self.name, (SERIES_NAME,))
        wanted, passed_over, skipped, damaged = self._found
        if not wanted and not damaged:
            what = f"; {len(passed_over)} series were passed over (--only, --min-slices)" if passed_over else ""
            first = f" First of {len(skipped)} other files: {skipped[0][0].name}: {skipped[0][1]}" if skipped else ""
            raise DataError(f"holds no DICOM series to convert{what}.{first}", self.source)
        facts = [_facts(series) for series in wanted]
        names = name_series(
            [(self._name(series, dict(own)), series.uid) for series, own in zip(wanted, facts, strict=True)]
        )
        tasks = []
        for name, series, own in zip(names, wanted, facts, strict=True):
            if self.name_by == "hash":
                own = tuple((column, "" if column in IDENTIFYING else value) for column, value in own)
            output = Path(self.destination) / IMAGE_FOLDER / (name + self.suffix)
            tasks.append(SeriesTask(name, series.paths, (output,), series=series, facts=own))
        for path, reason in damaged:
            below = os.path.relpath(path, self.source)
            tasks.append(SeriesTask(f"{DAMAGED}/{Path(below).as_posix()}", (), damage=(path, reason)))
        return sorted(tasks, key=lambda task: task.case_id)

    def process(self, task: SeriesTask, stage: Stage) -> Product:
        if task.damage:
            path, reason = task.damage
            raise DataError(f"{reason} It may belong to any series. Copy it again, or take it away.", path)
        series, grid = task.series, task.series.geometry
        record = {
            **dict(task.facts),
            "slices": len(series.slices),
            "files": len(series.paths),
            "size_zyx": list(grid.size_zyx) if grid else None,
            "spacing_zyx": list(grid.spacing_zyx) if grid else None,
            "dtype": None if series.dtype is None else str(series.dtype),
            "rescale_slope": _one({picture.slope for picture in series.slices}),
            "rescale_intercept": _one({picture.intercept for picture in series.slices}),
        }
        notes = tuple(note.rstrip(".") for note in series.notes)
        if series.problems:
            return Product(record, notes, failure=" ".join(series.problems))
        output = task.outputs[0]
        return Product(record, notes + write_kept(stage.path(output), output, read_series(series)))

    def finish(self, entries: Mapping[str, dict], ask: Ask) -> Iterable[Path]:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for case_id in sorted(case_id for case_id in entries if not case_id.startswith(f"{DAMAGED}/")):
            writer.writerow(self._row(case_id, entries[case_id]))
        return write_documents(Path(self.destination), self.name, {SERIES_NAME: text.getvalue()}, {})

    def describe(self, entries: Mapping[str, dict]) -> str | None:
        wanted, passed_over, skipped, _ = self._found
        lines = [f"{len(wanted)} series of {len({series.patient for series in wanted})} patient(s)"]
        if passed_over:
            lines.append(f"passed over: {len(passed_over)} series of other modalities or with fewer slices")
        if skipped:
            lines.append(f"no pictures: {len(skipped)} files, first {skipped[0][0]}: {skipped[0][1]}")
        return "\n".join(lines)

    def memory_bytes(self, task: SeriesTask) -> int:
        if task.series is None:
            return 0
        grid, dtype = task.series.geometry, task.series.dtype
        return 0 if grid is None or dtype is None else 4 * math.prod(grid.size_zyx) * dtype.itemsize

    @cached_property
    def _found(
        self,
    ) -> tuple[list[DicomSeries], list[DicomSeries], list[tuple[Path, str]], list[tuple[Path, str]]]:
        """The series to convert, those passed over, files that are no pictures, and damaged ones, each with the reason."""
        skipped: list[tuple[Path, str]] = []
        damaged: list[tuple[Path, str]] = []
        wanted: list[DicomSeries] = []
        passed_over: list[DicomSeries] = []
        only = None if self.only is None else {modality.upper() for modality in self.only}
        for series in find_series(self.source, skipped=skipped, damaged=damaged):
            fits = len(series.slices) >= self.min_slices and (only is None or series.modality.upper() in only)
            (wanted if fits else passed_over).append(series)
        return wanted, passed_over, skipped, damaged

    def _name(self, series: DicomSeries, facts: Mapping[str, str]) -> str:
        if self.name_by == "hash":
            return _hash(series.uid)
        if self.name_by == "uid":
            return clean_word(series.uid) or _hash(series.uid)
        number = "" if series.number is None else str(series.number)
        return make_name((series.patient, facts["study_date"], number, series.description)) or _hash(series.uid)

    def _row(self, case_id: str, entry: Mapping[str, Any]) -> list[str]:
        record = entry["record"] or {}
        done = entry["state"] == "done"
        values = {
            **record,
            "case": case_id,
            "state": entry["state"],
            "file": f"{IMAGE_FOLDER}/{case_id}{self.suffix}" if done else "",
            "reason": entry["reason"] or "",
            "notes": "; ".join(entry["notes"]),
        }
        if self.name_by == "hash":
            values["reason"] = ""  # it may name files; the ledger does in any case
        return [_text(values.get(column)) for column in COLUMNS]


def make_name(words: Sequence[str]) -> str:
    """Return words joined with ``_``, each cleaned by `clean_word`, empty ones left out; at most 150 bytes."""
    name = "_".join(word for word in map(clean_word, words) if word)
    return name.encode()[:_NAME_BYTES].decode(errors="ignore").rstrip("-._")


def clean_word(word: str) -> str:
    """Return `word` fit for a file name: letters, digits, ``.``, ``-`` and ``_`` of any script; all else becomes ``-``."""
    word = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", word))
    return word.strip("-._")[:_WORD_LENGTH].rstrip("-._")


def name_series(named: Sequence[tuple[str, str]]) -> list[str]:
    """Make names unique, letter case ignored, in a way that does not depend on the other series but for the need to.

    Series that would share a name get a part of their UID's SHA-256, and volumes of one UID a number besides.

    Args:
        named: Name and UID of each series, in a stable order.
    """
    sharing: dict[str, list[str]] = {}
    for name, uid in named:
        sharing.setdefault(name.casefold(), []).append(uid)
    taken = {name for name, uids in sharing.items() if len(uids) == 1}
    unique = []
    for name, uid in named:
        uids = sharing[name.casefold()]
        if len(uids) > 1:
            base = f"{name}_{_hash(uid)[:6]}" if len(set(uids)) > 1 else name
            numbered = (f"{base}_{number}" for number in itertools.count(1))
            choices = numbered if uids.count(uid) > 1 else itertools.chain((base,), numbered)
            name = next(choice for choice in choices if choice.casefold() not in taken)
            taken.add(name.casefold())
        unique.append(name)
    return unique


def _facts(series: DicomSeries) -> tuple[tuple[str, str], ...]:
    """What the first file's header says that a series does not carry; never the patient's name or birth date."""
    pydicom = require("pydicom", extra="dicom", purpose="reading DICOM")
    header = pydicom.dcmread(
        series.paths[0], stop_before_pixels=True, specific_tags=["StudyDate", "SeriesDate", "PatientPosition"]
    )
    return (
        ("patient_id", series.patient),
        ("study_date", str(header.get("StudyDate") or header.get("SeriesDate") or "")),
        ("study_uid", series.study_uid),
        ("series_uid", series.uid),
        ("series_number", "" if series.number is None else str(series.number)),
        ("description", series.description),
        ("modality", series.modality),
        ("patient_position", str(header.get("PatientPosition") or "")),
    )


def _hash(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:_HASH_LENGTH]


def _one(values: set[float]) -> float | str:
    """The one value, or how many there are."""
    return next(iter(values)) if len(values) == 1 else f"{len(values)} values"


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:.9g}"
    return "" if value is None else str(value)
