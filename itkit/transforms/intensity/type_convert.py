"""Choose the number type of image and label, out loud."""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform

from itkit.errors import ConfigError, DataError
from itkit.registry import TRANSFORMS
from itkit.transforms.sample import Sample, label_keys, spatial_shape


@TRANSFORMS.register_module()
class TypeConvert(BaseTransform):
    """Convert the image, and on request the label maps, to another number type.

    Args:
        image: NumPy name of a floating type, e.g. ``"float32"``. ``None``: as it is.
        label: NumPy name of an integer type. ``None``: as it is.

    Raises:
        ConfigError: If a name is no such type.
        DataError: If a label value does not fit into the type.
    """

    def __init__(self, image: str | None = "float32", label: str | None = None):
        self.image, self.label = _checked("image", image, "f"), _checked("label", label, "iu")

    def transform(self, results: Sample) -> Sample:
        """Convert."""
        spatial_shape(results)
        if self.image is not None:
            results["img"] = results["img"].astype(self.image, copy=False)
        if self.label is not None:
            limits = np.iinfo(self.label)
            for key in label_keys(results):
                low, high = int(results[key].min()), int(results[key].max())
                if low < limits.min or high > limits.max:
                    raise DataError(
                        f"{key!r} has values from {low} to {high}, {self.label} holds {limits.min} to "
                        f"{limits.max}; choose a larger type.",
                        results.get("seg_map_path"),
                    )
                results[key] = results[key].astype(self.label, copy=False)
        return results

    def __repr__(self) -> str:
        """Name and arguments."""
        return f"TypeConvert(image={self.image!r}, label={self.label!r})"


def _checked(what: str, name: str | None, kinds: str) -> str | None:
    if name is None:
        return None
    try:
        dtype = np.dtype(name)
    except TypeError as error:
        raise ConfigError(f"TypeConvert: {what} {name!r} is no NumPy type.") from error
    if dtype.kind not in kinds:
        kind = "a floating type" if kinds == "f" else "an integer type"
        raise ConfigError(f"TypeConvert: {what} must be {kind}; found {name!r}.")
    return dtype.name
