"""One HTML page that explains an experiment: its models side by side, their cases, curves, cost and origin."""

from __future__ import annotations

import ast
import base64
import datetime
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from itkit._support import charts
from itkit._support.files import write_text
from itkit._support.page_style import SECURITY, STYLE
from itkit.experiment import comparison
from itkit.experiment.charts import learning_curves
from itkit.experiment.comparison import ExperimentRuns, ModelRun
from itkit.measures.direction import lower_is_better

REPORT_FILE = "report.html"
MAX_PICTURES = 24
"""Pictures in one page, so that it can still be sent by mail."""

_TEMPLATE = "report_template.html.j2"


def write_report(
    experiment_dir: str | Path,
    test_dir: str | Path,
    out: str | Path | None = None,
    *,
    models: Sequence[str] = (),
    name: str | None = None,
) -> Path:
    """Write the page of one experiment; everything it shows is inside the one file.

    Args:
        experiment_dir: ``<work root>/<experiment>``.
        test_dir: ``<test root>/<experiment>``.
        out: File to write. None: ``report.html`` in `experiment_dir`.
        models: Models that the experiment should have; those never run are listed as new.
        name: Name of the experiment. None: the name of `experiment_dir`.

    Returns:
        The file.

    Raises:
        OSError: If the file cannot be written; an older one is then as it was.
    """
    experiment = comparison.load_experiment(experiment_dir, test_dir, models=models, name=name)
    path = Path(out) if out is not None else Path(experiment_dir) / REPORT_FILE
    write_text(path, render_report(experiment))
    return path


def render_report(experiment: ExperimentRuns) -> str:
    """Return the page as HTML. All text that comes from runs is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files("itkit.experiment").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(**_content(experiment))


def config_settings(text: str) -> dict[str, str]:
    """Return the settings of a dumped config as dotted key → value in Python syntax.

    Dictionaries are taken apart (also ``dict(...)``), lists are taken apart where they hold dictionaries. Text that is
    not Python gives an empty dictionary.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return {}
    settings: dict[str, str] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            _flatten(statement.targets[0].id, statement.value, settings)
    return settings


def differing_settings(configs: Mapping[str, str]) -> list[tuple[str, dict[str, str | None]]]:
    """Return the settings in which configs differ: (dotted key, model → value or None where it is absent).

    Args:
        configs: Model → text of its config.
    """
    parsed = {name: config_settings(text) for name, text in configs.items()}
    keys = dict.fromkeys(key for settings in parsed.values() for key in settings)
    rows = []
    for key in keys:
        values = {name: settings.get(key) for name, settings in parsed.items()}
        if len(set(values.values())) > 1:
            rows.append((key, values))
    return rows


def _flatten(key: str, node: ast.expr, settings: dict[str, str]) -> None:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        pairs = [(keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg]
    elif isinstance(node, ast.Dict) and all(isinstance(part, ast.Constant) for part in node.keys):
        pairs = [(str(part.value), value) for part, value in zip(node.keys, node.values, strict=True)]
    elif isinstance(node, (ast.List, ast.Tuple)) and any(isinstance(part, (ast.Dict, ast.Call)) for part in node.elts):
        pairs = [(str(number), part) for number, part in enumerate(node.elts)]
    else:
        settings[key] = ast.unparse(node)
        return
    if not pairs:
        settings[key] = ast.unparse(node)
    for name, value in pairs:
        _flatten(f"{key}.{name}", value, settings)


def _content(experiment: ExperimentRuns) -> dict[str, Any]:
    """Return everything that the template shows, SVG already marked as safe."""
    from itkit import __version__

    metric = experiment.main_metric()
    order = _ordered(experiment, metric)
    colours = {model.name: number for number, model in enumerate(order)}
    pairs = comparison.compare_models(experiment, metric) if metric else []
    cases = {model.name: model.cases() for model in order}
    configs = {model.name: text for model in order if (text := _text(model.folder / "config.py"))}
    return {
        "name": experiment.name,
        "version": __version__,
        "written": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "metric": metric,
        "unit": comparison.unit_of(metric) if metric else "",
        "models": [_model_row(model, colours[model.name]) for model in order],
        "headline": _headline(experiment, order, metric, pairs),
        "facts": _facts(experiment, cases),
        "notices": _notices(order),
        "columns": _columns(experiment, order, colours),
        "class_tables": _class_tables(experiment, order, colours),
        "strips": _strips(experiment, order, cases, colours),
        "pairs": [_pair_row(pair, metric, colours) for pair in pairs],
        "hard_cases": _hard_cases(experiment, order, metric),
        "pictures_of_validation": [] if metric else _validation_pictures(order),
        "curves": [_safe(svg) for svg in _curves(order).values()],
        "provenance": _provenance(order),
        "settings": differing_settings(configs) if len(configs) > 1 else [],
        "configs": _config_lines(configs),
        "style": _safe(STYLE),
        "security": _safe(SECURITY),
    }


def _ordered(experiment: ExperimentRuns, metric: str | None) -> list[ModelRun]:
    """Return the models, best first, those without a test behind them by name."""
    ranks = experiment.ranks(metric) if metric else {}
    return sorted(experiment.models, key=lambda model: (ranks.get(model.name, len(experiment.models) + 1), model.name))


def _model_row(model: ModelRun, colour: int) -> dict[str, Any]:
    best = model.run.best or {}
    metric = str(best.get("metric") or "")
    return {
        "name": model.name,
        "colour": _slot(colour),
        "state": model.state,
        "step": model.run.step,
        "max_steps": model.run.max_steps,
        "validation": f"{metric} {comparison.format_value(best.get('value'), metric)} @ {best.get('step')}"
        if best
        else "–",
        "parameters": _count(model.run.parameters),
        "flops": _count(model.run.flops),
        "cpu": _minutes(model.run.cpu_minutes),
        "wall": _minutes(model.run.wall_minutes),
        "test_cpu": _minutes((model.result or {}).get("cpu_minutes") if model.current else None),
        "checkpoint": str((model.result or {}).get("checkpoint") or "–").rpartition("/")[2] if model.current else "–",
    }


def _headline(
    experiment: ExperimentRuns, order: Sequence[ModelRun], metric: str | None, pairs: Sequence[Any]
) -> dict[str, Any] | None:
    """Return what a reader should take away, None if nothing was tested."""
    if metric is None or comparison.mean_of(order[0], metric) is None:
        return None
    best = order[0]
    interval = comparison.interval_of(best, metric)
    versus = next(
        (pair for pair in pairs if pair.better == best.name and len(order) > 1 and pair.worse == order[1].name), None
    )
    return {
        "model": best.name,
        "value": comparison.format_value(comparison.mean_of(best, metric), metric),
        "interval": [comparison.format_value(limit, metric) for limit in interval] if interval else None,
        "cases": (best.result or {}).get("cases"),
        "others": sum(comparison.mean_of(model, metric) is not None for model in order) - 1,
        "versus": versus and _pair_row(versus, metric, {}),
    }


def _facts(experiment: ExperimentRuns, cases: Mapping[str, Sequence[Any]]) -> list[tuple[str, str]]:
    """Return the short numbers below the title."""
    states = [model.state for model in experiment.models]
    facts = [("models", str(len(states)))]
    facts += [
        (state, str(states.count(state)))
        for state in ("tested", "trained", "partial", "failed", "new")
        if state in states
    ]
    if any(cases.values()):
        facts.append(("test cases", str(max(len(rows) for rows in cases.values()))))
    facts.append(("CPU minutes of training", _minutes(sum(model.run.cpu_minutes for model in experiment.models))))
    return facts


def _notices(order: Sequence[ModelRun]) -> list[dict[str, str]]:
    """Return what is not as it should be, failures first."""
    failed, mild = [], []
    for model in order:
        failure = model.run.failure if isinstance(model.run.failure, dict) else {}
        if model.failure_message:
            where = f"step {failure.get('step')}" if failure.get("step") is not None else ""
            trace = str(failure.get("traceback_file") or "")
            failed.append(
                {"kind": "bad", "model": model.name, "text": model.failure_message, "where": where, "file": trace}
            )
        elif model.state == "failed":
            failed.append(
                {"kind": "bad", "model": model.name, "text": "failed without a message", "where": "", "file": ""}
            )
        if model.result is not None and not model.current and not model.problem:
            mild.append(
                {"kind": "warn", "model": model.name, "text": comparison.stale_note(model), "where": "", "file": ""}
            )
        if model.state == "partial":
            text = f"is not finished: step {model.run.step} of {model.run.max_steps or '?'}. Run mmrun again to resume."
            mild.append({"kind": "warn", "model": model.name, "text": text, "where": "", "file": ""})
    return failed + mild


def _columns(experiment: ExperimentRuns, order: Sequence[ModelRun], colours: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return a column of the headline table for each metric, with bars on one axis."""
    columns = []
    for metric in experiment.metric_names():
        ranks = experiment.ranks(metric)
        values = [comparison.mean_of(model, metric) for model in order]
        known = [value for value in values if value is not None]
        limits = [limit for model in order for limit in comparison.interval_of(model, metric) or ()] + known
        low, high = (min(limits), max(limits)) if limits else (0.0, 1.0)
        room = (high - low) * 0.08 or 0.01
        cells = {}
        for model, value in zip(order, values, strict=True):
            if value is None:
                cells[model.name] = None
                continue
            interval = comparison.interval_of(model, metric)
            bar = charts.interval_bar(value, interval, (low - room, high + room), colour=colours[model.name])
            cells[model.name] = {
                "text": comparison.format_value(value, metric),
                "interval": "–".join(comparison.format_value(limit, metric) for limit in interval) if interval else "",
                "best": ranks[model.name] == 1 and len(known) > 1,
                "rank": ranks[model.name],
                "bar": _safe(bar),
            }
        arrow = "lower is better" if lower_is_better(metric) else "higher is better"
        columns.append({"metric": metric, "unit": comparison.unit_of(metric), "arrow": arrow, "cells": cells})
    return columns


def _class_tables(
    experiment: ExperimentRuns, order: Sequence[ModelRun], colours: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Return, for each metric, classes × models with intervals over the cases."""
    from itkit.measures.statistics import bootstrap_interval, case_table

    tables = []
    for metric in experiment.metric_names():
        per_class = {model.name: model.metrics.get(metric, {}).get("per_class") or {} for model in order}
        classes = list(dict.fromkeys(name for values in per_class.values() for name in values))
        tested = [model for model in order if per_class[model.name]]
        if not classes:
            continue
        rows_of = {model.name: model.cases() for model in tested}
        rows = []
        for name in classes:
            values = {model.name: per_class[model.name].get(name) for model in tested}
            known = [value for value in values.values() if isinstance(value, (int, float))]
            best = (min(known) if lower_is_better(metric) else max(known)) if len(known) > 1 else None
            cells = []
            for model in tested:
                value = values[model.name]
                interval = None
                if rows_of[model.name] and value is not None:
                    interval = bootstrap_interval(case_table(rows_of[model.name], metric, [name]))
                cells.append(
                    {
                        "text": comparison.format_value(value, metric),
                        "interval": "–".join(comparison.format_value(limit, metric) for limit in interval)
                        if interval
                        else "",
                        "best": best is not None and value == best,
                        "share": _share(value, metric),
                        "colour": _slot(colours[model.name]),
                    }
                )
            rows.append({"name": name, "cells": cells})
        tables.append(
            {
                "metric": metric,
                "unit": comparison.unit_of(metric),
                "models": [{"name": model.name, "colour": _slot(colours[model.name])} for model in tested],
                "rows": rows,
            }
        )
    return tables


def _share(value: Any, metric: str) -> int | None:
    """Return how far a fraction fills its cell, in percent; None for distances."""
    if comparison.unit_of(metric) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        return None
    return round(100 * value)


def _strips(
    experiment: ExperimentRuns, order: Sequence[ModelRun], cases: Mapping[str, Any], colours: Mapping[str, int]
) -> list[dict[str, Any]]:
    found = []
    for metric in experiment.metric_names():
        strips = []
        for model in order:
            scores = comparison.case_scores(cases[model.name], metric)
            if any(value is not None for value in scores.values()):
                strips.append(charts.Strip(model.name, tuple(scores.items()), colours[model.name]))
        if strips:
            svg = charts.strip_chart(strips, title=f"{metric} of each test case", unit=comparison.unit_of(metric))
            found.append({"metric": metric, "svg": _safe(svg)})
    return found


def _pair_row(pair: comparison.PairedComparison, metric: str, colours: Mapping[str, int]) -> dict[str, Any]:
    clear = pair.interval is not None and (pair.interval[0] > 0 or pair.interval[1] < 0)
    return {
        "better": pair.better,
        "worse": pair.worse,
        "difference": _signed(pair.difference, metric),
        "interval": [_signed(limit, metric) for limit in pair.interval] if pair.interval else None,
        "p": "–" if pair.p_value is None else "< 0.001" if pair.p_value < 0.001 else f"{pair.p_value:.3f}",
        "cases": pair.cases,
        "wins": pair.wins,
        "losses": pair.losses,
        "ties": pair.cases - pair.wins - pair.losses,
        "verdict": "clear" if clear else "within chance" if pair.wins or pair.losses else "equal",
        "colours": [_slot(colours.get(name, 0)) for name in (pair.better, pair.worse)],
    }


def _hard_cases(experiment: ExperimentRuns, order: Sequence[ModelRun], metric: str | None) -> list[dict[str, Any]]:
    """Return the worst cases that have a picture first; those without follow as numbers only."""
    if metric is None:
        return []
    tested = [model for model in order if model.metrics]
    found, pictures = [], 0
    for case in comparison.worst_cases(experiment, metric, count=8):
        entries = []
        for model in tested:
            picture = None
            if pictures < MAX_PICTURES:
                picture = _data_uri(model.test_folder / comparison.OVERLAY_FOLDER, case.case_id)
                pictures += picture is not None
            value = comparison.format_value(case.values.get(model.name), metric)
            entries.append({"model": model.name, "value": value, "picture": picture})
        found.append({"case": case.case_id, "mean": comparison.format_value(case.mean, metric), "entries": entries})
    return found


def _validation_pictures(order: Sequence[ModelRun]) -> list[dict[str, Any]]:
    """Return pictures of the last validation, for an experiment in which nothing was tested yet."""
    found = []
    for model in order:
        folder = model.folder / comparison.VISUAL_FOLDER / "val"
        for path in sorted(folder.glob("*.png"))[: max(1, 6 // max(1, len(order)))]:
            found.append({"model": model.name, "case": path.stem, "picture": _data_uri(folder, path.stem)})
    return found[:MAX_PICTURES]


def _curves(order: Sequence[ModelRun]) -> dict[str, str]:
    return learning_curves(
        {model.name: model.scalars() for model in order}, {model.name: model.run.best for model in order}
    )


def _provenance(order: Sequence[ModelRun]) -> dict[str, Any]:
    """Return rows of facts, one column a model; ``differs`` where the models do not agree."""
    columns: dict[str, dict[str, str]] = {}
    for model in order:
        if model.run.provenance:
            columns[model.name] = {}
            _facts_of("", model.run.provenance, columns[model.name])
    keys = dict.fromkeys(key for facts in columns.values() for key in facts)
    rows = []
    for key in keys:
        values = [facts.get(key, "–") for facts in columns.values()]
        rows.append(
            {"key": key, "values": values, "differs": len(set(values)) > 1, "package": key.startswith("packages ")}
        )
    return {"models": list(columns), "rows": rows}


def _facts_of(key: str, value: Any, facts: dict[str, str]) -> None:
    if isinstance(value, dict):
        for name, part in value.items():
            _facts_of(f"{key} {name}".strip(), part, facts)
    elif isinstance(value, (list, tuple)):
        facts[key] = " ".join(str(part) for part in value) or "–"
    else:
        facts[key] = "–" if value is None else str(value)


def _config_lines(configs: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return each config line by line, marking lines that are not in every config."""
    lines = {name: text.splitlines() for name, text in configs.items()}
    everywhere = set.intersection(*(set(part) for part in lines.values())) if lines else set()
    return [
        {
            "model": name,
            "lines": [(line, len(lines) > 1 and bool(line.strip()) and line not in everywhere) for line in part],
        }
        for name, part in lines.items()
    ]


def _data_uri(folder: Path, case: str) -> str | None:
    """Return the picture of a case as a data URI, None if it is missing or its name leads out of the folder."""
    path = folder / f"{case}.png"
    if path.parent != folder:
        return None
    try:
        content = path.read_bytes()
    except (OSError, ValueError):
        return None
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _slot(colour: int) -> int:
    """Return the number of the page's colour variable (``--s1`` ...) for model number `colour`."""
    return colour % len(charts.SERIES_COLOURS) + 1


def _safe(svg: str) -> Any:
    from markupsafe import Markup

    return Markup(svg)


def _signed(value: float, metric: str) -> str:
    return ("+" if value >= 0 else "−") + comparison.format_value(abs(value), metric)


def _minutes(value: Any) -> str:
    if not isinstance(value, (int, float)) or not value:
        return "–"
    if value < 0.1:
        return "< 0.1"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _count(value: Any) -> str:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return "–"
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {letter}"
    return f"{value:g}"
