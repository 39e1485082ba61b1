"""Normalise each image by its own mean and standard deviation."""

from __future__ import annotations

from mmcv.transforms import BaseTransform

from itkit.io.preprocessing import zscore_channels
from itkit.registry import TRANSFORMS
from itkit.transforms.intensity.statistics_mask import checked_mask
from itkit.transforms.sample import Sample, spatial_shape


@TRANSFORMS.register_module()
class ZScore(BaseTransform):
    """Give each channel mean 0 and standard deviation 1 (`itkit.io.intensity.zscore`).

    Args:
        mask: Voxels that the statistics are taken from; all voxels are scaled. ``"all"``, ``"nonzero"`` (images whose
            background was removed), ``"positive"``.

    Raises:
        ConfigError: If `mask` is unknown.
    """

    def __init__(self, mask: str = "all"):
        self.mask = checked_mask(mask, self)

    def transform(self, results: Sample) -> Sample:
        """Replace the image by a float32 one."""
        spatial_shape(results)
        results["img"] = zscore_channels(results["img"], self.mask)
        return results

    def __repr__(self) -> str:
        """Name and arguments."""
        return f"ZScore(mask={self.mask!r})"
