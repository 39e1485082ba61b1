"""The table of an evaluation: every case, class and measure, and what they come to over the cases."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from itkit.measures.case import overlap_values
from itkit.measures.statistics import bootstrap_interval, mean_over_cases, overall_mean

MEASURED, NO_PREDICTION, FAILED = "measured", "no prediction", "failed"
"""State of a case: both files were compared; the prediction is missing and counts as empty; it could not be measured."""
VOLUMES = ("truth_mm3", "prediction_mm3", "truth_ml", "prediction_ml", "volume_difference")
"""Columns beside the measures. ``volume_difference`` is (prediction - truth) / truth, undefined where the truth has none."""
ALL_CLASSES = "all classes"


@dataclass(frozen=True)
class Table:
    """What was measured.

    Attributes:
        measures: Names of the measures, in order.
        labels: Label of each class.
        names: Name of each class.
        cases: Case ids, in order.
        states: State of each case.
        reasons: Why a case is not `MEASURED`, else empty.
        notes: What is to be known of each case.
        values: Measure or volume -> (cases, classes) float64, NaN where undefined or not measured.
        found: (cases, classes, 2) bool: whether the truth and the prediction have the class.
    """

    measures: tuple[str, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    cases: tuple[str, ...]
    states: tuple[str, ...]
    reasons: tuple[str, ...]
    notes: tuple[tuple[str, ...], ...]
    values: Mapping[str, np.ndarray]
    found: np.ndarray

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns of numbers."""
        return (*self.measures, *VOLUMES)

    def with_state(self, state: str) -> list[str]:
        """Return the cases of one state."""
        return [case for case, its in zip(self.cases, self.states, strict=True) if its == state]

    def case_means(self, column: str) -> np.ndarray:
        """Return the mean over the classes of each case, (cases,), NaN where no class has a value."""
        return mean_over_cases(self.values[column].T)


def build_table(
    entries: Mapping[str, Mapping[str, Any]],
    measures: Sequence[str],
    wanted: Sequence[int] | None,
    names: Mapping[int, str],
) -> Table:
    """Return the table of all cases.

    Args:
        entries: Case id -> its ledger entry; its ``record`` is what `itkit.process.evaluation.evaluate` measured.
        measures: Names, in the order of the columns.
        wanted: Labels of the rows. None: all that have a name or occur.
        names: Label -> name; a label without one is called by its number.
    """
    cases = sorted(entries)
    told = [entries[case] for case in cases]
    records = [entry.get("record") or {} for entry in told]
    if wanted is None:
        wanted = sorted(set(names).union(*(record.get("labels", ()) for record in records)))
    place = {label: number for number, label in enumerate(wanted)}
    shape = (len(cases), len(place))
    values = {column: np.full(shape, np.nan) for column in (*measures, *VOLUMES)}
    counts, voxel_mm3 = np.zeros((*shape, 4), np.int64), np.full((len(cases), 1), np.nan)
    for row, record in enumerate(records):
        if "labels" not in record:
            continue
        voxel_mm3[row] = record["voxel_mm3"]
        here = [number for number, label in enumerate(record["labels"]) if label in place]
        at = [place[record["labels"][number]] for number in here]
        for number, column in zip(here, at, strict=True):
            counts[row, column] = record["counts"][number]
        for name in values.keys() & record["values"].keys():
            numbers = record["values"][name]
            values[name][row, at] = [math.nan if numbers[n] is None else numbers[n] for n in here]
    for name, numbers in overlap_values(counts.reshape(-1, 4), measures).items():
        values[name] = numbers.reshape(shape)
    true, predicted = counts[..., 0] + counts[..., 2], counts[..., 0] + counts[..., 1]
    values["truth_mm3"], values["prediction_mm3"] = true * voxel_mm3, predicted * voxel_mm3
    values["truth_ml"], values["prediction_ml"] = values["truth_mm3"] / 1000, values["prediction_mm3"] / 1000
    values["volume_difference"] = np.divide(predicted - true, true, out=np.full(shape, np.nan), where=true > 0)
    found = np.stack([true > 0, predicted > 0], -1)
    states = tuple(record.get("state", FAILED) for record in records)
    return Table(
        tuple(measures),
        tuple(wanted),
        tuple(names.get(label, str(label)) for label in wanted),
        tuple(cases),
        states,
        tuple(
            "" if state == MEASURED else entry.get("reason") or state for entry, state in zip(told, states, strict=True)
        ),
        tuple(tuple(entry.get("notes") or ()) for entry in told),
        values,
        found,
    )


def case_rows(table: Table) -> Iterator[dict[str, Any]]:
    """Yield one row for each case and class: texts, and numbers with None in place of NaN."""
    for row, case in enumerate(table.cases):
        for column, (label, name) in enumerate(zip(table.labels, table.names, strict=True)):
            yield {
                "case": case,
                "label": label,
                "class": name,
                "state": table.states[row],
                "found": _found(table, row, column),
                **{key: _plain(table.values[key][row, column]) for key in table.columns},
            }


def summary_rows(table: Table, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return one row for each class and column of numbers, and for each measure one of all classes together.

    ``cases`` = ``counted`` + ``undefined`` + ``failed``; ``no_prediction`` of them have no prediction (and count as
    empty). Of a class: mean, sd, quartiles and extremes over the counted cases. Of all classes: the mean of the classes'
    means (`itkit.measures.statistics`), the rest over the cases' means over their classes. ``low`` and ``high`` are the
    95 % bootstrap interval of the mean.

    Args:
        table: What was measured.
        seed: Of the bootstrap.
    """
    rows = []
    failed = len(table.with_state(FAILED))
    for key in table.columns:
        numbers = table.values[key]
        parts = []
        if len(table.labels) > 1 and key in table.measures:
            parts.append((None, ALL_CLASSES, numbers, table.case_means(key), overall_mean(numbers)))
        for column, (label, name) in enumerate(zip(table.labels, table.names, strict=True)):
            own = numbers[:, column]
            parts.append((label, name, own, own, overall_mean(own)))
        for label, name, drawn, by_case, mean in parts:
            known = by_case[~np.isnan(by_case)]
            interval = bootstrap_interval(drawn, seed=seed)
            spread = float(known.std(ddof=1)) if len(known) > 1 else None
            quartiles = np.quantile(known, [0, 0.25, 0.5, 0.75, 1]).tolist() if len(known) else [None] * 5
            rows.append(
                {
                    "measure": key,
                    "label": label,
                    "class": name,
                    "cases": len(table.cases),
                    "counted": len(known),
                    "undefined": len(table.cases) - len(known) - failed,
                    "failed": failed,
                    "no_prediction": len(table.with_state(NO_PREDICTION)),
                    "mean": _plain(mean),
                    "low": None if interval is None else interval[0],
                    "high": None if interval is None else interval[1],
                    "sd": spread,
                    **dict(
                        zip(
                            ("minimum", "first_quartile", "median", "third_quartile", "maximum"), quartiles, strict=True
                        )
                    ),
                }
            )
    return rows


def _found(table: Table, row: int, column: int) -> str:
    """Say where the class occurs in the case."""
    if table.states[row] == FAILED:
        return "unknown"
    true, predicted = table.found[row, column]
    return "both" if true and predicted else "truth only" if true else "prediction only" if predicted else "neither"


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
