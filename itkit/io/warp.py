"""The mathematics of turning and bending a grid: rotation matrices and the cubic B-spline basis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SPLINE_ORDER = 3


def rotation_matrix(degrees: Sequence[float], axes: int) -> np.ndarray:
    """Return the matrix that turns (Z, Y, X) or (Y, X) vectors.

    A positive angle turns the content of an array as ``np.rot90`` does: about Z in the plane (Y, X), about Y in (Z, X),
    about X in (Z, Y). In 3D the turn about X comes first, about Z last.

    Args:
        degrees: Angles about Z, Y and X; in 2D only the first counts.
        axes: 2 or 3.

    Returns:
        (axes, axes), float64.
    """
    planes = [(0, 1)] if axes == 2 else [(1, 2), (0, 2), (0, 1)]
    matrix = np.eye(axes)
    for angle, (a, b) in zip(degrees, planes, strict=False):
        turn = np.eye(axes)
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        turn[a, a], turn[a, b], turn[b, a], turn[b, b] = cosine, -sine, sine, cosine
        matrix = matrix @ turn
    return matrix


def spline_basis(points: int, controls: int) -> np.ndarray:
    """Return the uniform cubic B-spline basis that spreads `controls` values over `points` samples.

    Each row is non-negative and sums to one, so that a spline stays between its smallest and largest control value.

    Args:
        points: Samples along the axis.
        controls: Control values, at least 4.

    Returns:
        (points, controls), float32.
    """
    position = np.arange(points) / max(points - 1, 1) * (controls - SPLINE_ORDER)
    first = np.minimum(position.astype(int), controls - SPLINE_ORDER - 1)
    t = position - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    basis = np.zeros((points, controls), np.float32)
    np.put_along_axis(basis, first[:, None] + np.arange(4), weights.astype(np.float32), axis=1)
    return basis
