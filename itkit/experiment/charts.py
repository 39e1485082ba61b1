"""Small charts as SVG text that follows the colours of the page around it: curves, strips of cases, intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

SERIES_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5CC6", "#8A8F98")
"""Models in their order, after Okabe and Ito; a page may set ``--s1`` ... ``--s8`` to other values."""

_FONT = "font-family='system-ui,-apple-system,Segoe UI,Roboto,sans-serif'"


def series_colour(index: int) -> str:
    """Return the CSS colour of model number `index`, counted from 0."""
    slot = index % len(SERIES_COLOURS)
    return f"var(--s{slot + 1},{SERIES_COLOURS[slot]})"


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: What the legend and the tooltip say.
        points: (x, y) in the order of x; a y that is None or not finite leaves a gap.
        colour: Index for `series_colour`.
        faint: Drawn thin and pale, for raw values behind a smooth curve.
        mark: (x, y) that gets a ring, e.g. the best checkpoint.
        dots: Each point gets a dot, for curves of few points.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: int = 0
    faint: bool = False
    mark: tuple[float, float] | None = None
    dots: bool = False


@dataclass(frozen=True)
class Strip:
    """The values of all cases for one model.

    Attributes:
        name: Row label.
        cases: (case name, value) pairs; values that are None or not finite are left out.
        colour: Index for `series_colour`.
    """

    name: str
    cases: Sequence[tuple[str, float | None]] = field(default_factory=tuple)
    colour: int = 0


def line_chart(
    lines: Sequence[Line], *, title: str, x_label: str = "step", log: bool = False, width: int = 560, height: int = 250
) -> str:
    """Return a chart of curves.

    Args:
        lines: Curves; those without a finite point are left out.
        title: Shown above, and read by screen readers.
        x_label: Below the horizontal axis.
        log: Logarithmic vertical axis, if all values are positive.
        width: In px at full size; the chart shrinks with its column.
        height: In px.
    """
    values = [y for line in lines for _, y in line.points if _finite(y)]
    steps = [x for line in lines for x, y in line.points if _finite(y)]
    if not values:
        return _frame(width, 80, title, f"<text x='16' y='56' class='t'>{escape('nothing was recorded')}</text>")
    log = log and min(values) > 0
    low, high = _robust_range(values)
    if log:
        low, high = math.log10(max(low, 1e-300)), math.log10(high)
    low, high, ticks = _ticks(low, high, 4) if not log else _log_ticks(low, high)
    left, right, top, bottom = 58, 18, 34, 40
    x_low, x_high = min(steps), max(steps)
    x_low = 0 if 0 < x_low < 0.3 * x_high else x_low
    span, x_ticks = x_high - x_low or 1, _ticks(x_low, x_high, 5)[2]

    def place(x: float, y: float) -> tuple[float, float]:
        y = math.log10(y) if log else y
        share = min(1.04, max(-0.04, (y - low) / (high - low)))
        across = left + (x - x_low) / span * (width - left - right)
        return round(across, 1), round(top + (1 - share) * (height - top - bottom), 1)

    parts = []
    for tick in ticks:
        y = place(x_low, 10**tick if log else tick)[1]
        label = _number(10**tick) if log else _number(tick)
        parts.append(f"<line x1='{left}' x2='{width - right}' y1='{y}' y2='{y}' class='g'/>")
        parts.append(f"<text x='{left - 8}' y='{y + 4}' class='t' text-anchor='end'>{label}</text>")
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            x = place(tick, 10**low if log else low)[0]
            parts.append(
                f"<text x='{x}' y='{height - bottom + 18}' class='t' text-anchor='middle'>{_number(tick)}</text>"
            )
    parts.append(f"<text x='{width - right}' y='{height - 2}' class='t' text-anchor='end'>{escape(x_label)}</text>")
    for line in lines:
        colour = series_colour(line.colour)
        style = "stroke-width='1' opacity='.28'" if line.faint else "stroke-width='2'"
        for piece in _pieces(line.points):
            path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in piece))
            if len(piece) > 1:
                parts.append(
                    f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-linejoin='round' {style}/>"
                )
            if line.dots or len(piece) == 1:
                for point in piece:
                    x, y = place(*point)
                    hint = f"{escape(line.name)}: {_number(point[1])} at {_number(point[0])}"
                    parts.append(f"<circle cx='{x}' cy='{y}' r='2.6' fill='{colour}'><title>{hint}</title></circle>")
        if line.mark is not None and _finite(line.mark[1]) and x_low <= line.mark[0] <= x_high:
            x, y = place(*line.mark)
            hint = f"{escape(line.name)}, best: {_number(line.mark[1])} at {_number(line.mark[0])}"
            parts.append(
                f"<circle cx='{x}' cy='{y}' r='6' class='ring' stroke='{colour}'><title>{hint}</title></circle>"
            )
    return _frame(width, height, title, "".join(parts))


def strip_chart(strips: Sequence[Strip], *, title: str, unit: str = "", width: int = 1080) -> str:
    """Return one row a model: every case a dot, the box from the first to the third quartile, the median, the mean.

    Args:
        strips: Rows from top to bottom.
        title: Shown above.
        unit: Behind the numbers of the axis, e.g. ``"mm"``.
        width: In px at full size.
    """
    rows = [(strip, sorted((value, name) for name, value in strip.cases if _finite(value))) for strip in strips]
    values = [value for _, cases in rows for value, _ in cases]
    row_height, top, bottom = 58, 34, 30
    height = top + row_height * len(rows) + bottom
    if not values:
        return _frame(width, 80, title, "<text x='16' y='56' class='t'>no case has a value</text>")
    low, high, ticks = _ticks(min(values), max(values), 6)
    left, right = min(240, 24 + max(7 * len(strip.name[:28]) for strip in strips)), 22
    span = high - low

    def place(value: float) -> float:
        return round(left + (value - low) / span * (width - left - right), 1)

    parts = []
    for tick in ticks:
        x = place(tick)
        label = f"{_number(tick)} {escape(unit)}".strip()
        parts.append(f"<line x1='{x}' x2='{x}' y1='{top}' y2='{height - bottom}' class='g'/>")
        parts.append(f"<text x='{x}' y='{height - bottom + 18}' class='t' text-anchor='middle'>{label}</text>")
    for number, (strip, cases) in enumerate(rows):
        middle = top + row_height * number + row_height / 2
        colour = series_colour(strip.colour)
        name = strip.name if len(strip.name) <= 28 else strip.name[:27] + "…"
        parts.append(f"<text x='{left - 12}' y='{middle + 4}' class='n' text-anchor='end'>{escape(name)}</text>")
        if not cases:
            parts.append(f"<text x='{left + 8}' y='{middle + 4}' class='t'>no test result</text>")
            continue
        ordered = [value for value, _ in cases]
        first, median, third = (quantile(ordered, share) for share in (0.25, 0.5, 0.75))
        x, y = place(first), middle - 16
        parts.append(
            f"<rect x='{x}' y='{y}' width='{max(1.0, round(place(third) - x, 1))}' height='32' rx='4' "
            f"fill='{colour}' opacity='.14'/>"
        )
        parts.append(
            f"<line x1='{place(median)}' x2='{place(median)}' y1='{y}' y2='{y + 32}' stroke='{colour}' stroke-width='2'/>"
        )
        offsets = _swarm([place(value) for value in ordered], radius=3.4, room=20)
        for (value, case), offset in zip(cases, offsets, strict=True):
            hint = f"{escape(case)}: {_number(value)} {escape(unit)}".strip()
            parts.append(
                f"<circle cx='{place(value)}' cy='{round(middle + offset, 1)}' r='3.2' fill='{colour}' opacity='.8'>"
                f"<title>{hint}</title></circle>"
            )
        mean = sum(ordered) / len(ordered)
        x = place(mean)
        parts.append(
            f"<path d='M{x} {middle - 22}l5 -7h-10z' fill='{colour}'><title>mean {_number(mean)} {escape(unit)}</title></path>"
        )
    return _frame(width, height, title, "".join(parts))


def interval_bar(
    mean: float, interval: Sequence[float] | None, limits: tuple[float, float], *, colour: int = 0, width: int = 150
) -> str:
    """Return a small bar that shows a mean and its interval on an axis shared by the rows of a table."""
    low, high = limits
    span = (high - low) or 1

    def place(value: float) -> float:
        return round(6 + min(1, max(0, (value - low) / span)) * (width - 12), 1)

    tint = series_colour(colour)
    parts = [f"<line x1='6' x2='{width - 6}' y1='9' y2='9' class='g'/>"]
    if interval is not None:
        parts.append(
            f"<line x1='{place(interval[0])}' x2='{place(interval[1])}' y1='9' y2='9' stroke='{tint}' stroke-width='5' "
            "stroke-linecap='round' opacity='.35'/>"
        )
    parts.append(f"<circle cx='{place(mean)}' cy='9' r='4.5' fill='{tint}'/>")
    return f"<svg class='bar' viewBox='0 0 {width} 18' width='{width}' height='18' aria-hidden='true'>{''.join(parts)}</svg>"


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
                and _finite(record.get("value"))
                and _finite(record.get("step"))
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
        values = [y for line in lines for _, y in line.points if _finite(y)]
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
        if row.get("split") != split or name not in row or not _finite(row.get("step")):
            continue
        value = row[name]
        while points and points[-1][0] >= row["step"]:
            points.pop()
        points.append((row["step"], value if _finite(value) else None))
    return points


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the quantile of sorted values by linear interpolation."""
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def _waiting_share(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float | None]]:
    """Return the share that the engine measured, else what the durations of iterations say."""
    measured = curve(rows, "train", "data_wait")
    if measured:
        return measured
    waits, whole = dict(curve(rows, "train", "data_time")), curve(rows, "train", "iter_time")
    known = ((step, waits.get(step), total) for step, total in whole)
    return [
        (step, wait / total if _finite(wait) and _finite(total) and total > 0 else None) for step, wait, total in known
    ]


def _names(rows: Iterable[Mapping[str, Any]], split: str) -> list[str]:
    skip = {"step", "split", "time", "iter_time", "data_time", "epoch"}
    return [name for row in rows if row.get("split") == split for name in row if name not in skip]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _smooth(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """Return the mean over a window around each point, which is a fortieth of the curve to each side."""
    reach = len(points) // 40
    total, count, sums = 0.0, 0, [(0.0, 0)]
    for _, y in points:
        total, count = (total + y, count + 1) if _finite(y) else (total, count)
        sums.append((total, count))
    smooth = []
    for number, (x, y) in enumerate(points):
        side = min(reach, number, len(points) - 1 - number)
        (low, before), (high, after) = sums[number - side], sums[number + side + 1]
        smooth.append((x, (high - low) / (after - before) if _finite(y) else None))
    return smooth


def _thin(points: Sequence[tuple[float, float | None]], most: int) -> list[tuple[float, float | None]]:
    """Return at most about `most` points, the ends and every gap kept."""
    if len(points) <= most:
        return list(points)
    stride = len(points) / most
    chosen = {int(number * stride) for number in range(most)} | {len(points) - 1}
    return [point for number, point in enumerate(points) if number in chosen or point[1] is None]


def _pieces(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if _finite(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _robust_range(values: Sequence[float]) -> tuple[float, float]:
    """Return lowest and highest value, a few extreme ones cut off so that they do not flatten all others."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    if len(ordered) >= 20:
        inner_low, inner_high = quantile(ordered, 0.02), quantile(ordered, 0.98)
        room = (inner_high - inner_low) or abs(inner_high) or 1
        low, high = max(low, inner_low - room), min(high, inner_high + room)
    return low, high


def _ticks(low: float, high: float, count: int) -> tuple[float, float, list[float]]:
    """Return limits and round tick values that cover [low, high]."""
    if high - low < 1e-12 * max(1.0, abs(low), abs(high)):
        pad = abs(low) * 0.1 or 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / count
    base = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * base for factor in (1, 2, 2.5, 5, 10) if factor * base >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [number * step for number in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def _log_ticks(low: float, high: float) -> tuple[float, float, list[float]]:
    """Return limits and ticks as powers of ten, finer where few decades are shown."""
    if high - low < 1e-9:
        low, high = low - 0.2, high + 0.2
    steps = (1,) if high - low > 3 else (1, 3) if high - low > 1.2 else (1, 2, 5)
    ticks = [e + math.log10(s) for e in range(math.floor(low) - 1, math.ceil(high) + 1) for s in steps]
    return low, high, [tick for tick in ticks if low - 1e-9 <= tick <= high + 1e-9] or [low, high]


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 10_000 and float(value).is_integer() and value % 1000 == 0:
        return f"{value / 1000:g}k"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"


def _swarm(places: Sequence[float], *, radius: float, room: float) -> list[float]:
    """Return vertical offsets so that dots (sorted by place) do not hide each other, within ±`room`."""
    offsets: list[float] = []
    tries = [0.0]
    for number in range(1, int(room / radius) + 1):
        tries += [number * radius, -number * radius]
    for number, x in enumerate(places):
        near = [(places[k], offsets[k]) for k in range(number) if x - places[k] < 2 * radius]
        free = next(
            (o for o in tries if all((x - a) ** 2 + (o - b) ** 2 >= (1.9 * radius) ** 2 for a, b in near)), None
        )
        offsets.append(tries[number % len(tries)] if free is None else free)
    return offsets


def _frame(width: int, height: int, title: str, body: str) -> str:
    style = (
        ".t{font-size:11px;fill:var(--faint,#6b7280)}.n{font-size:13px;fill:var(--ink,#1f2430)}"
        ".h{font-size:13px;font-weight:600;fill:var(--ink,#1f2430)}.g{stroke:var(--line,#d9dce3);stroke-width:1}"
        ".ring{fill:none;stroke-width:2.5}"
    )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' class='chart' viewBox='0 0 {width} {height}' width='{width}' "
        f"height='{height}' role='img' aria-label='{escape(title, quote=True)}' {_FONT}><style>{style}</style>"
        f"<text x='16' y='19' class='h'>{escape(title)}</text>{body}</svg>"
    )
