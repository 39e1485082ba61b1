"""Intensity window of CT: what lies inside becomes 0 to 1."""

from __future__ import annotations

import math

from mmcv.transforms import BaseTransform

from itkit.errors import ConfigError
from itkit.io import intensity
from itkit.registry import TRANSFORMS
from itkit.transforms.sample import Sample, spatial_shape


@TRANSFORMS.register_module()
class Window(BaseTransform):
    """Map ``level - width/2 .. level + width/2`` linearly to 0 .. 1 and clip the rest (`itkit.io.intensity.window`).

    Args:
        level: Centre of the window, HU for CT.
        width: Width of the window, positive.

    Raises:
        ConfigError: If `level` is not finite or `width` not positive and finite.
    """

    def __init__(self, level: float, width: float):
        if not (math.isfinite(level) and math.isfinite(width) and width > 0):
            raise ConfigError(f"Window needs a finite level and a positive width; found level {level}, width {width}.")
        self.level, self.width = level, width

    def transform(self, results: Sample) -> Sample:
        """Replace the image by a float32 one within [0, 1]."""
        spatial_shape(results)
        results["img"] = intensity.window(results["img"], self.level, self.width)
        return results

    def __repr__(self) -> str:
        """Name and arguments."""
        return f"Window(level={self.level}, width={self.width})"
