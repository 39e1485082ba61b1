"""How the numbers of a metric are shown, by its name: unit and decimals."""

from __future__ import annotations

import math

_MILLIMETRES = ("HD", "ASSD", "ASD", "MSD")


def unit_of(metric: str) -> str:
    """Return ``"mm"`` for distances, an empty string for fractions."""
    return "mm" if metric.rpartition("/")[2].upper().startswith(_MILLIMETRES) else ""


def format_value(value: float | None, metric: str) -> str:
    """Return a number as tables show it: three decimals for fractions, two for distances, a dash for None."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–"
    return f"{value:.2f}" if unit_of(metric) else f"{value:.3f}"
