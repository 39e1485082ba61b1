"""One class against the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform

from itkit.errors import ConfigError
from itkit.registry import TRANSFORMS
from itkit.transforms.sample import Sample, label_keys


@TRANSFORMS.register_module()
class BinariseLabel(BaseTransform):
    """Make chosen classes 1 and everything else 0. The type stays.

    Args:
        foreground: Label values that become 1. ``None``: all above 0.

    Raises:
        ConfigError: If `foreground` is empty.
    """

    def __init__(self, foreground: Sequence[int] | None = None):
        if foreground is not None and not len(foreground):
            raise ConfigError("BinariseLabel: foreground names no value; leave it None for all above 0.")
        self.foreground = None if foreground is None else tuple(foreground)

    def transform(self, results: Sample) -> Sample:
        """Binarise every label map of the sample."""
        for key in label_keys(results):
            label = results[key]
            inside = label > 0 if self.foreground is None else np.isin(label, self.foreground)
            results[key] = inside.astype(label.dtype)
        return results

    def __repr__(self) -> str:
        """Name and arguments."""
        return f"BinariseLabel(foreground={self.foreground})"
