"""Make a batch of samples that may differ in size, or that come several from one volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from itkit.errors import ConfigError
from itkit.registry import FUNCTIONS


@FUNCTIONS.register_module()
def multi_sample_collate(batch: Sequence[dict | Sequence[dict]]) -> dict[str, list[Any]]:
    """Put samples, or lists of samples, in one flat batch; the data preprocessor stacks them.

    Args:
        batch: What the dataset yields: packed samples ``{"inputs": Tensor (C, Z, Y, X) or (C, Y, X), "data_samples":
            Seg3DDataSample}``, or lists of them where one loaded volume gives several.

    Returns:
        ``{"inputs": [...], "data_samples": [...]}``, in the order of `batch`.

    Raises:
        ConfigError: If a sample is not packed.
    """
    samples = [sample for item in batch for sample in (item if isinstance(item, (list, tuple)) else [item])]
    for sample in samples:
        if not isinstance(sample, dict) or not {"inputs", "data_samples"} <= sample.keys():
            found = sorted(sample) if isinstance(sample, dict) else type(sample).__name__
            raise ConfigError(
                f"a sample has no 'inputs' and 'data_samples' but {found}; end the pipeline with the packing transform."
            )
    return {key: [sample[key] for sample in samples] for key in ("inputs", "data_samples")}
