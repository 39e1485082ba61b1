"""`itk_evaluate`: measure predicted label maps against true ones, case by case."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from itkit.errors import DataError, GeometryError, UsageError
from itkit.io.geometry import Match, compare_geometries
from itkit.io.labels import require_whole
from itkit.io.volumes import Volume
from itkit.measures.case import label_surface_values
from itkit.measures.overlap import label_counts
from itkit.process.cases import LABEL_FOLDER
from itkit.process.evaluation.classes import known_names, parse_classes, parse_measures, parse_tolerance
from itkit.process.evaluation.documents import check_formats
from itkit.process.evaluation.report import evaluation_paths, evaluation_text, write_evaluation
from itkit.process.evaluation.table import MEASURED, NO_PREDICTION, Table, build_table
from itkit.process.ledger import LEDGER_NAME
from itkit.process.operation import Ask, Operation, Product, Stage, Task, require_apart
from itkit.process.reading import Reader
from itkit.process.sources import find_files

GRIDS = ("refuse", "resample")


@dataclass(frozen=True)
class Evaluate(Operation):
    """Compare each truth with the prediction of the same name, whatever the formats are.

    Args:
        truth: Folder of true label maps, or a dataset (its ``label/`` is taken), or one file.
        prediction: Folder of predicted label maps, a dataset, or one file.
        destination: Folder of the tables.
        metrics: Names of measures, or of `itkit.process.evaluation.classes.GROUPS`. None: all measures.
        classes: Labels or names of the classes. None: all that have a name or occur; never the background.
        names: ``"1=liver"`` or JSON files. None: ``meta.json`` of the truth's dataset, if there is one.
        ignore_label: Label of the truth whose voxels count nowhere. None: there is none.
        tolerance: mm within which two surfaces agree (NSD), as ``"2"`` or ``"liver=2.5"``. None: 1 mm.
        grid: What becomes of a prediction on another grid than its truth's: ``"refuse"`` (the case fails) or ``"resample"``
            (by physical position, nearest voxel, 0 outside).
        allow_missing: A truth without a prediction is no failure. It counts as an empty prediction in any case.
        recursive: Look into subfolders; the layout must be the same.
        fix_geometry: Repair directions that are not orthonormal, and record it, instead of refusing the case.
        format: Tables to write besides ``evaluation.json``, out of `itkit.process.evaluation.documents.FORMATS`. None: csv.
        seed: Of the bootstrap intervals.

    Raises:
        UsageError: If a word is unknown, or the destination lies inside one of the sources.
        DataError: If a file of names cannot be read.
        MissingDependency: If a table cannot be written because a package is missing.
    """

    name: ClassVar[str] = "itk_evaluate"
    places: ClassVar[tuple[str, ...]] = ("truth", "prediction", "destination")
    truth: str
    prediction: str
    destination: str
    metrics: Sequence[str] | None = None
    classes: Sequence[str] | None = None
    names: Sequence[str] | None = None
    ignore_label: int | None = None
    tolerance: Sequence[str] | None = None
    grid: str = "refuse"
    allow_missing: bool = False
    recursive: bool = False
    fix_geometry: bool = False
    format: Sequence[str] | None = None
    seed: int = 0

    def __post_init__(self):
        self.parameters()
        check_formats(self.format)
        if self.grid not in GRIDS:
            raise UsageError(f"--grid is {' or '.join(GRIDS)}, not {self.grid!r}.")
        for source in self.sources:
            require_apart(source, self.destination)

    @property
    def sources(self) -> tuple[Path, ...]:
        return Path(self.truth), Path(self.prediction)

    def parameters(self) -> dict[str, Any]:
        names = known_names(self.names, self.truth)
        general, single = parse_tolerance(self.tolerance, names)
        labels = parse_classes(self.classes, names)
        return {
            "measures": list(parse_measures(self.metrics)),
            "labels": None if labels is None else list(labels),
            "ignore_label": self.ignore_label,
            "tolerance_mm": general,
            "tolerance_mm_of": {str(label): value for label, value in sorted(single.items())},
            "grid": self.grid,
            "allow_missing": self.allow_missing,
            "fix_geometry": self.fix_geometry,
        }

    def tasks(self) -> Sequence[Task]:
        truths, predictions = self._pairs()
        if not (Path(self.destination) / LEDGER_NAME).is_file():
            for path in itertools.chain(*evaluation_paths(Path(self.destination)).values()):
                if os.path.lexists(path):
                    raise DataError(
                        "exists and is not of an earlier run here; choose another folder or remove it.", path
                    )
        return [
            Task(case_id, (truth, predictions[case_id]) if case_id in predictions else (truth,))
            for case_id, truth in truths.items()
        ]

    def process(self, task: Task, stage: Stage) -> Product:
        parameters, reader = self.parameters(), Reader(self.fix_geometry)
        truth, notes = _read_labels(reader, task.inputs[0], self.ignore_label), []
        if len(task.inputs) == 1:
            prediction = Volume(np.zeros_like(truth.array), truth.spacing_zyx, truth.origin_xyz, truth.direction_xyz)
        else:
            prediction = self._on_grid(truth, _read_labels(reader, task.inputs[1], None), task.inputs[1], notes)
        found, counts = label_counts(truth.array, prediction.array, ignore_label=self.ignore_label)
        wanted = parameters["labels"]
        kept = (found > 0) & (np.isin(found, wanted) if wanted is not None else True)
        labels = found[kept].tolist()
        values = label_surface_values(
            truth.array,
            prediction.array,
            labels,
            parameters["measures"],
            truth.spacing_zyx,
            nsd_tolerance_mm={
                label: parameters["tolerance_mm_of"].get(str(label), parameters["tolerance_mm"]) for label in labels
            },
            ignore_label=self.ignore_label,
        )
        notes += reader.notes()
        record = {
            "state": MEASURED if len(task.inputs) > 1 else NO_PREDICTION,
            "voxel_mm3": math.prod(truth.spacing_zyx),
            "labels": labels,
            "counts": counts[kept].tolist(),
            "values": {name: numbers.tolist() for name, numbers in values.items()},
        }
        record, missing = reader.record(record), "has no prediction; counted as an empty one."
        if len(task.inputs) > 1:
            return Product(record, tuple(notes))
        return Product(record, (*notes, missing)) if self.allow_missing else Product(record, tuple(notes), missing)

    def finish(self, entries: Mapping[str, dict], ask: Ask) -> Iterable[Path]:
        # Tables of an earlier run in another format would else be left behind with old numbers.
        present = {
            name
            for name, paths in evaluation_paths(Path(self.destination)).items()
            if any(path.exists() for path in paths)
        }
        formats = present.union(check_formats(self.format))
        return write_evaluation(
            Path(self.destination),
            formats,
            self._table(entries),
            self.parameters(),
            self._unmatched(),
            seed=self.seed,
        )

    def describe(self, entries: Mapping[str, dict]) -> str | None:
        return evaluation_text(self._table(entries), self._unmatched(), seed=self.seed)

    def _table(self, entries: Mapping[str, dict]) -> Table:
        names, parameters = known_names(self.names, self.truth), self.parameters()
        return build_table(entries, parameters["measures"], parameters["labels"], names)

    def _pairs(self) -> tuple[dict[str, Path], dict[str, Path]]:
        """Return case id -> file of the truths, and of the predictions."""
        truths, predictions = (_label_files(folder, self.recursive) for folder in self.sources)
        if Path(self.truth).is_file() and Path(self.prediction).is_file():
            predictions = dict.fromkeys(truths, Path(self.prediction))
        if not truths.keys() & predictions.keys():
            raise DataError(
                f"holds no prediction that has the name of a truth. Truths: {_some(truths)}; predictions: "
                f"{_some(predictions)}. Names must be the same but for the suffix.",
                self.prediction,
            )
        return truths, predictions

    def _unmatched(self) -> list[str]:
        """Return the predictions that have no truth."""
        truths, predictions = self._pairs()
        return sorted(predictions.keys() - truths.keys())

    def _on_grid(self, truth: Volume, prediction: Volume, path: Path, notes: list[str]) -> Volume:
        """Return the prediction on the truth's grid, or refuse it."""
        match, difference = compare_geometries(truth, prediction)
        difference = difference.replace("image has", "the truth has")
        if match is Match.EQUAL:
            return prediction
        if match is Match.WARN:
            notes.append(f"prediction has {difference}; taken for the same grid.")
            return prediction
        if self.grid == "refuse":
            raise GeometryError(
                f"prediction has {difference}. Voxels of different places are not compared; --grid resample brings the "
                "prediction to the truth's grid by physical position.",
                path,
            )
        from itkit.io.resampling import resample_to_grid

        moved = resample_to_grid(prediction, truth, kind="label")
        before, after = (
            np.count_nonzero(volume.array) * math.prod(volume.spacing_zyx) / 1000 for volume in (prediction, moved)
        )
        notes.append(
            f"prediction has {difference}; resampled by physical position (nearest voxel). Its foreground was {before:.3f} ml "
            f"and is {after:.3f} ml on the truth's grid."
        )
        return moved


def _label_files(source: Path, recursive: bool) -> dict[str, Path]:
    """Return case id -> label file of a folder, of the ``label/`` of a dataset, or a single file."""
    folder = source / LABEL_FOLDER if (source / LABEL_FOLDER).is_dir() else source
    found: dict[str, Path] = {}
    for file in find_files(folder, recursive=recursive):
        if file.case_id in found:
            raise DataError(
                f"and {found[file.case_id].name} are one case, {file.case_id}; keep one of them.", file.path
            )
        found[file.case_id] = file.path
    return dict(sorted(found.items()))


def _read_labels(reader: Reader, path: Path, ignore_label: int | None) -> Volume:
    volume = reader.volume(path)
    array = volume.array
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 4:
        raise DataError(f"has {array.shape[0]} values per voxel; a label map has one.", path)
    array = require_whole(array, path)
    if array.dtype.kind == "i" and array.min() < 0:
        wrong = array[(array < 0) & (array != ignore_label)] if ignore_label is not None else array[array < 0]
        if wrong.size:
            raise DataError(
                f"holds label {int(wrong[0])}; labels are 0 (background) and up. Fix the label map; voxels of the truth that "
                "shall not count are named with --ignore-label.",
                path,
            )
    return Volume(array, volume.spacing_zyx, volume.origin_xyz, volume.direction_xyz)


def _some(cases: Iterable[str]) -> str:
    cases = list(cases)
    return ", ".join(cases[:3]) + (f" and {len(cases) - 3} more" if len(cases) > 3 else "")
