"""Simulate a coarser scan: fewer voxels, brought back to the old grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from itkit.errors import ConfigError
from itkit.registry import TRANSFORMS
from itkit.transforms.base import RandomTransform, value_range
from itkit.transforms.sample import Sample, float_image


@TRANSFORMS.register_module()
class RandomLowResolution(RandomTransform):
    """Take the nearest voxels of a coarser grid and interpolate linearly back to the old one. Labels stay.

    Args:
        zoom: Voxels that are left along an axis, as a part of what there was, (low, high), above 0 and at most 1.
        prob: Chance to be applied.
        per_axis: Draw one factor for each axis instead of one for all (thick slices).

    Raises:
        ConfigError: If the range is none or leaves (0, 1], or `prob` is no probability.
    """

    def __init__(self, zoom: float | Sequence[float] = (0.5, 1.0), prob: float = 1.0, *, per_axis: bool = False):
        super().__init__(prob)
        self.zoom = value_range("zoom", zoom, self)
        if self.zoom[0] <= 0 or self.zoom[1] > 1:
            raise ConfigError(f"RandomLowResolution: zoom must lie above 0 and not above 1; found {zoom!r}.")
        self.per_axis = per_axis

    def draw(self, results: Sample, rng: np.random.Generator) -> dict[str, Any] | None:
        """Draw a factor for each axis."""
        if not self.happens(rng):
            return None
        axes = results["img"].ndim - 1
        zoom = rng.uniform(*self.zoom, size=axes if self.per_axis else 1)
        return {"zoom": np.broadcast_to(zoom, axes).tolist()}

    @staticmethod
    def apply(results: Sample, params: dict[str, Any]) -> Sample:
        """Shrink and grow."""
        image = float_image(results)
        size = image.shape[1:]
        coarse = [max(1, round(n * zoom)) for n, zoom in zip(size, params["zoom"], strict=True)]
        linear = "bilinear" if len(size) == 2 else "trilinear"
        voxels = torch.from_numpy(np.require(image, requirements=["C", "W"]))[None]
        small = F.interpolate(voxels, size=coarse, mode="nearest-exact")
        results["img"] = F.interpolate(small, size=size, mode=linear, align_corners=False)[0].numpy()
        return results
