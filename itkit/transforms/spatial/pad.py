"""Make small volumes as large as a network needs them."""

from __future__ import annotations

from mmcv.transforms import BaseTransform

from itkit.errors import ConfigError
from itkit.io.preprocessing import PAD_MODES, PAD_POSITIONS, pad, pad_margins
from itkit.registry import TRANSFORMS
from itkit.transforms.sample import Sample, label_keys, move_origin, put_image, spatial_shape
from itkit.transforms.spatial.sizes import Size, checked_size, size_for


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
        if mode not in PAD_MODES:
            raise ConfigError(f"PadToSize: mode must be one of {', '.join(PAD_MODES)}; found {mode!r}.")
        if position not in PAD_POSITIONS:
            raise ConfigError(f"PadToSize: position must be one of {', '.join(PAD_POSITIONS)}; found {position!r}.")
        if isinstance(value, str) and value != "min":
            raise ConfigError(f"PadToSize: value must be a number or 'min'; found {value!r}.")
        self.size = None if size is None else checked_size(size, self)
        self.divisor, self.mode, self.value = divisor, mode, value
        self.label_value, self.position = label_value, position

    def transform(self, results: Sample) -> Sample:
        """Pad the image and every label map alike."""
        shape = spatial_shape(results)
        target = shape if self.size is None else size_for(self.size, shape, "PadToSize")
        margins = pad_margins(shape, target, self.divisor, self.position)
        if not any(map(any, margins)):
            return results
        image = results["img"]
        value = image.min() if self.value == "min" else self.value
        put_image(results, pad(image, [(0, 0), *margins], self.mode, value))
        for key in label_keys(results):
            results[key] = pad(results[key], margins, self.mode, self.label_value)
        move_origin(results, tuple(-before for before, _ in margins))
        return results

    def __repr__(self) -> str:
        """Name and arguments."""
        return (
            f"PadToSize(size={self.size}, divisor={self.divisor}, mode={self.mode!r}, value={self.value!r}, "
            f"label_value={self.label_value}, position={self.position!r})"
        )
