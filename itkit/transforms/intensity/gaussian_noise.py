"""Add the noise of a weaker scanner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from itkit.registry import TRANSFORMS
from itkit.transforms.base import RandomTransform, value_range
from itkit.transforms.sample import Sample, float_image


@TRANSFORMS.register_module()
class RandomGaussianNoise(RandomTransform):
    """Add independent normal noise to every voxel.

    Args:
        std: Standard deviation, (low, high), or a number d for ``0 .. d``, in the image's unit.
        prob: Chance to be applied.

    Raises:
        ConfigError: If the range is none or goes below 0, or `prob` is no probability.
    """

    def __init__(self, std: float | Sequence[float] = (0.0, 0.1), prob: float = 1.0):
        super().__init__(prob)
        self.std = value_range("std", (0.0, std) if isinstance(std, (int, float)) else std, self, least=0.0)

    def draw(self, results: Sample, rng: np.random.Generator) -> dict[str, Any] | None:
        """Draw the deviation, and the seed of the noise itself."""
        if not self.happens(rng):
            return None
        return {"std": float(rng.uniform(*self.std)), "seed": int(rng.integers(2**63))}

    @staticmethod
    def apply(results: Sample, params: dict[str, Any]) -> Sample:
        """Add."""
        image = float_image(results)
        generator = np.random.Generator(np.random.SFC64(params["seed"]))
        noise = generator.standard_normal(image.shape, dtype=np.float32)
        noise *= np.float32(params["std"])
        noise += image
        results["img"] = noise
        return results
