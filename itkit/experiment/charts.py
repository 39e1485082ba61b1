"""Curves of what was recorded while models trained, drawn as charts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from itkit._support.charts import Line, is_number, line_chart


def learning_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]] | Sequence[Mapping[str, Any]],
    best: Mapping[str, Mapping[str, Any] | None] | None = None,
    *,
    metric: str | None = None,
) -> dict[str, str]:
    """Return charts of loss, validation metric and learning rate against the step, the best step marked.

    Values that are null or not finite leave gaps. Where a run was resumed, what was logged last wins.

    Args:
        runs: Model name → its scalars, as `itkit.experiment.comparison.read_scalars` gives them; or the scalars of one run.
        best: Model name → ``{"step", "metric", "value"}`` of its best checkpoint, or None.
        metric: Validation metric to draw. None: the metric of the best checkpoints, else the first that was recorded.

    Returns:
        Title → SVG text, only of what was recorded.
    """
    if not isinstance(runs, Mapping):
        runs = {"": runs}
    best = best or {}
    metric = metric or next((record["metric"] for record in best.values() if record and record.get("metric")), None)
    metric = metric or next((name for rows in runs.values() for name in _names(rows, "val")), None)
    loss, validation, rate, waiting = [], [], [], []
    for colour, (name, rows) in enumerate(runs.items()):
        raw = curve(rows, "train", "loss")
        loss.append(Line(name, _thin(raw, 500), colour, faint=True))
        loss.append(Line(name, _thin(_smooth(raw), 250), colour))
        rate.append(Line(name, _thin(curve(rows, "train", "lr"), 250), colour))
        waiting.append(Line(name, _thin(_smooth(_waiting_share(rows)), 250), colour))
        if metric:
            points = curve(rows, "val", metric)
            record = best.get(name)
            mark = None
            if (
                record
                and record.get("metric") == metric
                and is_number(record.get("value"))
                and is_number(record.get("step"))
            ):
                mark = (record["step"], record["value"])
            validation.append(Line(name, points, colour, mark=mark, dots=len(points) <= 60))
    charts = {}
    for title, lines, log in (
        ("training loss", loss, True),
        (f"validation {metric}", validation, False),
        ("learning rate", rate, False),
        ("share of time spent waiting for data", waiting, False),
    ):
        values = [y for line in lines for _, y in line.points if is_number(y)]
        if values:
            wide = log and min(values) > 0 and max(values) / min(values) > 15
            charts[title] = line_chart(lines, title=title, log=wide)
    return charts


def curve(rows: Iterable[Mapping[str, Any]], split: str, name: str) -> list[tuple[float, float | None]]:
    """Return (step, value) pairs of one scalar in the order of steps.

    When the step goes back, the run was resumed there: what had been logged from that step on is replaced.
    """
    points: list[tuple[float, float | None]] = []
    for row in rows:
        if row.get("split") != split or name not in row or not is_number(row.get("step")):
            continue
        value = row[name]
        while points and points[-1][0] >= row["step"]:
            points.pop()
        points.append((row["step"], value if is_number(value) else None))
    return points


def _waiting_share(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float | None]]:
    """Return the share that the engine measured, else what the durations of iterations say."""
    measured = curve(rows, "train", "data_wait")
    if measured:
        return measured
    waits, whole = dict(curve(rows, "train", "data_time")), curve(rows, "train", "iter_time")
    known = ((step, waits.get(step), total) for step, total in whole)
    return [
        (step, wait / total if is_number(wait) and is_number(total) and total > 0 else None)
        for step, wait, total in known
    ]


def _names(rows: Iterable[Mapping[str, Any]], split: str) -> list[str]:
    skip = {"step", "split", "time", "iter_time", "data_time", "epoch"}
    return [name for row in rows if row.get("split") == split for name in row if name not in skip]


def _smooth(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """Return the mean over a window around each point, which is a fortieth of the curve to each side."""
    reach = len(points) // 40
    total, count, sums = 0.0, 0, [(0.0, 0)]
    for _, y in points:
        total, count = (total + y, count + 1) if is_number(y) else (total, count)
        sums.append((total, count))
    smooth = []
    for number, (x, y) in enumerate(points):
        side = min(reach, number, len(points) - 1 - number)
        (low, before), (high, after) = sums[number - side], sums[number + side + 1]
        smooth.append((x, (high - low) / (after - before) if is_number(y) else None))
    return smooth


def _thin(points: Sequence[tuple[float, float | None]], most: int) -> list[tuple[float, float | None]]:
    """Return at most about `most` points, the ends and every gap kept."""
    if len(points) <= most:
        return list(points)
    stride = len(points) / most
    chosen = {int(number * stride) for number in range(most)} | {len(points) - 1}
    return [point for number, point in enumerate(points) if number in chosen or point[1] is None]
