"""Mirror the sample along random axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from itkit.errors import ConfigError
from itkit.io.labels import replace_values
from itkit.registry import TRANSFORMS
from itkit.transforms.base import RandomTransform
from itkit.transforms.sample import Sample, label_keys, put_image, spatial_shape


@TRANSFORMS.register_module()
class RandomFlip(RandomTransform):
    """Mirror along each of some axes with a chance of its own.

    Args:
        axes: Axes that may be mirrored, 0 is the first after the channel (Z in 3D). ``None``: all.
        prob: Chance of each axis.
        swap_labels: Pairs of classes that change places when `swap_axis` is mirrored, e.g. left and right kidney.
        swap_axis: The axis that tells the two apart; needed with `swap_labels` unless `axes` has a single one.

    Raises:
        ConfigError: If `prob` is no probability, an axis does not exist, or the axis of the swap is not told.
    """

    def __init__(
        self,
        axes: Sequence[int] | int | None = None,
        prob: float = 0.5,
        *,
        swap_labels: Sequence[Sequence[int]] = (),
        swap_axis: int | None = None,
    ):
        super().__init__(prob)
        self.axes = None if axes is None else (axes,) if isinstance(axes, int) else tuple(axes)
        if self.axes is not None and not set(self.axes) <= {0, 1, 2}:
            raise ConfigError(f"RandomFlip: axes must be among 0, 1, 2; found {self.axes}.")
        self.swap_labels = tuple((int(a), int(b)) for a, b in swap_labels)
        if self.swap_labels and swap_axis is None:
            if self.axes is None or len(self.axes) != 1:
                raise ConfigError("RandomFlip: swap_labels needs swap_axis, the axis that tells left from right.")
            swap_axis = self.axes[0]
        self.swap_axis = swap_axis

    def draw(self, results: Sample, rng: np.random.Generator) -> dict[str, Any] | None:
        """Draw the axes."""
        count = len(spatial_shape(results))
        allowed = tuple(range(count)) if self.axes is None else self.axes
        if max(allowed, default=0) >= count:
            raise ConfigError(f"RandomFlip: axes {allowed} do not exist in {count}D; choose from {list(range(count))}.")
        drawn = [axis for axis in allowed if self.happens(rng)]
        return {"axes": drawn, "swap": self.swap_labels if self.swap_axis in drawn else ()} if drawn else None

    @staticmethod
    def apply(results: Sample, params: dict[str, Any]) -> Sample:
        """Mirror."""
        put_image(results, np.flip(results["img"], [axis + 1 for axis in params["axes"]]))
        for key in label_keys(results):
            label = np.ascontiguousarray(np.flip(results[key], params["axes"]))
            pairs = {old: new for a, b in params["swap"] for old, new in ((a, b), (b, a))}
            results[key] = replace_values(label, pairs) if pairs else label
        return results
