"""The runs of one experiment side by side: what was trained and tested, which model is better, which cases are hard.

Reads the work and test folders only; nothing is written. Damaged, failed and half-done runs are shown as such.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from itkit.errors import CheckpointError
from itkit.experiment.state import RESULT_FILE, STATE_FILE, RunState, is_tested, load_result
from itkit.measures.direction import lower_is_better
from itkit.measures.units import format_value, unit_of

SCALARS_FILE = "scalars.jsonl"
CASES_FILE = "cases.csv"
VAL_CASES_FILE = "val_cases.csv"
OVERLAY_FOLDER = "overlays"
VISUAL_FOLDER = "visuals"


@dataclass(frozen=True)
class ModelRun:
    """One model of an experiment, as found on disk.

    Attributes:
        name: Model name.
        folder: Run folder; need not exist.
        test_folder: Folder of its test results; need not exist.
        run: What ``run.json`` says; a blank state if there is none.
        state: ``new``, ``partial``, ``trained``, ``tested`` or ``failed``.
        result: What ``result.json`` says, None if there is none.
        current: Whether `result` was measured on the best or last checkpoint that the run has now.
        problem: Why something of it could not be read, else empty.
    """

    name: str
    folder: Path
    test_folder: Path
    run: RunState
    state: str
    result: dict[str, Any] | None = None
    current: bool = False
    problem: str = ""

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Metric name → ``{"mean", "per_class", "ci95"}`` of the test; empty if there is no test of the present checkpoint."""
        found = self.result.get("metrics") if self.result and self.current else None
        return (
            {name: value for name, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}
        )

    @property
    def failure_message(self) -> str:
        """One line on what went wrong, empty if nothing did."""
        failure = self.run.failure
        if self.problem:
            return self.problem
        return str(failure.get("message") or "failed without a message") if isinstance(failure, dict) else ""

    def cases(self) -> list[dict[str, Any]]:
        """Return the per-case rows of the present test, empty if there are none."""
        return read_cases(self.test_folder / CASES_FILE) if self.current else []

    def scalars(self) -> list[dict[str, Any]]:
        """Return what was logged while it trained, in the order of the file."""
        return read_scalars(self.folder / SCALARS_FILE)


@dataclass(frozen=True)
class ExperimentRuns:
    """All models of one experiment.

    Attributes:
        name: Name of the experiment.
        models: Sorted by name.
    """

    name: str
    models: tuple[ModelRun, ...]

    def metric_names(self) -> list[str]:
        """Return the names of all test metrics, in the order in which they were first found."""
        return list(dict.fromkeys(name for model in self.models for name in model.metrics))

    def main_metric(self) -> str | None:
        """Return the metric that chose the best checkpoints if it was tested, else Dice, else the first; None without tests."""
        names = self.metric_names()
        chosen = [model.run.best.get("metric") for model in self.models if model.run.best]
        return next((name for name in (*chosen, "Dice") if name in names), names[0] if names else None)

    def ranks(self, metric: str) -> dict[str, int]:
        """Return model name → rank (1 is best; equal means share a rank) among the tested models."""
        means = {model.name: mean for model in self.models if (mean := mean_of(model, metric)) is not None}
        better = (lambda a, b: a < b) if lower_is_better(metric) else (lambda a, b: a > b)
        return {name: 1 + sum(better(other, value) for other in means.values()) for name, value in means.items()}


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same test cases.

    Attributes:
        better: Model with the better mean.
        worse: The other one.
        difference: Mean of better minus worse over the common cases.
        interval: 95 % bootstrap interval of `difference`, None with fewer than two cases.
        p_value: Two-sided Wilcoxon signed-rank test, adjusted after Holm for all comparisons made; None if undefined.
        cases: Number of common cases.
        wins: Cases in which `better` is better; the rest without `losses` are ties.
        losses: Cases in which `worse` is better.
    """

    better: str
    worse: str
    difference: float
    interval: tuple[float, float] | None
    p_value: float | None
    cases: int
    wins: int
    losses: int


@dataclass(frozen=True)
class HardCase:
    """A test case and its mean over classes for each model (None: no value); `mean` is over the models."""

    case_id: str
    mean: float
    values: Mapping[str, float | None] = field(default_factory=dict)


def mean_of(model: ModelRun, metric: str) -> float | None:
    """Return the mean of a test metric, None if there is none."""
    value = model.metrics.get(metric, {}).get("mean")
    return float(value) if _is_number(value) else None


def load_experiment(
    experiment_dir: str | Path, test_dir: str | Path, *, models: Iterable[str] = (), name: str | None = None
) -> ExperimentRuns:
    """Read all runs of an experiment.

    Args:
        experiment_dir: ``<work root>/<experiment>``; need not exist.
        test_dir: ``<test root>/<experiment>``; need not exist.
        models: Models that the experiment should have; those without a run folder are listed as ``new``.
        name: Name of the experiment. None: the name of `experiment_dir`.
    """
    experiment_dir, test_dir = Path(experiment_dir), Path(test_dir)
    names = set(models)
    names |= {path.name for path in _subfolders(experiment_dir) if _is_run(path)}
    names |= {path.name for path in _subfolders(test_dir) if (path / RESULT_FILE).is_file()}
    found = tuple(load_model(experiment_dir / model, test_dir / model) for model in sorted(names))
    return ExperimentRuns(name or experiment_dir.name, found)


def load_model(folder: str | Path, test_folder: str | Path) -> ModelRun:
    """Read one run. What cannot be read makes it ``failed`` with the reason; it raises nothing."""
    folder, test_folder = Path(folder), Path(test_folder)
    problem = ""
    try:
        run = RunState.load(folder)
    except (CheckpointError, OSError, AttributeError, TypeError, ValueError) as error:
        run = RunState(experiment=folder.parent.name, model=folder.name, state="failed")
        problem = (
            str(error) if isinstance(error, CheckpointError) else f"{folder / STATE_FILE}: cannot be used ({error})."
        )
    try:
        result = load_result(test_folder)
    except OSError as error:
        result, problem = None, problem or f"{test_folder / RESULT_FILE}: cannot be read ({error})."
    if not isinstance(result, dict):
        if result is not None or (test_folder / RESULT_FILE).is_file():
            problem = problem or f"{test_folder / RESULT_FILE}: is damaged. Test again."
        result = None
    current = result is not None and any(
        record and (record.get("checkpoint"), record.get("step")) == (result.get("checkpoint"), result.get("step"))
        for record in (run.best, run.last)
    )
    state = "tested" if current and is_tested(run, result) else run.state
    return ModelRun(folder.name, folder, test_folder, run, state, result, current, problem)


def experiment_entry(experiment: ExperimentRuns) -> dict[str, Any]:
    """Return the entry of one experiment in the document of ``--json``."""
    return {
        "name": experiment.name,
        "models": [
            {
                "name": model.name,
                "state": model.state,
                "step": model.run.step,
                "best": model.run.best
                and {key: model.run.best.get(key) for key in ("step", "metric", "value", "checkpoint")},
                "test": model.metrics or None,
                "cpu_minutes": model.run.cpu_minutes,
            }
            for model in experiment.models
        ],
    }


def report_document(
    experiment_dir: str | Path, test_dir: str | Path, *, models: Iterable[str] = (), name: str | None = None
) -> dict[str, Any]:
    """Return the document of ``--json`` for one experiment; arguments as for `load_experiment`.

    ``"test"`` is None unless the result was measured on the best or last checkpoint of the run.
    """
    return {"experiments": [experiment_entry(load_experiment(experiment_dir, test_dir, models=models, name=name))]}


def read_scalars(path: str | Path) -> list[dict[str, Any]]:
    """Return the objects of a ``scalars.jsonl``, leaving out lines that a crash or a full disk cut short.

    Returns an empty list if the file does not exist, or is no file at all.
    """
    rows = []
    if not Path(path).is_file():
        return rows
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if isinstance(row, dict):
                    rows.append(row)
    except FileNotFoundError:
        return []
    return rows


def read_cases(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a table of cases: ``case_id`` as text, all else as a number or None where the cell is empty.

    Returns an empty list if the file does not exist.
    """
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            return [
                {key: value if key == "case_id" else _cell(value) for key, value in row.items() if key is not None}
                for row in csv.DictReader(stream)
                if row.get("case_id")
            ]
    except FileNotFoundError:
        return []


def case_scores(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, float | None]:
    """Return case → mean of a metric over its classes, None where no class has a value."""
    scores = {}
    for row in rows:
        values = [value for key, value in row.items() if key.startswith(f"{metric}/") and value is not None]
        if not values and row.get(metric) is not None:
            values = [row[metric]]
        scores[row["case_id"]] = sum(values) / len(values) if values else None
    return scores


def compare_models(experiment: ExperimentRuns, metric: str) -> list[PairedComparison]:
    """Compare each pair of tested models over the test cases that both have, the largest difference first.

    With more than four models only the best one is compared with each other one.
    """
    from itkit.measures.statistics import adjust_holm, case_table, compare_paired

    ranks = experiment.ranks(metric)
    order = sorted((model for model in experiment.models if model.name in ranks), key=lambda m: (ranks[m.name], m.name))
    pairs = [(a, b) for number, a in enumerate(order) for b in order[number + 1 :]]
    if len(order) > 4:
        pairs = [(order[0], other) for other in order[1:]]
    rows = {model.name: {row["case_id"]: row for row in model.cases()} for model in order}
    found = []
    for better, worse in pairs:
        ids = [case for case in rows[better.name] if case in rows[worse.name]]
        classes = [
            name
            for name in _classes(rows[better.name].values(), metric)
            if name in _classes(rows[worse.name].values(), metric)
        ]
        if not ids or not classes:
            continue
        two, one = (case_table([rows[m.name][case] for case in ids], metric, classes) for m in (better, worse))
        outcome = compare_paired(one, two)
        if not outcome["cases"] or not math.isfinite(outcome["difference"]):
            continue
        sign = -1 if lower_is_better(metric) else 1
        changes = [sign * change for change in _mean_changes(one, two)]
        found.append(
            PairedComparison(
                better.name,
                worse.name,
                outcome["difference"],
                outcome["interval"],
                outcome["p_value"],
                outcome["cases"],
                sum(change > 1e-9 for change in changes),
                sum(change < -1e-9 for change in changes),
            )
        )
    adjusted = adjust_holm([pair.p_value for pair in found])
    found = [replace(pair, p_value=p_value) for pair, p_value in zip(found, adjusted, strict=True)]
    return sorted(found, key=lambda pair: -abs(pair.difference))


def worst_cases(experiment: ExperimentRuns, metric: str, *, count: int = 6) -> list[HardCase]:
    """Return the test cases with the worst mean over the models, worst first."""
    scores = {model.name: case_scores(model.cases(), metric) for model in experiment.models if model.metrics}
    hard = []
    for case in dict.fromkeys(case for by_case in scores.values() for case in by_case):
        values = {name: by_case.get(case) for name, by_case in scores.items()}
        known = [value for value in values.values() if value is not None]
        if known:
            hard.append(HardCase(case, sum(known) / len(known), values))
    return sorted(hard, key=lambda h: (-h.mean if lower_is_better(metric) else h.mean, h.case_id))[:count]


def render_table(experiment: ExperimentRuns, *, width: int | None = None, colour: bool = False) -> str:
    """Return the models side by side as text for a terminal, the best value of each column marked with a star.

    Args:
        experiment: From `load_experiment`.
        width: Columns of the terminal. None: as wide as the table needs, at most 160.
        colour: With escape codes for colours.
    """
    import io

    from rich.box import ROUNDED
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    metrics = experiment.metric_names()
    table = Table(title=Text(experiment.name), box=ROUNDED, title_justify="left", title_style="bold")
    table.add_column("model")
    table.add_column("state")
    table.add_column("step", justify="right")
    table.add_column("best in validation", justify="right")
    for metric in metrics:
        table.add_column(f"{metric} ({unit_of(metric)})" if unit_of(metric) else metric, justify="right")
    table.add_column("CPU min", justify="right")
    ranks = {metric: experiment.ranks(metric) for metric in metrics}
    styles = {"tested": "green", "trained": "cyan", "partial": "yellow", "failed": "red", "new": "dim"}
    for model in experiment.models:
        best = model.run.best
        cells = [Text(model.name, style="bold"), Text(model.state, style=styles.get(model.state, ""))]
        cells.append(Text(f"{model.run.step}/{model.run.max_steps}" if model.run.max_steps else str(model.run.step)))
        cells.append(
            Text(f"{format_value(best.get('value'), str(best.get('metric')))} @ {best.get('step')}" if best else "–")
        )
        for metric in metrics:
            first = ranks[metric].get(model.name) == 1 and len(ranks[metric]) > 1
            text = format_value(mean_of(model, metric), metric)
            interval = interval_of(model, metric)
            text += f" [{', '.join(format_value(limit, metric) for limit in interval)}]" if interval else ""
            cells.append(Text(f"★ {text}" if first else text, style="bold" if first else ""))
        cells.append(Text(f"{model.run.cpu_minutes:.1f}" if model.run.cpu_minutes else "–"))
        table.add_row(*cells)
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width or 160,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
    )
    console.print(table)
    for model in experiment.models:
        if model.failure_message:
            console.print(Text(f"{model.name}: {model.failure_message}", style="red"), soft_wrap=True)
        if model.result is not None and not model.current:
            console.print(Text(f"{model.name}: {stale_note(model)}", style="yellow"), soft_wrap=True)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def interval_of(model: ModelRun, metric: str) -> tuple[float, float] | None:
    """Return the 95 % interval of a test metric, None if there is none."""
    interval = model.metrics.get(metric, {}).get("ci95")
    if isinstance(interval, (list, tuple)) and len(interval) == 2 and all(_is_number(limit) for limit in interval):
        return float(interval[0]), float(interval[1])
    return None


def stale_note(model: ModelRun) -> str:
    """Return why the test result of a model does not count."""
    tested = model.result or {}
    return (
        f"the test result is of {tested.get('checkpoint')} (step {tested.get('step')}), which is no longer the best or last "
        "checkpoint. Test again."
    )


def _mean_changes(one: Any, two: Any) -> list[float]:
    """Return the mean over classes of two minus one for each case in which a class has both."""
    import numpy as np

    from itkit.measures.statistics import mean_over_cases

    change = two - one
    return mean_over_cases(change[~np.isnan(change).all(axis=1)].T).tolist()


def _classes(rows: Iterable[Mapping[str, Any]], metric: str) -> list[str]:
    prefix = f"{metric}/"
    return list(dict.fromkeys(key[len(prefix) :] for row in rows for key in row if key.startswith(prefix)))


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (STATE_FILE, "config.py", "checkpoints", SCALARS_FILE))


def _cell(value: str | None) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
