"""Make small volumes as large as a network needs them."""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform

from itkit.errors import ConfigError
from itkit.registry import TRANSFORMS
from itkit.transforms.sample import Sample, label_keys, move_origin, put_image, spatial_shape
from itkit.transforms.spatial.sizes import Size, checked_size, size_for

MODES = ("constant", "edge", "reflect")
POSITIONS = ("centre", "start")


@TRANSFORMS.register_module()
class PadToSize(BaseTransform):
    """Pad axes that are shorter than `size`; longer ones stay. Number types stay, ``origin_xyz`` follows.

    `CropToSize` with the old size takes the padding off again.

    Args:
        size: Voxels, one number for all axes or one per axis, None for an axis that stays.
        divisor: Each axis is then padded up to a multiple of this.
        mode: ``"constant"``: `value`; ``"edge"``: the border repeats; ``"reflect"``: mirrored at the border. Labels are
            padded with `label_value` in constant mode, else like the image.
        value: Intensity of padded voxels in constant mode, a number or ``"min"``, the image's smallest.
        label_value: Label of padded voxels in constant mode.
        position: Where the old volume lies: in the ``"centre"`` (the odd voxel is added at the end), or at the ``"start"``.

    Raises:
        ConfigError: If neither `size` nor `divisor` is given, or an argument is none of the above.
    """

    def __init__(
        self,
        size: Size | None = None,
        *,
        divisor: int | None = None,
        mode: str = "constant",
        value: float | str = 0.0,
        label_value: int = 0,
        position: str = "centre",
    ):
        if size is None and divisor is None:
            raise ConfigError("PadToSize needs a size, a divisor, or both.")
        if divisor is not None and not (isinstance(divisor, int) and divisor > 0):
            raise ConfigError(f"PadToSize: divisor must be a positive integer; found {divisor!r}.")
        if mode not in MODES:
            raise ConfigError(f"PadToSize: mode must be one of {', '.join(MODES)}; found {mode!r}.")
        if position not in POSITIONS:
            raise ConfigError(f"PadToSize: position must be one of {', '.join(POSITIONS)}; found {position!r}.")
        if isinstance(value, str) and value != "min":
            raise ConfigError(f"PadToSize: value must be a number or 'min'; found {value!r}.")
        self.size = None if size is None else checked_size(size, self)
        self.divisor, self.mode, self.value = divisor, mode, value
        self.label_value, self.position = label_value, position

    def transform(self, results: Sample) -> Sample:
        """Pad the image and every label map alike."""
        shape = spatial_shape(results)
        target = shape if self.size is None else size_for(self.size, shape, "PadToSize")
        step = self.divisor or 1
        target = [-(-max(t, n) // step) * step for t, n in zip(target, shape, strict=True)]
        before = [(t - n) // 2 if self.position == "centre" else 0 for t, n in zip(target, shape, strict=True)]
        margins = [(b, t - n - b) for b, t, n in zip(before, target, shape, strict=True)]
        if not any(map(any, margins)):
            return results
        image = results["img"]
        value = image.min() if self.value == "min" else self.value
        put_image(results, _pad(image, [(0, 0), *margins], self.mode, value))
        for key in label_keys(results):
            results[key] = _pad(results[key], margins, self.mode, self.label_value)
        move_origin(results, tuple(-b for b in before))
        return results

    def __repr__(self) -> str:
        """Name and arguments."""
        return (
            f"PadToSize(size={self.size}, divisor={self.divisor}, mode={self.mode!r}, value={self.value!r}, "
            f"label_value={self.label_value}, position={self.position!r})"
        )


def _pad(array: np.ndarray, margins: list[tuple[int, int]], mode: str, value: float) -> np.ndarray:
    if mode != "constant":
        return np.pad(array, margins, mode=mode if mode == "edge" else "symmetric")
    shape = [n + a + b for n, (a, b) in zip(array.shape, margins, strict=True)]
    padded = np.full(shape, value, array.dtype)
    padded[tuple(slice(a, a + n) for n, (a, _) in zip(array.shape, margins, strict=True))] = array
    return padded
