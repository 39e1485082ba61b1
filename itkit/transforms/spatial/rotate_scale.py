"""Rotate, scale and shift: the stiff part of a warp."""

from __future__ import annotations

from collections.abc import Sequence

from itkit.registry import TRANSFORMS
from itkit.transforms.spatial.warp import RandomWarp


@TRANSFORMS.register_module()
class RandomRotateScale(RandomWarp):
    """Rotate, scale and shift the sample, as `RandomWarp` without a bend.

    Args:
        degrees: Largest angle either way: one number, or three for turns about Z, Y and X. In 2D the first counts.
        scale: (low, high), or a number d for ``1 - d .. 1 + d``.
        translate_mm: Largest shift either way in mm: one number, or three for Z, Y and X.
        per_axis_scale: Draw one factor for each axis.
        fill: ``"edge"``, or the intensity outside the volume.
        smooth_labels: Interpolate each class linearly instead of taking the nearest voxel.
        prob: Chance to be applied.

    Raises:
        ConfigError: If a range or chance is impossible.
    """

    def __init__(
        self,
        degrees: float | Sequence[float] = 15.0,
        scale: float | Sequence[float] = (0.85, 1.15),
        translate_mm: float | Sequence[float] = 0.0,
        *,
        per_axis_scale: bool = False,
        fill: str | float = "edge",
        smooth_labels: bool = False,
        prob: float = 1.0,
    ):
        super().__init__(
            degrees,
            scale,
            translate_mm,
            per_axis_scale=per_axis_scale,
            fill=fill,
            smooth_labels=smooth_labels,
            prob=prob,
        )
