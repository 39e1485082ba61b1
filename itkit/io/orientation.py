"""Turn the axes of a volume towards the patient's, without interpolation."""

from __future__ import annotations

import itertools

import SimpleITK as sitk

from itkit.errors import UsageError
from itkit.io.volumes import Volume, from_image, to_image

ORIENTATIONS = tuple(
    "".join(letters) for axes in itertools.permutations(("LR", "PA", "SI")) for letters in itertools.product(*axes)
)
"""All 48 codes. Letter k (index order X, Y, Z) names the side TOWARDS which index axis k grows.

``LPS`` is SimpleITK's identity direction, ``RAS`` is nibabel's identity affine; DICOMOrient and nibabel's
``aff2axcodes`` both use the letters so. MetaImage's ``AnatomicalOrientation`` names the side an axis comes FROM: the same
identity direction is ``RAI`` there.
"""


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
    require_orientation(code)
    return from_image(sitk.DICOMOrient(to_image(volume), code))


def orientation(volume: Volume) -> str:
    """Return the code (one of `ORIENTATIONS`) nearest to the direction of `volume`."""
    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(
        [float(value) for value in volume.direction_xyz]
    )


def require_orientation(code: str) -> None:
    """Raise `UsageError` unless `code` is one of `ORIENTATIONS`."""
    if code not in ORIENTATIONS:
        raise UsageError(
            f"orientation {code!r} is none of the 48 codes: three letters, one each of L/R, P/A and S/I, e.g. LPS."
        )
