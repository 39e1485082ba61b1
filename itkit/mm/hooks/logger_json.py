"""Write what a test or a validation measured: `result.json`, and a table with one row for each case."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from mmengine.dist import master_only
from mmengine.hooks import Hook

from itkit._support.files import write_json, write_text
from itkit.experiment.comparison import CASES_FILE, VAL_CASES_FILE
from itkit.experiment.state import RESULT_FILE
from itkit.mm.visualization.jsonl_backend import finite_number
from itkit.registry import HOOKS


@HOOKS.register_module()
class LoggerJSON(Hook):
    """After a test, ``result.json`` and ``cases.csv``; after a validation, ``val_cases.csv``; written by the first process.

    The numbers come from the metrics' `summary` and `case_rows`. Metrics that have none (MMEngine's, mmseg's) are kept as
    ``{name: {"mean": value}}``. NaN and infinite values become null, in tables an empty cell.

    Args:
        out_dir: Folder of the test results. None: ``runner.test_dir``, or ``<work_dir>/test`` under a plain MMEngine runner.
    """

    priority = "LOW"

    def __init__(self, out_dir: str | None = None):
        self.out_dir = out_dir
        self._cpu_at_start = 0.0

    def before_test(self, runner) -> None:
        """Note the CPU time at which the test begins."""
        self._cpu_at_start = _cpu_seconds()

    @master_only
    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        """Write the table of cases of this validation."""
        rows = merge_case_rows(_metrics_of(runner, "val"))
        if not rows:
            return
        try:
            write_text(Path(runner.work_dir) / VAL_CASES_FILE, cases_as_csv(rows))
        except OSError as error:  # a table of a validation is a log: training goes on without it
            runner.logger.warning(f"{error.filename}: cannot be written ({error.strerror}); training goes on.")

    @master_only
    def after_test_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        """Write result and table of cases of this test."""
        parts = _metrics_of(runner, "test")
        rows = merge_case_rows(parts)
        folder = self.test_folder(runner)
        summary = summarise_metrics(parts, metrics or {})
        loaded = getattr(runner, "loaded_checkpoint", None) or {}
        result = {
            "schema": 1,
            "experiment": folder.parent.name,
            "model": folder.name,
            "checkpoint": loaded.get("path"),
            "step": loaded.get("step"),
            "sha256": loaded.get("sha256"),
            "cpu_minutes": round((_cpu_seconds() - self._cpu_at_start) / 60, 4) if self._cpu_at_start else None,
            "classes": _classes(parts, summary),
            "metrics": summary,
            "cases": len(rows) or _count(runner),
        }
        if rows:
            write_text(folder / CASES_FILE, cases_as_csv(rows))
        write_json(folder / RESULT_FILE, result)
        runner.logger.info(f"test results are in {folder / RESULT_FILE}")

    def test_folder(self, runner) -> Path:
        """Return the folder that the results go to."""
        if self.out_dir is not None:
            return Path(self.out_dir)
        given = getattr(runner, "test_dir", None)
        return Path(given) if given is not None else Path(runner.work_dir) / "test"


def merge_case_rows(metrics: Sequence[Any]) -> list[dict[str, Any]]:
    """Return one row a case with the columns of all metrics, in the order in which the cases were first named."""
    rows: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        for row in getattr(metric, "case_rows", None) or ():
            merged = rows.setdefault(str(row["case_id"]), {"case_id": str(row["case_id"])})
            merged.update({name: finite_number(value) for name, value in row.items() if name != "case_id"})
    return list(rows.values())


def cases_as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table as CSV text: ``case_id`` first, then every column that any row has; empty where undefined."""
    columns = list(dict.fromkeys(["case_id", *(name for row in rows for name in row)]))
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if row.get(name) is None else row[name] for name in columns])
    return stream.getvalue()


def summarise_metrics(metrics: Sequence[Any], flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return metric name → ``{"mean", "per_class", "ci95"}``, or ``{"mean"}`` for metrics that give one number only.

    Args:
        metrics: Metric objects after `evaluate`.
        flat: What the evaluator returned: name → value.
    """
    summary: dict[str, dict[str, Any]] = {}
    covered: set[str] = set()
    for metric in metrics:
        prefix = getattr(metric, "prefix", None)
        for name, value in (getattr(metric, "summary", None) or {}).items():
            key = f"{prefix}/{name}" if prefix and name in summary else name
            summary[key] = _plain(value)
            covered.add(f"{prefix}/{name}" if prefix else name)
    for name, value in flat.items():
        belongs = name in covered or any(name.startswith(f"{head}/") for head in covered)
        if not belongs and (isinstance(value, (int, float)) or hasattr(value, "item")):
            summary[name] = {"mean": finite_number(value)}
    return summary


def _plain(value: Any) -> Any:
    """Return `value` with plain numbers, None for those that are not finite."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, (str, bool)) else finite_number(value)


def _metrics_of(runner, split: str) -> list[Any]:
    loop = getattr(runner, f"{split}_loop", None)
    return list(getattr(getattr(loop, "evaluator", None), "metrics", ()))


def _classes(metrics: Sequence[Any], summary: Mapping[str, Mapping[str, Any]]) -> list[str]:
    for value in summary.values():
        if value.get("per_class"):
            return list(value["per_class"])
    for metric in metrics:
        names = (getattr(metric, "dataset_meta", None) or {}).get("classes")
        if names:
            return [str(name) for name in names[1:]]
    return []


def _count(runner) -> int | None:
    try:
        return len(runner.test_dataloader.dataset)
    except (AttributeError, TypeError):
        return None


def _cpu_seconds() -> float:
    """Return user and system time of this process and of its living and finished children."""
    process = psutil.Process()
    times = process.cpu_times()
    seconds = times.user + times.system + getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    for child in process.children(recursive=True):
        try:
            own = child.cpu_times()
        except psutil.Error:
            continue
        seconds += own.user + own.system
    return max(seconds, time.process_time())
