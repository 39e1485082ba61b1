"""Turn the axes of a volume towards the patient's, without interpolation."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from itkit.errors import UsageError
from itkit.io.geometry import Geometry, nearest_axes
from itkit.io.volumes import Volume, VolumeHeader

ORIENTATIONS = tuple(
    "".join(letters) for axes in itertools.permutations(("LR", "PA", "SI")) for letters in itertools.product(*axes)
)
"""All 48 codes. Letter k (index order X, Y, Z) names the side TOWARDS which index axis k grows.

``LPS`` is SimpleITK's identity direction, ``RAS`` is nibabel's identity affine; DICOMOrient and nibabel's
``aff2axcodes`` both use the letters so. MetaImage's ``AnatomicalOrientation`` names the side an axis comes FROM: the same
identity direction is ``RAI`` there.
"""
_LETTERS = {1: "LPS", -1: "RAI"}
_AXES = {letter: (axis, sign) for sign, letters in _LETTERS.items() for axis, letter in enumerate(letters)}


@dataclass(frozen=True)
class Turning:
    """How the axes of an array become those of the same volume in another orientation.

    Attributes:
        axes_zyx: For each new axis (Z, Y, X), the number of the old one: 0 Z, 1 Y, 2 X.
        flipped_zyx: For each new axis, whether it runs the other way.
    """

    axes_zyx: tuple[int, int, int] = (0, 1, 2)
    flipped_zyx: tuple[bool, bool, bool] = (False, False, False)

    def turned(self, array: np.ndarray) -> np.ndarray:
        """Return a view of an array (..., Z, Y, X) with the new axes; writing into it writes into `array`."""
        lead = array.ndim - 3
        flips = tuple(slice(None, None, -1 if flipped else None) for flipped in self.flipped_zyx)
        return array.transpose(*range(lead), *(lead + axis for axis in self.axes_zyx))[(..., *flips)]

    def back(self, array: np.ndarray) -> np.ndarray:
        """Return a view of an array with the new axes that has the old ones."""
        lead = array.ndim - 3
        flips = tuple(slice(None, None, -1 if flipped else None) for flipped in self.flipped_zyx)
        order = [self.axes_zyx.index(axis) for axis in range(3)]
        return array[(..., *flips)].transpose(*range(lead), *(lead + axis for axis in order))

    def followed_by(self, other: Turning) -> Turning:
        """Return the turning that does this one first, then `other`."""
        return Turning(
            tuple(self.axes_zyx[axis] for axis in other.axes_zyx),
            tuple(
                self.flipped_zyx[axis] != flipped
                for axis, flipped in zip(other.axes_zyx, other.flipped_zyx, strict=True)
            ),
        )


def turning(grid: Volume | VolumeHeader | Geometry, code: str) -> Turning:
    """Return how `reorient` turns the array of a volume on `grid`.

    Raises:
        UsageError: If `code` is none of the 48.
    """
    require_code(code)
    order, flipped = _order_and_flips(grid.geometry, code)
    # Array axis 2 - k is index axis k.
    return Turning(tuple(2 - order[k] for k in (2, 1, 0)), tuple(flipped[k] for k in (2, 1, 0)))


def reorient(volume: Volume, code: str) -> Volume:
    """Return `volume` with its axes permuted and flipped so that they point nearest to `code`.

    No voxel changes its value or its place in space; only the order in memory and the geometry's description change.

    Args:
        volume: Not modified.
        code: One of `ORIENTATIONS`, e.g. ``"LPS"``.

    Returns:
        A new volume. An oblique volume keeps its obliqueness.

    Raises:
        UsageError: If `code` is none of the 48.
    """
    grid = reoriented_geometry(volume.geometry, code)
    array = np.array(turning(volume, code).turned(volume.array), order="C", copy=True)
    return Volume(array, grid.spacing_zyx, grid.origin_xyz, grid.direction_xyz)


def reoriented_geometry(grid: Volume | VolumeHeader | Geometry, code: str) -> Geometry:
    """Return the grid that `reorient` would give a volume on `grid`.

    Raises:
        UsageError: If `code` is none of the 48.
    """
    require_code(code)
    old = grid.geometry
    order, flipped = _order_and_flips(old, code)
    size_xyz, spacing_xyz = old.size_zyx[::-1], old.spacing_zyx[::-1]
    direction = np.reshape(old.direction_xyz, (3, 3))
    origin = np.array(old.origin_xyz, dtype=float)
    for k in range(3):
        if flipped[k]:
            origin += direction[:, order[k]] * (spacing_xyz[order[k]] * (size_xyz[order[k]] - 1))
    turned = direction[:, order] * np.where(flipped, -1.0, 1.0) + 0.0
    return Geometry(
        tuple(size_xyz[order[k]] for k in (2, 1, 0)),
        tuple(spacing_xyz[order[k]] for k in (2, 1, 0)),
        tuple(origin.tolist()),
        tuple(turned.ravel().tolist()),
    )


def orientation(grid: Volume | VolumeHeader | Geometry) -> str:
    """Return the code (one of `ORIENTATIONS`) nearest to the direction of a volume, header or geometry."""
    axes, signs = nearest_axes(grid.geometry.direction_xyz)
    return "".join(_LETTERS[sign][axis] for axis, sign in zip(axes, signs, strict=True))


def require_code(code: str) -> None:
    """Raise `UsageError` unless `code` is one of `ORIENTATIONS`."""
    if code not in ORIENTATIONS:
        raise UsageError(
            f"orientation {code!r} is none of the 48 codes: three letters, one each of L/R, P/A and S/I, e.g. LPS."
        )


def _order_and_flips(grid: Volume | Geometry, code: str) -> tuple[list[int], list[bool]]:
    """For each new index axis (x, y, z): which old one it is, and whether it runs the other way."""
    axes, signs = nearest_axes(grid.geometry.direction_xyz)
    order = [axes.index(_AXES[letter][0]) for letter in code]
    return order, [_AXES[letter][1] != signs[old] for letter, old in zip(code, order, strict=True)]
