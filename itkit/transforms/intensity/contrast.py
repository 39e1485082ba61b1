"""Spread or compress intensities around their mean by a random factor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from itkit.registry import TRANSFORMS
from itkit.transforms.base import RandomTransform, value_range
from itkit.transforms.sample import Sample, float_image


@TRANSFORMS.register_module()
class RandomContrast(RandomTransform):
    """Multiply each channel's distance from its mean by one random factor.

    Args:
        factor: (low, high), or a number d for ``1 - d .. 1 + d``.
        prob: Chance to be applied.
        keep_range: Cut the result to the intensities that the channel had before.

    Raises:
        ConfigError: If the range is none or goes below 0, or `prob` is no probability.
    """

    def __init__(self, factor: float | Sequence[float] = (0.75, 1.25), prob: float = 1.0, *, keep_range: bool = True):
        super().__init__(prob)
        self.factor = value_range("factor", factor, self, around=1.0, least=0.0)
        self.keep_range = keep_range

    def draw(self, results: Sample, rng: np.random.Generator) -> dict[str, Any] | None:
        """Draw the factor."""
        if not self.happens(rng):
            return None
        return {"factor": float(rng.uniform(*self.factor)), "keep_range": self.keep_range}

    @staticmethod
    def apply(results: Sample, params: dict[str, Any]) -> Sample:
        """Multiply."""
        image = float_image(results)
        axes = tuple(range(1, image.ndim))
        mean = image.mean(axis=axes, keepdims=True)
        changed = (image - mean) * np.float32(params["factor"]) + mean
        if params["keep_range"]:
            low, high = image.min(axis=axes, keepdims=True), image.max(axis=axes, keepdims=True)
            np.clip(changed, low, high, out=changed)
        results["img"] = changed
        return results
