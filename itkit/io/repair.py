"""Straighten the axes of a volume whose header leans, on request only, and say what was done."""

from __future__ import annotations

import dataclasses
import os
from typing import TypeVar

import numpy as np

from itkit.errors import GeometryError
from itkit.io.geometry import (
    Geometry,
    direction_deviation,
    from_index_to_world,
    index_to_world,
    largest_displacement_mm,
    require_possible,
    require_spacing,
)
from itkit.io.volumes import Volume, VolumeHeader, read_unchecked

STRAIGHT_ATOL = 1e-6
"""A direction this near to orthonormal (32-bit rounding) is left as it is."""

Grid = TypeVar("Grid", Volume, VolumeHeader, Geometry)


@dataclasses.dataclass(frozen=True)
class GeometryRepair:
    """What a repair has changed.

    Attributes:
        before: The grid as the file had it.
        after: The grid as it is now.
        deviation: How far the old direction was from orthonormal (largest element of ``|D D^T - I|``).
        largest_displacement_mm: How far a voxel has moved, at most.
    """

    before: Geometry
    after: Geometry
    deviation: float
    largest_displacement_mm: float

    def as_dict(self) -> dict:
        """Return the record as plain numbers, lists and names, ready for JSON."""
        return {
            "repair": "direction replaced by the nearest orthonormal one; the centre of the volume stays",
            "before": dataclasses.asdict(self.before),
            "after": dataclasses.asdict(self.after),
            "deviation": self.deviation,
            "largest_displacement_mm": self.largest_displacement_mm,
        }


def fix_geometry(grid: Grid, path: str | os.PathLike | None = None) -> tuple[Grid, GeometryRepair | None]:
    """Replace a direction that is not orthonormal by the nearest one that is.

    Columns of another length than 1 go into the spacing, which moves no voxel; then the matrix of unit columns becomes the
    orthonormal matrix nearest to it (polar decomposition). The physical centre of the volume stays where it is, so that
    the corners move as little as they can. Voxels are never interpolated.

    Args:
        grid: A volume (its array is shared, not copied), a header or a geometry. Not modified.
        path: File to name in a message.

    Returns:
        The same kind of thing on the new grid, and the record; `grid` itself and None where the direction was already
        orthonormal within `STRAIGHT_ATOL`.

    Raises:
        GeometryError: If the direction has no inverse, or anything else of the geometry is impossible.
    """
    before = grid.geometry
    require_spacing(before.spacing_zyx, path)
    deviation = direction_deviation(before.direction_xyz)
    if deviation <= STRAIGHT_ATOL:
        require_possible(before, path)
        return grid, None
    matrix = index_to_world(before)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(np.reshape(before.direction_xyz, (3, 3)))) < 1e-3:
        raise GeometryError(
            f"direction {tuple(before.direction_xyz)} or origin {tuple(before.origin_xyz)} cannot be repaired: it is not "
            "finite, or the axes lie in one plane.",
            path,
        )
    straight = from_index_to_world(before.size_zyx, matrix)
    left, _, right = np.linalg.svd(np.reshape(straight.direction_xyz, (3, 3)))
    turned = matrix.copy()
    turned[:3, :3] = (left @ right) * straight.spacing_zyx[::-1]
    centre = [(count - 1) / 2 for count in reversed(before.size_zyx)]
    turned[:3, 3] = matrix[:3, 3] + (matrix[:3, :3] - turned[:3, :3]) @ centre
    after = Geometry(
        before.size_zyx,
        straight.spacing_zyx,
        tuple(turned[:3, 3].tolist()),
        tuple((left @ right + 0.0).ravel().tolist()),
    )
    require_possible(after, path)
    record = GeometryRepair(before, after, deviation, largest_displacement_mm(before, after))
    if isinstance(grid, Geometry):
        return after, record
    if isinstance(grid, VolumeHeader):
        return dataclasses.replace(grid, geometry=after), record
    return Volume(grid.array, after.spacing_zyx, after.origin_xyz, after.direction_xyz), record


def read_repaired(
    path: str | os.PathLike, *, header_only: bool = False
) -> tuple[Volume | VolumeHeader, GeometryRepair | None]:
    """Read the volume (or the header) at `path` as `itkit.io.volumes.read_volume` does, and repair its direction.

    Args:
        path: The file. It is not changed.
        header_only: Read the header alone.

    Returns:
        The volume or header on a straight grid, and the record of the repair; None if there was nothing to repair.

    Raises:
        DataError: If the file cannot be read.
        GeometryError: If the geometry is beyond repair.
    """
    return fix_geometry(read_unchecked(path, header_only=header_only), path)
