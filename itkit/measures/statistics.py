"""From values of cases to statements about a model: mean, confidence interval, comparison of models.

A *table* here is a float array (cases, classes), NaN where a value is undefined. The mean of a table is defined in this
file only: first the mean over cases of each class, undefined values left out, then the mean over the classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from itkit.errors import UsageError

RESAMPLES = 2000
"""Bootstrap resamples unless told otherwise: the limits of a 95 % interval then vary by a few percent of its width."""

EXACT_CASES = 200
"""Up to so many cases with a difference the signed-rank test is exact, beyond it a normal approximation."""

_CHUNK = 1 << 22  # numbers held at once while resampling
_KEPT = 1 << 20  # draws of up to so many numbers are kept for the next table of as many cases


def mean_over_cases(table: np.ndarray) -> np.ndarray:
    """Return the mean of each class over the cases that have a value: (classes,), NaN for a class that has none."""
    table = _as_table(table)
    valid = ~np.isnan(table)
    count = valid.sum(0)
    total = np.where(valid, table, 0.0).sum(0)
    return np.divide(total, count, out=np.full(table.shape[1], np.nan), where=count > 0)


def overall_mean(table: np.ndarray) -> float:
    """Return the mean over classes of the means over cases; classes without any value are left out, NaN if all are."""
    return _nanmean(mean_over_cases(table))


def bootstrap_interval(
    table: np.ndarray, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of `overall_mean`, cases being what is drawn with replacement.

    The classes of a case are drawn together, for they are not independent. The same table and seed give the same
    interval, to the bit. Source: B. Efron, Bootstrap methods: another look at the jackknife, Ann. Statist. 7 (1979).

    Args:
        table: (cases, classes) or (cases,), NaN where undefined.
        level: Share of the resampled means that the interval holds.
        resamples: Number of resamples.
        seed: Of the generator that draws the cases.

    Returns:
        ``(low, high)``, or None with fewer than two cases that have a value: nothing can be said then.

    Raises:
        UsageError: If `level` does not lie between 0 and 1, or `resamples` is below 1.
    """
    _check_bootstrap(level, resamples)
    table = _as_table(table)
    table = table[~np.isnan(table).all(axis=1)]
    cases, classes = table.shape
    if cases < 2:
        return None
    valid = ~np.isnan(table)
    filled = np.where(valid, table, 0.0)
    means, start = np.empty(resamples), 0
    for drawn in _draws(cases, resamples, seed, max(1, _CHUNK // max(cases, classes))):
        size = len(drawn)
        # einsum, not a matrix product: its order of summation does not depend on the number of threads
        total, count = np.einsum("rn,nk->rk", drawn, filled), np.einsum("rn,nk->rk", drawn, valid.astype(float))
        by_class = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
        means[start : start + size] = by_class.sum(1) / (count > 0).sum(1)
        start += size
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def median_interval(
    values: np.ndarray, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of the median.

    Args:
        values: (cases,), NaN where undefined; these are left out.
        level: Share of the resampled medians that the interval holds.
        resamples: Number of resamples.
        seed: Of the generator that draws the cases.

    Returns:
        ``(low, high)``, or None with fewer than two values.

    Raises:
        UsageError: If `level` does not lie between 0 and 1, or `resamples` is below 1.
    """
    _check_bootstrap(level, resamples)
    values = np.asarray(values, float)
    ordered = np.sort(values[~np.isnan(values)])
    cases = len(ordered)
    if cases < 2:
        return None
    medians = []
    for drawn in _draws(cases, resamples, seed, max(1, _CHUNK // cases)):
        reached = np.cumsum(drawn, axis=1)  # how many of the drawn values are at most this one
        lower = (reached >= (cases + 1) // 2).argmax(1)
        upper = (reached >= cases // 2 + 1).argmax(1)
        medians.append((ordered[lower] + ordered[upper]) / 2)
    low, high = np.quantile(np.concatenate(medians), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def signed_rank_test(differences: np.ndarray) -> float | None:
    """Return the two-sided p-value of the Wilcoxon signed-rank test.

    Differences of zero are left out (Wilcoxon's rule), equal ones share the mean of their ranks; what differs by less than
    1e-12 of the largest difference is equal (rounding). With up to `EXACT_CASES` differences the distribution of the
    rank sum over all signs is computed exactly, ties or not; with more of them it is taken for normal, its variance
    corrected for ties. Source: F. Wilcoxon, Individual comparisons by ranking methods, Biometrics Bulletin 1 (1945).

    Args:
        differences: One for each case, (cases,); NaN are left out.

    Returns:
        0 to 1; 1 if all differences are zero, None with fewer than two cases.
    """
    differences = np.asarray(differences, float)
    differences = differences[~np.isnan(differences)]
    if len(differences) < 2:
        return None
    largest = np.abs(differences).max()
    if largest == 0:
        return 1.0
    differences = np.round(differences / largest, 12)
    differences = differences[differences != 0]
    _, place, ties = np.unique(np.abs(differences), return_inverse=True, return_counts=True)
    doubled = (2 * np.cumsum(ties) - ties + 1)[place]  # twice the mean rank: whole numbers
    total = int(doubled.sum())
    smaller = min(int(doubled[differences > 0].sum()), int(doubled[differences < 0].sum()))
    count = len(differences)
    if count > EXACT_CASES:
        deviation = math.sqrt(count * (count + 1) * (2 * count + 1) / 24 - float((ties**3 - ties).sum()) / 48)
        return min(1.0, math.erfc((total / 2 - smaller) / 2 / deviation / math.sqrt(2)))
    chance = np.zeros(total + 1)  # of each doubled rank sum of the positive differences, signs being fair coins
    chance[0] = 1.0
    for rank in doubled:
        chance[rank:] = (chance[rank:] + chance[:-rank]) / 2
        chance[:rank] /= 2
    return min(1.0, 2 * float(chance[: smaller + 1].sum()))


def adjust_holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted after Holm for the number of tests; None stays None and counts as no test.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
    """
    order = sorted((p, number) for number, p in enumerate(p_values) if p is not None)
    adjusted, running = list(p_values), 0.0
    for place, (p, number) in enumerate(order):
        running = max(running, min(1.0, (len(order) - place) * p))
        adjusted[number] = running
    return adjusted


def compare_paired(
    first: np.ndarray, second: np.ndarray, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Compare two models on the same cases.

    Args:
        first: Table of the one model, (cases, classes) or (cases,), NaN where undefined.
        second: Table of the other, same cases and classes in the same order.
        level: Of the confidence interval.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        ``{"difference", "interval", "p_value", "cases"}``: the overall mean of ``second - first`` where both are
        defined, its bootstrap interval (None with fewer than two cases), the two-sided p-value of the Wilcoxon
        signed-rank test on the cases' mean differences (1 if all are equal, None with fewer than two cases), and
        the number of cases.

    Raises:
        UsageError: If the tables have different shapes.
    """
    first, second = _as_table(first), _as_table(second)
    if first.shape != second.shape:
        raise UsageError(
            f"a paired comparison needs the same cases and classes of both models; the tables are {first.shape} and "
            f"{second.shape} (cases, classes)."
        )
    change = second - first
    change = change[~np.isnan(change).all(axis=1)]
    by_case = mean_over_cases(change.T)
    return {
        "difference": overall_mean(change),
        "interval": bootstrap_interval(change, level=level, resamples=resamples, seed=seed),
        "p_value": signed_rank_test(by_case),
        "cases": len(by_case),
    }


def case_table(rows: Sequence[Mapping[str, Any]], measure: str, classes: Sequence[str]) -> np.ndarray:
    """Return the (cases, classes) table of one measure from rows ``{"<measure>/<class>": value or None, ...}``."""
    values = [[row.get(f"{measure}/{name}") for name in classes] for row in rows]
    table = np.array([[math.nan if value is None else value for value in row] for row in values], float)
    return table.reshape(len(rows), len(classes))


def summarise(
    rows: Sequence[Mapping[str, Any]], measure: str, classes: Sequence[str], **bootstrap: Any
) -> dict[str, Any]:
    """Return what a result table says about one measure, ready for JSON.

    Args:
        rows: One mapping a case, ``"<measure>/<class>"`` -> number, or None where undefined.
        measure: E.g. ``"Dice"``.
        classes: Names of the classes that count, normally without the background.
        bootstrap: `level`, `resamples`, `seed` of `bootstrap_interval`.

    Returns:
        ``{"mean": ..., "per_class": {name: ...}, "ci95": [low, high]}``; None in place of what is undefined.
    """
    table = case_table(rows, measure, classes)
    interval = bootstrap_interval(table, **bootstrap)
    return {
        "mean": _or_none(overall_mean(table)),
        "per_class": {name: _or_none(value) for name, value in zip(classes, mean_over_cases(table), strict=True)},
        "ci95": None if interval is None else list(interval),
    }


def _check_bootstrap(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise UsageError(f"level of a confidence interval must lie between 0 and 1, e.g. 0.95; found {level}.")
    if resamples < 1:
        raise UsageError(f"resamples must be at least 1; found {resamples}.")


def _draws(cases: int, resamples: int, seed: int, rows: int) -> Iterator[np.ndarray]:
    """Yield how often each case is drawn, (up to `rows`, cases) float64, in all `resamples` rows; not writable."""
    if cases * resamples <= _KEPT and resamples <= rows:
        yield _kept_draws(cases, resamples, seed)
        return
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        yield generator.multinomial(cases, np.full(cases, 1 / cases), size=size).astype(float)


@functools.lru_cache(maxsize=8)
def _kept_draws(cases: int, resamples: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).multinomial(cases, np.full(cases, 1 / cases), size=resamples).astype(float)
    drawn.flags.writeable = False
    return drawn


def _as_table(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    return values[:, None] if values.ndim == 1 else values


def _nanmean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.sum() / len(known)) if len(known) else math.nan


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
