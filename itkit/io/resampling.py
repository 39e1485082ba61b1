"""Put a volume on a grid with another voxel spacing."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from itkit.errors import UsageError
from itkit.io.geometry import require_spacing
from itkit.io.volumes import Volume, from_image, to_image


def resample_to_spacing(volume: Volume, spacing_zyx: tuple[float | None, ...], *, kind: str) -> Volume:
    """Return `volume` on a grid with the asked voxel spacing.

    The physical centre of the first voxel, the direction and the pixel type stay as they are; only the number of voxels
    and their spacing change. Beyond the last voxel's centre the nearest voxel is continued.

    Args:
        volume: Volume of any direction. Not modified.
        spacing_zyx: Voxel spacing in mm, order (Z, Y, X). ``None`` keeps the spacing of that axis.
        kind: ``"image"`` interpolates linearly and rounds for integer types; ``"label"`` takes the nearest neighbour,
            so no new class value can appear.

    Returns:
        A new volume. Size along an axis is ``max(1, round(n * old / new))``.

    Raises:
        GeometryError: If a spacing is not a positive finite number.
        UsageError: If `kind` is neither of the two.
    """
    if kind not in ("image", "label"):
        raise UsageError(f"kind is 'image' or 'label', not {kind!r}.")
    spacing = tuple(
        float(old if new is None else new) for old, new in zip(volume.spacing_zyx, spacing_zyx, strict=True)
    )
    require_spacing(spacing)
    size = tuple(
        max(1, round(count * old / new))
        for count, old, new in zip(volume.size_zyx, volume.spacing_zyx, spacing, strict=True)
    )
    dtype = volume.array.dtype
    if spacing == tuple(volume.spacing_zyx):
        return Volume(volume.array.copy(), spacing, volume.origin_xyz, volume.direction_xyz)
    image = to_image(volume)
    interpolated = kind == "image" and dtype.kind in "iu"
    if interpolated:
        vector = image.GetPixelID() >= sitk.sitkVectorUInt8
        image = sitk.Cast(image, sitk.sitkVectorFloat64 if vector else sitk.sitkFloat64)
    resampler = sitk.ResampleImageFilter()
    resampler.SetInterpolator(sitk.sitkLinear if kind == "image" else sitk.sitkNearestNeighbor)
    resampler.SetUseNearestNeighborExtrapolator(True)
    resampler.SetSize([int(count) for count in reversed(size)])
    resampler.SetOutputSpacing([float(value) for value in reversed(spacing)])
    resampler.SetOutputOrigin(image.GetOrigin())
    resampler.SetOutputDirection(image.GetDirection())
    resampled = from_image(resampler.Execute(image))
    array = np.rint(resampled.array).astype(dtype) if interpolated else resampled.array
    return Volume(array.reshape(volume.array.shape[:-3] + size), spacing, volume.origin_xyz, volume.direction_xyz)
