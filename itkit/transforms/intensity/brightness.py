"""Make the image brighter or darker by a random amount."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from itkit.registry import TRANSFORMS
from itkit.transforms.base import RandomTransform, value_range
from itkit.transforms.sample import Sample, float_image


@TRANSFORMS.register_module()
class RandomBrightness(RandomTransform):
    """Add one random number to all voxels.

    Args:
        shift: Largest change up or down, or (low, high), in the image's unit: for a z-scored image, standard deviations.
        prob: Chance to be applied.

    Raises:
        ConfigError: If the range is none or `prob` no probability.
    """

    def __init__(self, shift: float | Sequence[float] = 0.1, prob: float = 1.0):
        super().__init__(prob)
        self.shift = value_range("shift", shift, self, around=0.0)

    def draw(self, results: Sample, rng: np.random.Generator) -> dict[str, Any] | None:
        """Draw the shift."""
        return {"shift": float(rng.uniform(*self.shift))} if self.happens(rng) else None

    @staticmethod
    def apply(results: Sample, params: dict[str, Any]) -> Sample:
        """Add."""
        results["img"] = float_image(results) + np.float32(params["shift"])
        return results
