"""The place of a volume in space: what is possible, and when two volumes share one grid."""

from __future__ import annotations

import functools
import itertools
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from itkit.errors import GeometryError

ORTHONORMAL_ATOL = 1e-3
"""Largest allowed element of ``|D D^T - I|`` for a direction matrix D."""
SPACING_RTOL_EQUAL, SPACING_RTOL_WARN = 1e-3, 1e-2
"""Relative difference of two spacings, per axis."""
ORIGIN_RTOL_EQUAL, ORIGIN_RTOL_WARN = 1e-2, 1e-1
"""Distance of two origins as a fraction of the image's smallest spacing."""
DIRECTION_ATOL_EQUAL, DIRECTION_ATOL_WARN = 1e-3, 1e-2
"""Largest difference of two elements of the direction matrices."""


@dataclass(frozen=True)
class Geometry:
    """A voxel grid in space, in SimpleITK's frame (x to the patient's left, y to posterior, z to superior).

    Attributes:
        size_zyx: Voxels along (Z, Y, X).
        spacing_zyx: Distance of voxel centres in mm, order (Z, Y, X).
        origin_xyz: Physical place of the first voxel's centre in mm, order (X, Y, Z).
        direction_xyz: Nine numbers, row by row; column k is the direction of index axis k, order (X, Y, Z).
    """

    size_zyx: tuple[int, int, int]
    spacing_zyx: tuple[float, float, float]
    origin_xyz: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction_xyz: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    @property
    def geometry(self) -> Geometry:
        """Itself, so that a grid can stand where a volume or a header can."""
        return self


class Match(Enum):
    """How well two geometries agree."""

    EQUAL = "equal"
    WARN = "warn"
    ERROR = "error"


def require_possible(geometry: Geometry, path: str | os.PathLike | None = None) -> None:
    """Refuse a geometry that no scanner and no honest program makes.

    Args:
        geometry: The grid to check.
        path: File to name in the message.

    Raises:
        GeometryError: If a size is not positive, a spacing or the origin is not finite, a spacing is not positive, or the
            direction is not orthonormal within `ORTHONORMAL_ATOL`.
    """
    if len(geometry.size_zyx) != 3 or min(geometry.size_zyx) < 1:
        raise GeometryError(f"size {tuple(geometry.size_zyx)} (Z, Y, X) has an axis without voxels.", path)
    require_spacing(geometry.spacing_zyx, path)
    if not all(math.isfinite(value) for value in geometry.origin_xyz):
        raise GeometryError(f"origin {tuple(geometry.origin_xyz)} mm (X, Y, Z) is not finite. Fix the header.", path)
    deviation = direction_deviation(geometry.direction_xyz)
    if not deviation <= ORTHONORMAL_ATOL:
        raise GeometryError(
            f"direction {_numbers(geometry.direction_xyz)} is not orthonormal (off by {deviation:.3g}, allowed "
            f"{ORTHONORMAL_ATOL:g}). Fix the header, or repair it with --fix-geometry, e.g. of itk_orient "
            "(itkit.io.repair.fix_geometry).",
            path,
        )


def require_spacing(spacing_zyx: tuple[float, ...], path: str | os.PathLike | None = None) -> None:
    """Raise `GeometryError` unless every spacing is a positive finite number of mm."""
    if not all(math.isfinite(value) and value > 0 for value in spacing_zyx):
        raise GeometryError(
            f"spacing {_numbers(spacing_zyx)} mm (Z, Y, X) is not positive and finite. Fix the header.", path
        )


def direction_deviation(direction_xyz: Sequence[float]) -> float:
    """Return how far nine direction numbers are from orthonormal: the largest element of ``|D D^T - I|``, NaN if one is."""
    return _direction_deviation(tuple(direction_xyz))


@functools.lru_cache(maxsize=256)  # the volumes of a folder share a few directions
def _direction_deviation(direction_xyz: tuple[float, ...]) -> float:
    rows = [direction_xyz[k : k + 3] for k in (0, 3, 6)]
    return _largest(
        [
            abs(sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) - (i == j))
            for i in range(3)
            for j in range(i, 3)
        ]
    )


def index_to_world(geometry: Geometry) -> np.ndarray:
    """Return the 4 x 4 matrix that takes a voxel index (x, y, z, 1) to its place in mm (X, Y, Z, 1)."""
    geometry, matrix = geometry.geometry, np.eye(4)
    matrix[:3, :3] = np.reshape(geometry.direction_xyz, (3, 3)) * geometry.spacing_zyx[::-1]
    matrix[:3, 3] = geometry.origin_xyz
    return matrix


def from_index_to_world(size_zyx: Sequence[int], matrix: np.ndarray) -> Geometry:
    """Return the grid of `size_zyx` voxels that the 4 x 4 `matrix` (see `index_to_world`) lays out."""
    spacing_xyz = np.linalg.norm(matrix[:3, :3], axis=0)
    return Geometry(
        tuple(int(count) for count in size_zyx),
        tuple(spacing_xyz[::-1].tolist()),
        tuple(matrix[:3, 3].tolist()),
        tuple((matrix[:3, :3] / spacing_xyz).ravel().tolist()),
    )


def largest_displacement_mm(first: Geometry, second: Geometry) -> float:
    """Return how far apart in mm two grids of the same size put the same voxel, at most.

    The difference of two linear maps is largest at a corner, so only the eight corners are looked at.
    """
    far = [count - 1 for count in reversed(first.geometry.size_zyx)]
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, last) for last in far))], dtype=float)
    with np.errstate(all="ignore"):  # what is not finite may be compared, and is NaN
        apart = corners @ (index_to_world(second) - index_to_world(first)).T
        return float(np.linalg.norm(apart[:, :3], axis=1).max())


def nearest_axes(direction_xyz: Sequence[float]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Say which axis of space each index axis runs along, most nearly.

    Args:
        direction_xyz: Nine numbers, row by row, as in `Geometry`.

    Returns:
        For the index axes x, y, z: the number of the axis of space (0 X, 1 Y, 2 Z), and +1 or -1 for its sense. The largest
        number of the matrix decides first, then the largest of the rows and columns that are left.
    """
    return _nearest_axes(tuple(direction_xyz))


@functools.lru_cache(maxsize=256)
def _nearest_axes(direction_xyz: tuple[float, ...]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    axes, signs, rows, columns = [0, 0, 0], [1, 1, 1], {0, 1, 2}, {0, 1, 2}
    while rows:
        row, column = max(
            ((i, k) for i in sorted(rows) for k in sorted(columns)),
            key=lambda at: abs(direction_xyz[3 * at[0] + at[1]]),
        )
        axes[column], signs[column] = row, -1 if direction_xyz[3 * row + column] < 0 else 1
        rows.remove(row)
        columns.remove(column)
    return tuple(axes), tuple(signs)


def compare_geometries(first: Geometry, second: Geometry) -> tuple[Match, str]:
    """Say whether two grids are one.

    The size must be the same; spacing, origin and direction may differ by the tolerances named at the top of this file.

    Args:
        first: A `Geometry`, or anything that has one as ``.geometry``. The origin's tolerance follows its spacing.
        second: The other one.

    Returns:
        The worst match of all parts, and that part as ``"<part> <second's value>, <first's value> (<order and unit>)"``
        (empty if equal).
    """
    first, second = first.geometry, second.geometry
    if tuple(first.size_zyx) != tuple(second.size_zyx):
        return Match.ERROR, f"size {tuple(second.size_zyx)}, image has {tuple(first.size_zyx)} (Z, Y, X)"
    found = [
        (
            _largest([abs(b - a) / abs(a) for a, b in zip(first.spacing_zyx, second.spacing_zyx, strict=True)]),
            (SPACING_RTOL_EQUAL, SPACING_RTOL_WARN),
            ("spacing", first.spacing_zyx, second.spacing_zyx, "mm, (Z, Y, X)"),
        ),
        (
            math.dist(first.origin_xyz, second.origin_xyz) / min(first.spacing_zyx),
            (ORIGIN_RTOL_EQUAL, ORIGIN_RTOL_WARN),
            ("origin", first.origin_xyz, second.origin_xyz, "mm, (X, Y, Z)"),
        ),
        (
            _largest([abs(b - a) for a, b in zip(first.direction_xyz, second.direction_xyz, strict=True)]),
            (DIRECTION_ATOL_EQUAL, DIRECTION_ATOL_WARN),
            ("direction", first.direction_xyz, second.direction_xyz, "row by row, (X, Y, Z)"),
        ),
    ]
    worst, text = Match.EQUAL, ""
    for difference, (equal, warn), (part, ours, theirs, unit) in found:
        # A NaN compares as not within anything.
        match = Match.EQUAL if difference <= equal else Match.WARN if difference <= warn else Match.ERROR
        if match is not Match.EQUAL and worst is not Match.ERROR and match is not worst:
            worst, text = match, f"{part} {_numbers(theirs)}, image has {_numbers(ours)} ({unit})"
    return worst, text


def require_same_grid(image: Geometry, label: Geometry, path: str | os.PathLike | None = None) -> None:
    """Refuse a label that does not lie on its image's grid; warn where it nearly does.

    Args:
        image: The image's volume, header or geometry.
        label: The label's.
        path: The label's file, to be named in the message.

    Raises:
        GeometryError: If the grids differ by more than the ``..._WARN`` tolerances of this file.
    """
    match, difference = compare_geometries(image, label)
    if match is Match.ERROR:
        raise GeometryError(f"label has {difference}. Remove the pair or fix the label.", path)
    if match is Match.WARN:
        warnings.warn(f"{path}: label has {difference}; used as if they were the same.", stacklevel=2)


def _largest(values: list[float]) -> float:
    """The largest value; NaN if there is one (``max`` would depend on the order)."""
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"
