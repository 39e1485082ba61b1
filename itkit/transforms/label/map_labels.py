"""Give the classes of a label map other numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from mmcv.transforms import BaseTransform

from itkit.errors import ConfigError, DataError
from itkit.io.labels import replace_values
from itkit.registry import TRANSFORMS
from itkit.transforms.loading import require_classes
from itkit.transforms.sample import Sample, label_keys


@TRANSFORMS.register_module()
class MapLabels(BaseTransform):
    """Replace label values; all replacements happen at once, so values can be swapped. The type stays.

    Args:
        mapping: ``{old: new}``; several old values may become one new value.
        others: What a value becomes that `mapping` does not name. ``None``: it stays.

    Raises:
        ConfigError: If `mapping` is empty or a value is no integer.
        DataError: If a new value does not fit into the label's type, or a result is not below the sample's
            ``num_classes``.
    """

    def __init__(self, mapping: Mapping[int, int], others: int | None = None):
        if not mapping:
            raise ConfigError("MapLabels: mapping is empty; give {old: new}.")
        values = [*mapping.keys(), *mapping.values(), *([] if others is None else [others])]
        if not all(isinstance(value, int) for value in values):
            raise ConfigError(f"MapLabels: label values must be integers; found {dict(mapping)!r}, others {others!r}.")
        self.mapping = dict(mapping)
        self.others = others

    def transform(self, results: Sample) -> Sample:
        """Map every label map of the sample."""
        for key in label_keys(results):
            label, path = results[key], results.get("seg_map_path")
            limits = np.iinfo(label.dtype)
            wrong = sorted(v for v in {*self.mapping.values(), self.others or 0} if not limits.min <= v <= limits.max)
            if wrong:
                raise DataError(
                    f"MapLabels makes {wrong}, which {label.dtype} cannot hold; put TypeConvert(label='int32') "
                    "before it.",
                    path,
                )
            mapped = replace_values(label, self.mapping, others=self.others)
            require_classes(mapped, results.get("num_classes"), path)
            results[key] = mapped
        return results

    def __repr__(self) -> str:
        """Name and arguments."""
        return f"MapLabels(mapping={self.mapping}, others={self.others})"
