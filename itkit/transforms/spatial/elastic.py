"""Bend the sample softly: the elastic part of a warp."""

from __future__ import annotations

from collections.abc import Sequence

from itkit.registry import TRANSFORMS
from itkit.transforms.spatial.warp import RandomWarp


@TRANSFORMS.register_module()
class RandomElastic(RandomWarp):
    """Move the voxels along a smooth random field, as `RandomWarp` without rotation, scaling and shift.

    Args:
        elastic_mm: Standard deviation of the control values in mm, (low, high), or a number for ``0 .. number``.
        elastic_grid_mm: Distance of the control values in mm.
        fill: ``"edge"``, or the intensity outside the volume.
        smooth_labels: Interpolate each class linearly instead of taking the nearest voxel.
        prob: Chance to be applied.

    Raises:
        ConfigError: If a range or chance is impossible.
    """

    def __init__(
        self,
        elastic_mm: float | Sequence[float] = 3.0,
        elastic_grid_mm: float = 24.0,
        *,
        fill: str | float = "edge",
        smooth_labels: bool = False,
        prob: float = 1.0,
    ):
        super().__init__(
            elastic_mm=elastic_mm, elastic_grid_mm=elastic_grid_mm, fill=fill, smooth_labels=smooth_labels, prob=prob
        )
