"""Small charts as SVG text that follows the colours of the page around it: curves, strips of cases, intervals."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

SERIES_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5CC6", "#8A8F98")
"""Models in their order, after Okabe and Ito; a page may set ``--s1`` ... ``--s8`` to other values."""

MOST_DOTS = 600
"""Dots in one row of a chart; more of them say nothing and make a page slow."""

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
    values = [y for line in lines for _, y in line.points if is_number(y)]
    steps = [x for line in lines for x, y in line.points if is_number(y)]
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
        if line.mark is not None and is_number(line.mark[1]) and x_low <= line.mark[0] <= x_high:
            x, y = place(*line.mark)
            hint = f"{escape(line.name)}, best: {_number(line.mark[1])} at {_number(line.mark[0])}"
            parts.append(
                f"<circle cx='{x}' cy='{y}' r='6' class='ring' stroke='{colour}'><title>{hint}</title></circle>"
            )
    return _frame(width, height, title, "".join(parts))


def strip_chart(strips: Sequence[Strip], *, title: str, unit: str = "", width: int = 1080, zero: bool = False) -> str:
    """Return one row a model: every case a dot, the box from the first to the third quartile, the median, the mean.

    Of a row with more than `MOST_DOTS` cases only the outermost ones are dots.

    Args:
        strips: Rows from top to bottom.
        title: Shown above.
        unit: Behind the numbers of the axis, e.g. ``"mm"``.
        width: In px at full size.
        zero: Draw a line at 0, for differences; the axis then holds it.
    """
    rows = [(strip, sorted((value, name) for name, value in strip.cases if is_number(value))) for strip in strips]
    values = [value for _, cases in rows for value, _ in cases]
    row_height, top, bottom = 58, 34, 30
    height = top + row_height * len(rows) + bottom
    if not values:
        return _frame(width, 80, title, "<text x='16' y='56' class='t'>no case has a value</text>")
    if zero:
        values.append(0.0)
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
    if zero:
        x = place(0.0)
        parts.append(f"<line x1='{x}' x2='{x}' y1='{top}' y2='{height - bottom}' class='z'/>")
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
        dots = cases if len(cases) <= MOST_DOTS else cases[: MOST_DOTS // 2] + cases[-MOST_DOTS // 2 :]
        offsets = _swarm([place(value) for value, _ in dots], radius=3.4, room=20)
        for (value, case), offset in zip(dots, offsets, strict=True):
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


def histogram_chart(
    values: Sequence[float],
    *,
    title: str,
    unit: str = "",
    weights: Sequence[float] | None = None,
    bins: int = 24,
    colour: int = 0,
    width: int = 440,
    height: int = 190,
) -> str:
    """Return how often values occur: one bar an interval, a few extreme values gathered in the outermost bars.

    Args:
        values: Numbers; those that are not finite are left out.
        title: Shown above.
        unit: Behind the numbers of the axis.
        weights: What each value counts; None: one each.
        bins: Number of bars.
        colour: Index for `series_colour`.
        width: In px at full size.
        height: Likewise.
    """
    weights = [1.0] * len(values) if weights is None else weights
    pairs = [(float(value), weight) for value, weight in zip(values, weights, strict=True) if is_number(value)]
    if not pairs:
        return _frame(width, 80, title, "<text x='16' y='56' class='t'>no case has a value</text>")
    low, high, ticks = _ticks(*_robust_range([value for value, _ in pairs]), 5)
    left, right, top, bottom = 16, 16, 30, 28
    heights = [0.0] * bins
    for value, weight in pairs:
        heights[min(bins - 1, max(0, int((value - low) / (high - low) * bins)))] += weight
    step, room = (width - left - right) / bins, height - top - bottom
    parts = [f"<line x1='{left}' x2='{width - right}' y1='{height - bottom}' y2='{height - bottom}' class='g'/>"]
    for number, count in enumerate(heights):
        if count:
            tall = max(1.0, round(count / max(heights) * room, 1))
            ends = [low + (number + side) * (high - low) / bins for side in (0, 1)]
            hint = f"{_number(ends[0])} to {_number(ends[1])} {escape(unit)}: {_number(count)}"
            parts.append(
                f"<rect x='{round(left + number * step + 0.5, 1)}' y='{round(height - bottom - tall, 1)}' "
                f"width='{round(step - 1, 1)}' height='{tall}' fill='{series_colour(colour)}' opacity='.8'>"
                f"<title>{hint}</title></rect>"
            )
    for tick in ticks:
        x = round(left + (tick - low) / (high - low) * (width - left - right), 1)
        anchor = "start" if x <= left + 4 else "end" if x >= width - right - 4 else "middle"
        parts.append(
            f"<text x='{x}' y='{height - bottom + 16}' class='t' text-anchor='{anchor}'>{_number(tick)}</text>"
        )
    if unit:
        parts.append(f"<text x='{width - right}' y='19' class='t' text-anchor='end'>{escape(unit)}</text>")
    return _frame(width, height, title, "".join(parts))


def stack_charts(charts: Sequence[str]) -> str:
    """Return several charts of this file as one below the other on a white ground, for a file of its own.

    Colours that a page would decide become fixed ones, which every program can draw.
    """
    sizes = [re.search(r"width='(\d+)' height='(\d+)' role", chart).groups() for chart in charts]
    width, height, parts = max(int(w) for w, _ in sizes), 0, []
    for chart, (_, own) in zip(charts, sizes, strict=True):
        fixed = re.sub(r"var\(--\w+,(#\w+)\)", r"\1", chart)
        parts.append(fixed.replace("<svg ", f"<svg y='{height}' ", 1))
        height += int(own)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}'>"
        f"<rect width='{width}' height='{height}' fill='#ffffff'/>{''.join(parts)}</svg>\n"
    )


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


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the quantile of sorted values by linear interpolation."""
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def is_number(value: Any) -> bool:
    """Return whether `value` is a finite number (bool is none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _pieces(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if is_number(y):
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
        ".z{stroke:var(--faint,#6b7280);stroke-width:1.5;stroke-dasharray:4 3}.ring{fill:none;stroke-width:2.5}"
    )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' class='chart' viewBox='0 0 {width} {height}' width='{width}' "
        f"height='{height}' role='img' aria-label='{escape(title, quote=True)}' {_FONT}><style>{style}</style>"
        f"<text x='16' y='19' class='h'>{escape(title)}</text>{body}</svg>"
    )
