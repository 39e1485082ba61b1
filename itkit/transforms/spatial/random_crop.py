"""Train on patches: a random part of the volume, with a say for rare classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from itkit.errors import DataError
from itkit.registry import TRANSFORMS
from itkit.transforms.base import RandomTransform, probability
from itkit.transforms.sample import Sample, spatial_shape
from itkit.transforms.spatial.crop import crop_sample
from itkit.transforms.spatial.crop_place import draw_crop_start
from itkit.transforms.spatial.sizes import Size, checked_size, size_for


@TRANSFORMS.register_module()
class RandomCrop(RandomTransform):
    """Cut out a patch at a random place.

    Args:
        size: Voxels, one number for all axes or one per axis, None for an axis that stays.
        foreground_ratio: Share of patches laid around a voxel of a random foreground class.
        classes: Label values that count as foreground. ``None``: all above 0.

    Raises:
        ConfigError: If `size` is none or `foreground_ratio` no probability.
        DataError: If the volume is smaller than the patch.
    """

    def __init__(self, size: Size, foreground_ratio: float = 0.0, *, classes: Sequence[int] | None = None):
        super().__init__()
        self.size = checked_size(size, self)
        self.foreground_ratio = probability("foreground_ratio", foreground_ratio, self)
        self.classes = None if classes is None else tuple(classes)

    def draw(self, results: Sample, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the place."""
        shape = spatial_shape(results)
        size = size_for(self.size, shape, "RandomCrop")
        if any(t > n for t, n in zip(size, shape, strict=True)):
            raise DataError(
                f"RandomCrop: a patch of {size} does not fit into {shape}; put PadToSize before it.",
                results.get("img_path"),
            )
        start = draw_crop_start(results, size, rng, foreground_ratio=self.foreground_ratio, classes=self.classes)
        return {"start": start, "size": size}

    @staticmethod
    def apply(results: Sample, params: dict[str, Any]) -> Sample:
        """Cut."""
        return crop_sample(results, params["start"], params["size"])
