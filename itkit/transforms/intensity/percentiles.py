"""Scale or clip each image by percentiles of its own intensities."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from mmcv.transforms import BaseTransform

from itkit.errors import ConfigError
from itkit.io.preprocessing import clip_channels, scale_channels
from itkit.registry import TRANSFORMS
from itkit.transforms.intensity.statistics_mask import checked_mask
from itkit.transforms.sample import Sample, spatial_shape


class _ByPercentiles(BaseTransform):
    """Two percentiles of each channel, and where they are taken from."""

    def __init__(self, lower: float = 0.5, upper: float = 99.5, mask: str = "all"):
        if not 0 <= lower < upper <= 100:
            raise ConfigError(
                f"{type(self).__name__} needs percentiles 0 <= lower < upper <= 100; found lower {lower}, "
                f"upper {upper}."
            )
        self.lower, self.upper = lower, upper
        self.mask = checked_mask(mask, self)

    @abstractmethod
    def changed(self, image: np.ndarray) -> np.ndarray:
        """Return the image (C, ...) changed."""

    def transform(self, results: Sample) -> Sample:
        """Replace the image."""
        spatial_shape(results)
        results["img"] = self.changed(results["img"])
        return results


@TRANSFORMS.register_module()
class PercentileScale(_ByPercentiles):
    """Map the `lower` percentile of each channel to 0 and the `upper` to 1 (`itkit.io.intensity.percentile_scale`).

    Args:
        lower: Percent.
        upper: Percent.
        mask: Voxels that the percentiles are taken from: ``"all"``, ``"nonzero"`` or ``"positive"``.
        clip: Cut the result to [0, 1].

    Raises:
        ConfigError: If the percentiles are not 0 <= lower < upper <= 100, or `mask` is unknown.
    """

    def __init__(self, lower: float = 0.5, upper: float = 99.5, mask: str = "all", clip: bool = True):
        super().__init__(lower, upper, mask)
        self.clip = clip

    def changed(self, image: np.ndarray) -> np.ndarray:
        """Return the image scaled, float32."""
        return scale_channels(image, self.lower, self.upper, self.mask, self.clip)

    def __repr__(self) -> str:
        """Name and arguments."""
        return f"PercentileScale(lower={self.lower}, upper={self.upper}, mask={self.mask!r}, clip={self.clip})"


@TRANSFORMS.register_module()
class ClipPercentiles(_ByPercentiles):
    """Cut each channel to the range between two of its percentiles; its type stays (`itkit.io.intensity.clip_percentiles`).

    Args:
        lower: Percent.
        upper: Percent.
        mask: Voxels that the percentiles are taken from: ``"all"``, ``"nonzero"`` or ``"positive"``.

    Raises:
        ConfigError: If the percentiles are not 0 <= lower < upper <= 100, or `mask` is unknown.
    """

    def changed(self, image: np.ndarray) -> np.ndarray:
        """Return the image cut, same type."""
        return clip_channels(image, self.lower, self.upper, self.mask)

    def __repr__(self) -> str:
        """Name and arguments."""
        return f"ClipPercentiles(lower={self.lower}, upper={self.upper}, mask={self.mask!r})"
