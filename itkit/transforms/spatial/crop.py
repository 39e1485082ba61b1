"""Cut a part of fixed size out of the sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform

from itkit.errors import ConfigError, DataError
from itkit.registry import TRANSFORMS
from itkit.transforms.sample import Sample, label_keys, move_origin, put_image, spatial_shape
from itkit.transforms.spatial.sizes import Size, checked_size, size_for


def crop_sample(results: Sample, start: Sequence[int], size: Sequence[int]) -> Sample:
    """Keep the voxels ``start .. start + size`` of the image and every label map; ``origin_xyz`` follows.

    Args:
        results: The sample; its arrays are not modified.
        start: First voxel that stays, one index per axis.
        size: Voxels that stay, one number per axis.
    """
    box = tuple(slice(int(a), int(a) + int(n)) for a, n in zip(start, size, strict=True))
    put_image(results, results["img"][(slice(None), *box)])
    for key in label_keys(results):
        results[key] = np.ascontiguousarray(results[key][box])
    move_origin(results, tuple(int(a) for a in start))
    return results


@TRANSFORMS.register_module()
class CropToSize(BaseTransform):
    """Cut axes that are longer than `size`; shorter ones stay.

    Args:
        size: Voxels, one number for all axes or one per axis, None for an axis that stays.
        start: First voxel that stays, one per axis. ``None``: the centre is kept.

    Raises:
        ConfigError: If `size` is none, or `start` has a negative entry.
        DataError: If a crop with a fixed start reaches beyond the volume.
    """

    def __init__(self, size: Size, *, start: Sequence[int] | None = None):
        self.size = checked_size(size, self)
        if start is not None and any(index < 0 for index in start):
            raise ConfigError(f"CropToSize: start must not be negative; found {tuple(start)}.")
        self.start = None if start is None else tuple(start)

    def transform(self, results: Sample) -> Sample:
        """Cut."""
        shape = spatial_shape(results)
        size = [min(t, n) for t, n in zip(size_for(self.size, shape, "CropToSize"), shape, strict=True)]
        start = [(n - t) // 2 for t, n in zip(size, shape, strict=True)] if self.start is None else self.start
        if len(start) != len(shape) or any(a + t > n for a, t, n in zip(start, size, shape, strict=True)):
            raise DataError(
                f"CropToSize: a crop of {tuple(size)} from {tuple(start)} does not lie inside {shape}.",
                results.get("img_path"),
            )
        return crop_sample(results, start, size)

    def __repr__(self) -> str:
        """Name and arguments."""
        return f"CropToSize(size={self.size}, start={self.start})"
