"""What an evaluation says: rows for tables, text for a terminal, and one page with the worst cases and the spread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from itkit.measures.direction import lower_is_better
from itkit.measures.units import format_value, unit_of
from itkit.process.evaluation.documents import document_paths, plain, render_page, safe, text_table, write_documents
from itkit.process.evaluation.table import (
    ALL_CLASSES,
    FAILED,
    MEASURED,
    NO_PREDICTION,
    Table,
    case_rows,
    summary_rows,
)

STEM, SHEETS = "evaluation", ("summary", "cases")
WORST_CASES = 40
"""Cases that the page lists; all of them are in the tables."""

_TEMPLATE = "evaluation.html.j2"


def evaluation_paths(folder: Path) -> dict[str, list[Path]]:
    """Return format -> files of an evaluation."""
    return document_paths(folder, STEM, SHEETS)


def write_evaluation(
    folder: Path,
    formats: Iterable[str],
    table: Table,
    parameters: Mapping[str, Any],
    unmatched: Sequence[str],
    *,
    seed: int = 0,
) -> list[Path]:
    """Write all documents of an evaluation into `folder` and return their paths.

    Args:
        folder: Where they lie.
        formats: Out of `itkit.process.evaluation.documents.FORMATS`.
        table: What was measured.
        parameters: How it was measured.
        unmatched: Predictions that have no truth.
        seed: Of the bootstrap intervals.
    """
    summary = summary_rows(table, seed=seed)
    return write_documents(
        folder,
        STEM,
        formats,
        {"summary": summary, "cases": list(case_rows(table))},
        _document(table, summary, parameters, unmatched),
        lambda: _page(table, summary, parameters, unmatched),
    )


def evaluation_text(table: Table, unmatched: Sequence[str], *, seed: int = 0) -> str:
    """Return what the terminal shows: the classes' means, the intervals of the overall means, and what is missing."""
    summary = {(row["measure"], row["class"]): row for row in summary_rows(table, seed=seed)}
    shown = [*table.measures, "truth_ml", "prediction_ml"]
    header = [
        "class",
        "counted",
        "undefined",
        *(f"{name} mm" if unit_of(name) else name.replace("_", " ") for name in shown),
    ]
    names = [*((ALL_CLASSES,) if len(table.names) > 1 else ()), *table.names]
    rows = []
    for name in names:
        first = summary[table.measures[0], name]
        means = (format_value(summary.get((column, name), {}).get("mean"), column) for column in shown)
        rows.append([name, str(first["counted"]), str(first["undefined"]), *means])
    lines = [text_table(header, rows)]
    whole = names[0] if names else None
    intervals = [
        f"{column} {format_value(row['low'], column)} to {format_value(row['high'], column)}"
        for column in table.measures
        if whole and (row := summary[column, whole])["low"] is not None
    ]
    if intervals:
        lines.append(f"95 % intervals of the means ({whole}): " + ", ".join(intervals))
    for state, meaning in ((NO_PREDICTION, "counted as empty"), (FAILED, "not in the means")):
        cases = table.with_state(state)
        if cases:
            lines.append(f"{state} ({meaning}), {len(cases)} of {len(table.cases)} cases: {_few(cases)}")
    if unmatched:
        lines.append(f"predictions without a truth (not looked at), {len(unmatched)}: {_few(unmatched)}")
    return "\n".join(lines)


def _document(
    table: Table, summary: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any], unmatched: Sequence[str]
) -> dict[str, Any]:
    """Return what the JSON file holds."""
    cases = []
    for number, case in enumerate(table.cases):
        cases.append(
            {
                "case": case,
                "state": table.states[number],
                "reason": table.reasons[number],
                "notes": list(table.notes[number]),
                "classes": {
                    name: {column: plain(table.values[column][number, place]) for column in table.columns}
                    for place, name in enumerate(table.names)
                },
            }
        )
    return {
        "kind": "itkit evaluation",
        "parameters": dict(parameters),
        "measures": list(table.measures),
        "classes": [{"label": label, "name": name} for label, name in zip(table.labels, table.names, strict=True)],
        "cases": cases,
        "summary": list(summary),
        "predictions_without_truth": list(unmatched),
    }


def _page(
    table: Table, summary: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any], unmatched: Sequence[str]
) -> str:
    from itkit._support.charts import Strip, interval_bar, strip_chart

    rows = {(row["measure"], row["class"]): row for row in summary}
    names = [*((ALL_CLASSES,) if len(table.names) > 1 else ()), *table.names]
    columns = []
    for measure in table.measures:
        own = [rows[measure, name] for name in names]
        known = [value for row in own for value in (row["mean"], row["low"], row["high"]) if value is not None]
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        room = (high - low) * 0.08 or 0.01
        cells = [_cell(row, measure, (low - room, high + room), interval_bar) for row in own]
        columns.append({"name": measure, "unit": unit_of(measure), "cells": cells})
    strips = []
    for measure in table.measures:
        drawn = [
            Strip(name, tuple(zip(table.cases, map(plain, table.values[measure][:, place]), strict=True)), place)
            for place, name in enumerate(table.names)
        ]
        if drawn:
            title = f"{measure} of each case"
            strips.append({"name": measure, "svg": safe(strip_chart(drawn, title=title, unit=unit_of(measure)))})
    means = {measure: table.case_means(measure) for measure in table.measures}
    main = table.measures[0]
    order = sorted(
        (number for number in range(len(table.cases)) if not np.isnan(means[main][number])),
        key=lambda n: (-means[main][n] if lower_is_better(main) else means[main][n], table.cases[n]),
    )
    worst = [
        {
            "case": table.cases[number],
            "state": table.states[number],
            "values": [format_value(plain(means[measure][number]), measure) for measure in table.measures],
        }
        for number in order[:WORST_CASES]
    ]
    volumes = [
        {
            "name": name,
            "truth": format_value(rows["truth_ml", name]["mean"], "truth_ml"),
            "prediction": format_value(rows["prediction_ml", name]["mean"], "prediction_ml"),
            "difference": format_value(rows["volume_difference", name]["median"], "volume_difference"),
        }
        for name in table.names
    ]
    first = [rows[main, name] for name in names]
    return render_page(
        _TEMPLATE,
        names=[{"name": row["class"], "counted": row["counted"], "undefined": row["undefined"]} for row in first],
        columns=columns,
        main=main,
        unit=unit_of(main),
        headline=None if not first or first[0]["mean"] is None else _headline(first[0], main),
        facts=[
            ("cases", len(table.cases)),
            ("measured", len(table.with_state(MEASURED))),
            ("without prediction", len(table.with_state(NO_PREDICTION))),
            ("failed", len(table.with_state(FAILED))),
            ("classes", len(table.names)),
        ],
        notices=[
            {"kind": "bad" if state != MEASURED else "warn", "case": case, "text": reason or " ".join(notes)}
            for case, state, reason, notes in zip(table.cases, table.states, table.reasons, table.notes, strict=True)
            if state != MEASURED or notes
        ],
        unmatched=unmatched,
        strips=strips,
        worst=worst,
        volumes=volumes,
        parameters=[(key.replace("_", " "), _words(value)) for key, value in parameters.items()],
    )


def _cell(row: Mapping[str, Any], measure: str, limits: tuple[float, float], draw: Any) -> dict[str, Any]:
    if row["mean"] is None:
        return {"text": "–", "bar": "", "interval": "undefined in all cases", "spread": ""}
    interval = None if row["low"] is None else (row["low"], row["high"])
    return {
        "text": format_value(row["mean"], measure),
        "bar": safe(draw(row["mean"], interval, limits)),
        "interval": "–".join(format_value(limit, measure) for limit in interval) if interval else "no interval",
        "spread": f"median {format_value(row['median'], measure)}, sd {format_value(row['sd'], measure)}",
    }


def _headline(row: Mapping[str, Any], measure: str) -> dict[str, Any]:
    interval = None if row["low"] is None else [format_value(row[end], measure) for end in ("low", "high")]
    return {"value": format_value(row["mean"], measure), "interval": interval, "class": row["class"]}


def _few(cases: Sequence[str], most: int = 8) -> str:
    return ", ".join(cases[:most]) + (f" and {len(cases) - most} more" if len(cases) > most else "")


def _words(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" for key, item in value.items()) or "–"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
