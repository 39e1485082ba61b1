"""The formulas that change intensities; transforms, tools and the predictor all lead here."""

from __future__ import annotations

import math

import numpy as np

from itkit.errors import UsageError


def window(array: np.ndarray, level: float, width: float) -> np.ndarray:
    """Map the window ``level - width/2 ... level + width/2`` linearly to 0 ... 1 and clip what lies outside.

    Args:
        array: Any shape, any number type (HU for CT). Not modified.
        level: Centre of the window, in the array's unit.
        width: Its width, same unit, positive.

    Returns:
        float32, same shape, within [0, 1].

    Raises:
        UsageError: If `width` is not positive and finite, or `level` is not finite.
    """
    if not (math.isfinite(level) and math.isfinite(width) and width > 0):
        raise UsageError(f"window needs a finite level and a positive width; got level {level}, width {width}.")
    scaled = (_floating(array) - (level - width / 2)) / width
    return np.clip(scaled, 0, 1, out=scaled).astype(np.float32, copy=False)


def zscore(array: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Shift and scale to mean 0 and standard deviation 1 (of the population, no Bessel correction).

    Args:
        array: Any shape. Not modified.
        mask: Boolean, broadcastable to `array`: the voxels that mean and deviation are taken from; all voxels are still
            scaled. None, or a mask without a voxel: all voxels.

    Returns:
        float32, same shape. Where the masked voxels are constant: their difference to that constant, not scaled.
    """
    values = _selected(array, mask)
    mean, deviation = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    # Rounding alone makes a tiny deviation out of a large constant.
    if deviation <= 1e-7 * max(abs(mean), np.finfo(np.float32).tiny):
        deviation = 1.0
    return ((_floating(array) - mean) / deviation).astype(np.float32, copy=False)


def percentile_scale(
    array: np.ndarray,
    lower: float = 0.5,
    upper: float = 99.5,
    *,
    mask: np.ndarray | None = None,
    clip: bool = True,
) -> np.ndarray:
    """Map the `lower` percentile to 0 and the `upper` percentile to 1, linearly.

    Args:
        array: Any shape. Not modified.
        lower: Percent, 0 to 100, below `upper`.
        upper: Percent.
        mask: As for `zscore`: where the percentiles are taken.
        clip: Cut the result to [0, 1].

    Returns:
        float32, same shape. Zeros where the two percentiles are the same value (constant image).

    Raises:
        UsageError: If the percentiles are not 0 <= lower < upper <= 100.
    """
    low, high = _percentiles(array, lower, upper, mask)
    if high <= low:
        return np.zeros(array.shape, np.float32)
    scaled = (_floating(array) - low) / (high - low)
    if clip:
        np.clip(scaled, 0, 1, out=scaled)
    return scaled.astype(np.float32, copy=False)


def clip_percentiles(
    array: np.ndarray, lower: float = 0.5, upper: float = 99.5, *, mask: np.ndarray | None = None
) -> np.ndarray:
    """Cut `array` to the range between two of its percentiles.

    Args:
        array: Any shape. Not modified.
        lower: Percent, 0 to 100, below `upper`.
        upper: Percent.
        mask: As for `zscore`: where the percentiles are taken.

    Returns:
        Same shape and type; the bounds are rounded to whole numbers for integer types.

    Raises:
        UsageError: If the percentiles are not 0 <= lower < upper <= 100.
    """
    low, high = _percentiles(array, lower, upper, mask)
    if array.dtype.kind in "iu":
        low, high = round(low), round(high)
    return np.clip(array, array.dtype.type(low), array.dtype.type(high))


def _floating(array: np.ndarray) -> np.ndarray:
    """A floating-point copy that holds every value: float32 for up to 16-bit integers and floats, else float64."""
    small = array.dtype.itemsize <= 2 or array.dtype == np.float32
    return array.astype(np.float32 if small else np.float64)


def _selected(array: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    if mask is None:
        return array
    values = array[np.broadcast_to(np.asarray(mask, bool), array.shape)]
    return values if values.size else array


def _percentiles(array: np.ndarray, lower: float, upper: float, mask: np.ndarray | None) -> tuple[float, float]:
    if not 0 <= lower < upper <= 100:
        raise UsageError(f"percentiles need 0 <= lower < upper <= 100; got lower {lower}, upper {upper}.")
    low, high = np.percentile(_selected(array, mask), (lower, upper))
    return float(low), float(high)
