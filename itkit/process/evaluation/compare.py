"""`itk_evaluate --compare`: which of several methods is better, tested on the cases they have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from itkit._support.charts import Strip, stack_charts, strip_chart
from itkit._support.files import write_text
from itkit.errors import UsageError
from itkit.measures.direction import lower_is_better
from itkit.measures.statistics import mean_over_cases
from itkit.measures.units import format_value, unit_of
from itkit.process.evaluation.documents import (
    check_formats,
    document_paths,
    plain,
    render_page,
    safe,
    text_table,
    write_documents,
)
from itkit.process.evaluation.methods import LEVEL, Comparison, compare_methods, find_results, load_method
from itkit.process.operation import Operation, Product, Stage, Task

STEM, SHEETS = "comparison", ("pairs",)
_TEMPLATE = "comparison.html.j2"
_LEFT_OUT = (
    ("failed", "cases", "failed, not compared"),
    ("no_prediction", "cases", "without prediction, counted as empty"),
    ("absent", "cases", "not among its results, not compared"),
    ("classes", "classes", "that another method does not have, not compared"),
)


@dataclass(frozen=True)
class Compare(Operation):
    """Test methods pairwise on the same cases and draw their differences.

    Args:
        results: Folders or files of results, or ``NAME=PATH``; two at least.
        destination: Folder of the tables and plots.
        metrics: Measures to compare. None: all that every method has.
        per_class: Compare each class too.
        format: Tables to write besides ``comparison.json``. None: csv.
        seed: Of the bootstrap intervals.

    Raises:
        UsageError: If there are fewer than two results, or a format is unknown.
        DataError: If a path holds no results.
        MissingDependency: If a table cannot be written because a package is missing.
    """

    name: ClassVar[str] = "itk_evaluate --compare"
    results: Sequence[str]
    destination: str = STEM
    metrics: Sequence[str] | None = None
    per_class: bool = False
    format: Sequence[str] | None = None
    seed: int = 0

    def __post_init__(self):
        check_formats(self.format)
        for path in find_results(self.results).values():
            if Path(self.destination).absolute() == path.absolute().parent:
                raise UsageError(
                    f"{self.destination}: holds the results of {path.parent.name}; choose another folder with -o."
                )

    @property
    def sources(self) -> tuple[Path, ...]:
        return ()

    def parameters(self) -> dict[str, Any]:
        return {**super().parameters(), "results": list(find_results(self.results))}

    def tasks(self) -> Sequence[Task]:
        return [Task(STEM, tuple(find_results(self.results).values()))]

    def process(self, task: Task, stage: Stage) -> Product:
        methods = [load_method(name, path) for name, path in find_results(self.results).items()]
        found = compare_methods(methods, self.metrics, per_class=self.per_class, seed=self.seed)
        folder = Path(self.destination)
        paths = document_paths(folder, STEM, SHEETS)
        # Tables of an earlier run in another format would else be left behind with old numbers.
        present = {name for name, files in paths.items() if any(path.exists() for path in files)}
        plots = {measure: _charts(found, measure) for measure in found.measures}
        write_documents(
            folder,
            STEM,
            present.union(check_formats(self.format)),
            {"pairs": found.rows},
            _document(found),
            lambda: _page(found, plots),
            place=stage.path,
        )
        for measure, charts in plots.items():
            write_text(stage.path(folder / f"{STEM}_{measure.replace('/', '_')}.svg"), stack_charts(charts))
        return Product({"methods": len(methods), "cases": len(found.cases)})

    def describe(self, entries: Mapping[str, dict]) -> str | None:
        path = Path(self.destination) / f"{STEM}.json"
        if not path.is_file() or not all(entry["state"] == "done" for entry in entries.values()):
            return None
        return _text(json.loads(path.read_text(encoding="utf-8")))


def _document(found: Comparison) -> dict[str, Any]:
    return {
        "kind": "itkit comparison",
        "methods": [method.name for method in found.methods],
        "measures": list(found.measures),
        "classes": list(found.classes),
        "cases": list(found.cases),
        "pairs": list(found.rows),
        "left_out": found.left_out,
    }


def _text(document: Mapping[str, Any]) -> str:
    """Return the pairs as text for a terminal."""
    header = [
        "measure",
        "class",
        "first",
        "second",
        "cases",
        "means",
        "difference (95 %)",
        "median (95 %)",
        "1st/=/2nd",
        "p Holm",
        "better",
    ]
    rows = []
    for row in document["pairs"]:
        shown = _shown(row)
        rows.append(
            [
                row["measure"],
                row["class"],
                row["first"],
                row["second"],
                str(row["cases"]),
                f"{shown['first_mean']} {shown['second_mean']}",
                f"{shown['difference']} {shown['interval']}".rstrip(),
                f"{shown['median']} {shown['around']}".rstrip(),
                f"{row['first_better']}/{row['equal']}/{row['second_better']}",
                shown["p_holm"],
                row["better"] or "-",
            ]
        )
    lines = [text_table(header, rows, left=4), *_left_out_lines(document["left_out"])]
    return "\n".join(lines)


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the numbers of a row as text."""
    measure = row["measure"]

    def signed(value: float | None) -> str:
        return "–" if value is None else ("+" if value >= 0 else "−") + format_value(abs(value), measure)

    def between(low: float | None, high: float | None) -> str:
        return "" if low is None else f"({signed(low)} to {signed(high)})"

    return {
        "first_mean": format_value(row["first_mean"], measure),
        "second_mean": format_value(row["second_mean"], measure),
        "difference": signed(row["difference"]),
        "interval": between(row["low"], row["high"]),
        "median": signed(row["median_difference"]),
        "around": between(row["median_low"], row["median_high"]),
        "p": _p_value(row["p"]),
        "p_holm": _p_value(row["p_holm"]),
    }


def _p_value(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _left_out_lines(left_out: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    return [
        f"{name}: {len(kinds[kind])} {what} {meaning}: {', '.join(kinds[kind][:8])}"
        + (f" and {len(kinds[kind]) - 8} more" if len(kinds[kind]) > 8 else "")
        for name, kinds in left_out.items()
        for kind, what, meaning in _LEFT_OUT
        if kinds[kind]
    ]


def _charts(found: Comparison, measure: str) -> list[str]:
    """Return the chart of the methods' cases, and the chart of the pairs' differences."""
    unit, better = unit_of(measure), "lower" if lower_is_better(measure) else "higher"
    strips = []
    for number, method in enumerate(found.methods):
        means = mean_over_cases(method.array(found.cases, found.classes, measure).T)
        strips.append(Strip(method.name, tuple(zip(found.cases, map(plain, means), strict=True)), number))
    changes = [(pair, change) for (name, *pair), change in found.changes.items() if name == measure]
    pairs = [
        Strip(f"{second} − {first}", tuple(change.items()), number)
        for number, ((first, second), change) in enumerate(changes)
    ]
    return [
        strip_chart(strips, title=f"{measure} of each case, {better} is better", unit=unit),
        strip_chart(pairs, title=f"{measure}: differences of the same cases", unit=unit, zero=True),
    ]


def _page(found: Comparison, plots: Mapping[str, Sequence[str]]) -> str:
    return render_page(
        _TEMPLATE,
        methods=[method.name for method in found.methods],
        measures=[
            {
                "name": measure,
                "unit": unit_of(measure),
                "direction": "lower is better" if lower_is_better(measure) else "higher is better",
                "rows": [{**row, "shown": _shown(row)} for row in found.rows if row["measure"] == measure],
                "charts": [safe(chart) for chart in plots[measure]],
            }
            for measure in found.measures
        ],
        cases=len(found.cases),
        classes=len(found.classes),
        level=LEVEL,
        left_out=_left_out_lines(found.left_out),
    )
