"""Blur the image by a random amount."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from itkit.registry import TRANSFORMS
from itkit.transforms.base import RandomTransform, value_range
from itkit.transforms.sample import Sample, float_image

TRUNCATE = 3.0
"""The kernel ends after this many standard deviations."""


@TRANSFORMS.register_module()
class RandomGaussianBlur(RandomTransform):
    """Convolve each channel with a Gaussian; beyond the border the image is mirrored.

    Args:
        sigma_vox: Standard deviation in voxels, the same along all axes, (low, high) or one number.
        prob: Chance to be applied.

    Raises:
        ConfigError: If the range is none or goes below 0, or `prob` is no probability.
    """

    def __init__(self, sigma_vox: float | Sequence[float] = (0.5, 1.0), prob: float = 1.0):
        super().__init__(prob)
        self.sigma_vox = value_range("sigma_vox", sigma_vox, self, least=0.0)

    def draw(self, results: Sample, rng: np.random.Generator) -> dict[str, Any] | None:
        """Draw the width."""
        return {"sigma_vox": float(rng.uniform(*self.sigma_vox))} if self.happens(rng) else None

    @staticmethod
    def apply(results: Sample, params: dict[str, Any]) -> Sample:
        """Blur."""
        image = float_image(results)
        blurred = np.empty_like(image)
        for channel, out in zip(image, blurred, strict=True):
            ndimage.gaussian_filter(channel, params["sigma_vox"], output=out, truncate=TRUNCATE)
        results["img"] = blurred
        return results
