"""Bring all volumes to one voxel spacing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform

from itkit.errors import ConfigError, DataError
from itkit.io.preprocessing import resample_channels
from itkit.io.resampling import resample_to_spacing
from itkit.io.volumes import Volume
from itkit.registry import TRANSFORMS
from itkit.transforms.sample import Sample, label_keys, put_image, spatial_shape


@TRANSFORMS.register_module()
class ResampleToSpacing(BaseTransform):
    """Resample a volume to a spacing (`itkit.io.resampling.resample_to_spacing`); sets ``spacing_zyx`` and ``img_shape``.

    The image is interpolated linearly, labels take the nearest voxel; both keep their type.

    Args:
        spacing_zyx: Voxel spacing in mm, order (Z, Y, X), None for an axis that stays.

    Raises:
        ConfigError: If an entry is neither a positive number nor None, or there are not three.
        DataError: If the sample is a slice.
    """

    def __init__(self, spacing_zyx: Sequence[float | None]):
        values = tuple(spacing_zyx)
        if len(values) != 3 or not all(v is None or (np.isfinite(v) and v > 0) for v in values):
            raise ConfigError(
                f"ResampleToSpacing: spacing_zyx must be three positive numbers (mm) or None; found {values!r}."
            )
        self.spacing_zyx = values

    def transform(self, results: Sample) -> Sample:
        """Resample the image and every label map."""
        if len(spatial_shape(results)) != 3:
            raise DataError(
                "ResampleToSpacing needs a volume; put it before slices are taken.", results.get("img_path")
            )
        old = tuple(float(v) for v in results["spacing_zyx"])
        image, spacing = resample_channels(results["img"], old, self.spacing_zyx)
        for key in label_keys(results):
            results[key] = resample_to_spacing(Volume(results[key], old), self.spacing_zyx, kind="label").array
        put_image(results, image)
        results["spacing_zyx"] = spacing
        return results

    def __repr__(self) -> str:
        """Name and arguments."""
        return f"ResampleToSpacing(spacing_zyx={self.spacing_zyx})"
