"""The results of several methods on the same cases: read, checked to be comparable, and tested pairwise."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from itkit._support.suggestions import did_you_mean
from itkit.errors import DataError, UsageError
from itkit.measures.case import MEASURES
from itkit.measures.direction import lower_is_better
from itkit.measures.statistics import adjust_holm, compare_paired, mean_over_cases, median_interval, overall_mean
from itkit.process.evaluation.table import ALL_CLASSES, FAILED, MEASURED, NO_PREDICTION

RESULT_NAMES = ("evaluation.json", "evaluation_cases.csv", "cases.csv")
"""What is looked for in a folder, in this order: ours, and the table that ``mmrun`` writes of a test."""
LEVEL = 0.05
"""A difference whose adjusted p-value is below this is said to be one."""

_SAME_VOLUME = 1e-6  # relative; volumes in CSV have nine digits


@dataclass(frozen=True)
class Method:
    """What one method reached.

    Attributes:
        name: What it is called in tables.
        path: The file of its results.
        measures: Names of what was measured.
        values: Case -> class -> column -> number; None where undefined. No entry for a case that failed.
        states: Case -> state.
        parameters: How it was measured; empty where the file does not say.
    """

    name: str
    path: Path
    measures: tuple[str, ...]
    values: Mapping[str, Mapping[str, Mapping[str, float | None]]]
    states: Mapping[str, str]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def classes(self) -> list[str]:
        """Return the names of all classes, in the order in which they were found."""
        return list(dict.fromkeys(name for classes in self.values.values() for name in classes))

    def array(self, cases: Sequence[str], classes: Sequence[str], column: str) -> np.ndarray:
        """Return (cases, classes) numbers of one column, NaN where there is none."""
        rows = [[self.values[case].get(name, {}).get(column) for name in classes] for case in cases]
        table = np.array([[math.nan if value is None else value for value in row] for row in rows], float)
        return table.reshape(len(cases), len(classes))


@dataclass(frozen=True)
class Comparison:
    """Methods side by side.

    Attributes:
        methods: The methods, in the order given.
        measures: What was compared.
        classes: Classes that all methods have.
        cases: Cases that every method was measured on.
        rows: One a measure, class and pair; see `compare_methods`.
        left_out: Method -> what is to be known of its cases: ``failed``, ``no_prediction``, ``absent``; and its ``classes``
            that not all methods have.
        changes: (measure, first, second) -> case -> mean over classes of second minus first.
    """

    methods: tuple[Method, ...]
    measures: tuple[str, ...]
    classes: tuple[str, ...]
    cases: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    left_out: Mapping[str, Mapping[str, list[str]]]
    changes: Mapping[tuple[str, str, str], Mapping[str, float]]


def find_results(words: Sequence[str]) -> dict[str, Path]:
    """Return method -> file of its results, from paths or ``NAME=PATH``.

    Methods without a name get that of their folder, and as much of the path in front as makes them different.

    Raises:
        UsageError: If there are fewer than two, or two have one name.
        DataError: If a path holds no results.
    """
    if len(words) < 2:
        raise UsageError(f"a comparison needs the results of at least two methods; found {', '.join(words) or 'none'}.")
    named, paths = [], []
    for word in words:
        name, separator, path = word.partition("=")
        known = bool(separator) and not os.path.exists(word)
        named.append(name if known else None)
        paths.append(Path(path if known else word))
    depth = 1
    found = _method_names(named, paths, depth)
    while len(set(found)) < len(found) and depth < max(len(path.absolute().parts) for path in paths):
        depth += 1
        found = _method_names(named, paths, depth)
    for name in found:
        if not name or found.count(name) > 1:
            raise UsageError(f"two methods are called {name!r}; give each a name of its own, e.g. new={paths[-1]}.")
    return dict(zip(found, (_result_file(path) for path in paths), strict=True))


def load_method(name: str, path: Path) -> Method:
    """Read the results of one method.

    Args:
        name: What it shall be called.
        path: ``evaluation.json`` or a table of cases, as `find_results` gives them.

    Raises:
        DataError: If the file cannot be read or holds no results.
    """
    try:
        if path.suffix.lower() == ".json":
            method = _from_document(name, path, json.loads(path.read_text(encoding="utf-8")))
        else:
            with open(path, encoding="utf-8", newline="") as stream:
                method = _from_table(name, path, list(csv.DictReader(stream)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise DataError(f"holds no results of an evaluation ({type(error).__name__}: {error}).", path) from error
    if not method.measures or not method.states:
        raise DataError("holds no results of an evaluation.", path)
    return method


def compare_methods(
    methods: Sequence[Method], measures: Sequence[str] | None = None, *, per_class: bool = False, seed: int = 0
) -> Comparison:
    """Test each pair of methods on the cases that both were measured on.

    A row holds the means of both methods (over the same cases and classes), the mean of the differences (second minus
    first) and their median, each with its 95 % bootstrap interval, the numbers of cases in which one is better, the
    p-value of the signed-rank test and that adjusted after Holm for all tests of the measure (those of the classes apart),
    and the better method, if the adjusted p-value is below `LEVEL`. A case's difference is the mean over the classes in
    which both have a value.

    Args:
        methods: At least two.
        measures: What to compare. None: all that every method has.
        per_class: Compare single classes too.
        seed: Of the bootstrap.

    Raises:
        UsageError: If a measure is not there, or was measured with different parameters.
        DataError: If no case is common to two methods, or the truths differ.
    """
    measures = _common_measures(methods, measures)
    _require_same_parameters(methods, measures)
    classes = [name for name in methods[0].classes() if all(name in method.classes() for method in methods[1:])]
    if not classes:
        raise DataError(
            f"{' and '.join(method.name for method in methods)} have no class in common; nothing to compare."
        )
    rows, changes = [], {}
    for measure in measures:
        for names in [classes, *([name] for name in classes if per_class and len(classes) > 1)]:
            label = names[0] if len(names) == 1 else ALL_CLASSES
            tests = []
            for first, second in itertools.combinations(methods, 2):
                cases = _common_cases(first, second)
                row, change = _compare_pair(first, second, cases, names, measure, seed)
                tests.append({"measure": measure, "class": label, "first": first.name, "second": second.name, **row})
                if names is classes:
                    changes[measure, first.name, second.name] = change
            rows.append(tests)
    families: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for tests in rows:
        families.setdefault((tests[0]["measure"], tests[0]["class"] == rows[0][0]["class"]), []).extend(tests)
    for tests in families.values():
        for row, adjusted in zip(tests, adjust_holm([test["p"] for test in tests]), strict=True):
            row["p_holm"] = adjusted
            row["better"] = ""
            if adjusted is not None and adjusted < LEVEL and row["difference"]:
                gain = (row["difference"] < 0) == lower_is_better(row["measure"])
                row["better"] = row["second"] if gain else row["first"]
    everyone = [case for case in methods[0].values if all(case in method.values for method in methods[1:])]
    return Comparison(
        tuple(methods),
        measures,
        tuple(classes),
        tuple(sorted(everyone)),
        tuple(itertools.chain.from_iterable(rows)),
        _left_out(methods, classes),
        changes,
    )


def _compare_pair(
    first: Method, second: Method, cases: Sequence[str], classes: Sequence[str], measure: str, seed: int
) -> tuple[dict[str, Any], dict[str, float]]:
    one, other = (method.array(cases, classes, measure) for method in (first, second))
    nowhere = np.isnan(one) | np.isnan(other)
    one, other = np.where(nowhere, np.nan, one), np.where(nowhere, np.nan, other)
    outcome = compare_paired(one, other, seed=seed)
    by_case = mean_over_cases((other - one).T)
    known = by_case[~np.isnan(by_case)]
    small = 1e-12 * np.abs(known).max(initial=0.0)
    gains = known * (-1 if lower_is_better(measure) else 1)
    interval, around = outcome["interval"] or (None, None), median_interval(by_case, seed=seed) or (None, None)
    row = {
        "cases": outcome["cases"],
        "undefined": len(cases) - outcome["cases"],
        "first_mean": _plain(overall_mean(one)),
        "second_mean": _plain(overall_mean(other)),
        "difference": _plain(outcome["difference"]),
        "low": interval[0],
        "high": interval[1],
        "median_difference": _plain(np.median(known)) if len(known) else None,
        "median_low": around[0],
        "median_high": around[1],
        "second_better": int((gains > small).sum()),
        "equal": int((np.abs(gains) <= small).sum()),
        "first_better": int((gains < -small).sum()),
        "p": outcome["p_value"],
    }
    return row, {case: float(value) for case, value in zip(cases, by_case, strict=True) if not np.isnan(value)}


def _common_cases(first: Method, second: Method) -> list[str]:
    """Return the cases on which both were measured, and make sure that they were measured against the same truths."""
    cases = sorted(first.values.keys() & second.values.keys())
    if not cases:
        raise DataError(
            f"{first.name} and {second.name} have no measured case in common: {_some(first.values)}; {_some(second.values)}."
        )
    for case in cases:
        for name in first.values[case].keys() & second.values[case].keys():
            one, other = (method.values[case][name].get("truth_mm3") for method in (first, second))
            if one is not None and other is not None and abs(one - other) > _SAME_VOLUME * max(one, other):
                raise DataError(
                    f"{case}: the truth of {name} has {one:.6g} mm3 in the results of {first.name} and {other:.6g} mm3 in those "
                    f"of {second.name}; methods are compared on the same truths only. Evaluate one of them again."
                )
    return cases


def _common_measures(methods: Sequence[Method], wanted: Sequence[str] | None) -> tuple[str, ...]:
    common = [name for name in methods[0].measures if all(name in method.measures for method in methods[1:])]
    if wanted is None:
        if not common:
            raise DataError(f"{' and '.join(method.name for method in methods)} have no measure in common.")
        return tuple(common)
    by_lower, chosen = {name.lower(): name for name in common}, []
    for word in wanted:
        if word.lower() not in by_lower:
            lacking = [method.name for method in methods if word.lower() not in map(str.lower, method.measures)]
            known = any(word.lower() == name.lower() for name in MEASURES)
            raise UsageError(
                f"metric {word!r} is not in the results of {', '.join(lacking)}; all of them have {', '.join(common)}."
                + ("" if known else did_you_mean(word, common))
            )
        chosen.append(by_lower[word.lower()])
    return tuple(dict.fromkeys(chosen))


def _require_same_parameters(methods: Sequence[Method], measures: Sequence[str]) -> None:
    """Refuse numbers that mean different things."""
    keys = ["ignore_label", *(("tolerance_mm", "tolerance_mm_of") if "NSD" in measures else ())]
    for first, second in itertools.combinations([method for method in methods if method.parameters], 2):
        for key in keys:
            one, other = first.parameters.get(key), second.parameters.get(key)
            if one != other:
                advice = "Evaluate one of them again" + (", or leave NSD out of --metrics" if key in keys[1:] else "")
                raise UsageError(
                    f"{first.name} was evaluated with {key.replace('_', ' ')} {one}, {second.name} with {other}; the numbers "
                    f"cannot be compared. {advice}."
                )


def _left_out(methods: Sequence[Method], classes: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    everything = sorted(set().union(*(method.states for method in methods)))
    return {
        method.name: {
            "failed": [case for case in everything if method.states.get(case) == FAILED],
            "no_prediction": [case for case in everything if method.states.get(case) == NO_PREDICTION],
            "absent": [case for case in everything if case not in method.states],
            "classes": [name for name in method.classes() if name not in classes],
        }
        for method in methods
    }


def _method_names(named: Sequence[str | None], paths: Sequence[Path], depth: int) -> list[str]:
    folders = [
        path.absolute().parent if path.suffix.lower() in (".json", ".csv") else path.absolute() for path in paths
    ]
    return [
        name if name is not None else "/".join(folder.parts[-depth:])
        for name, folder in zip(named, folders, strict=True)
    ]


def _result_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError("no such folder or file.", path)
    found = next((path / name for name in RESULT_NAMES if (path / name).is_file()), None)
    if found is None:
        raise DataError(f"holds no results ({', '.join(RESULT_NAMES)}). Run itk_evaluate first.", path)
    return found


def _from_document(name: str, path: Path, document: Mapping[str, Any]) -> Method:
    values, states = {}, {}
    for entry in document["cases"]:
        states[entry["case"]] = entry["state"]
        if entry["state"] != FAILED:
            values[entry["case"]] = entry["classes"]
    return Method(name, path, tuple(document["measures"]), values, states, document.get("parameters", {}))


def _from_table(name: str, path: Path, rows: Sequence[Mapping[str, str]]) -> Method:
    """Read one row a case and class (`itk_evaluate`), or one row a case (`mmrun`)."""
    values: dict[str, dict[str, dict[str, float | None]]] = {}
    states: dict[str, str] = {}
    columns = [column for column in (rows[0] if rows else ()) if column]
    if {"case", "class", "state"} <= set(columns):
        numbers = columns[columns.index("found") + 1 :] if "found" in columns else []
        for row in rows:
            states[row["case"]] = row["state"]
            if row["state"] != FAILED:
                values.setdefault(row["case"], {})[row["class"]] = {column: _number(row[column]) for column in numbers}
        return Method(name, path, tuple(column for column in numbers if column in MEASURES), values, states)
    pairs = [(column, *column.partition("/")[::2]) for column in columns if "/" in column]
    for row in rows:
        states[row["case_id"]] = MEASURED
        for column, measure, label in pairs:
            values.setdefault(row["case_id"], {}).setdefault(label, {})[measure] = _number(row[column])
    return Method(name, path, tuple(dict.fromkeys(measure for _, measure, _ in pairs)), values, states)


def _number(text: str | None) -> float | None:
    if text is None or not text.strip():
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _some(cases: Mapping[str, Any]) -> str:
    names = sorted(cases)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"
