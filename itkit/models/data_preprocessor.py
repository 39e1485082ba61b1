"""The last step before a network: samples become one float32 batch on the network's device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from itkit.errors import ConfigError
from itkit.registry import MODELS


@MODELS.register_module()
class VolumeDataPreprocessor(BaseDataPreprocessor):
    """Stack samples to a batch, move it to the device, make it float32.

    Values are not changed: windowing and normalisation belong to the pipeline, where deployment finds them too. Integer
    images travel to the device in their own type and become float32 there.

    Args:
        non_blocking: Copy to the device without waiting (has an effect from pinned memory only).
    """

    def __init__(self, non_blocking: bool = True):
        super().__init__(non_blocking)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Return `data` with ``inputs`` as the network takes them.

        Args:
            data: ``inputs``: a list of N tensors (C, Z, Y, X) or (C, Y, X), or one tensor (N, C, ...) that is stacked
                already. Whatever else it holds (``data_samples``) is moved to the device.
            training: Whether a training step asks. Samples of different shapes cannot be trained on together; for
                prediction ``inputs`` then stays a list, and the task model predicts one after the other.

        Raises:
            ConfigError: If ``inputs`` is missing or of another type, or if training samples differ in shape.
        """
        if "inputs" not in data:
            raise ConfigError(
                f"a batch without 'inputs' (it has {', '.join(map(str, data)) or 'nothing'}) reached the data "
                "preprocessor. End the pipeline with a packing transform."
            )
        inputs = data["inputs"]
        rest = {key: self.cast_data(value) for key, value in data.items() if key != "inputs"}
        if isinstance(inputs, Tensor):
            return {"inputs": self._to_device(inputs), **rest}
        if not isinstance(inputs, Sequence) or not inputs or not all(isinstance(x, Tensor) for x in inputs):
            raise ConfigError(
                "'inputs' of a batch must be a tensor or a non-empty list of tensors (C, ...), found "
                f"{_kind(inputs)}. Check the collate function and the packing transform."
            )
        if all(x.shape == inputs[0].shape for x in inputs):
            return {"inputs": self._to_device(torch.stack(list(inputs))), **rest}
        if training:
            names = _case_ids(data.get("data_samples"), len(inputs))
            found = ", ".join(f"{name} {tuple(x.shape)}" for name, x in zip(names, inputs, strict=True))
            raise ConfigError(
                f"training samples of one batch differ in shape (C, ...): {found}. Crop or pad all to one size at the "
                "end of the training pipeline, or set batch_size=1."
            )
        return {"inputs": [self._to_device(x) for x in inputs], **rest}

    def _to_device(self, x: Tensor) -> Tensor:
        return x.to(self.device, non_blocking=self._non_blocking).float()


def _kind(inputs: Any) -> str:
    if isinstance(inputs, (list, tuple)):
        return f"a {type(inputs).__name__} of {', '.join(sorted({type(x).__name__ for x in inputs})) or 'nothing'}"
    return type(inputs).__name__


def _case_ids(data_samples: Any, count: int) -> list[str]:
    samples = data_samples if isinstance(data_samples, Sequence) and len(data_samples) == count else [None] * count
    return [str(getattr(sample, "case_id", f"sample {i}")) for i, sample in enumerate(samples)]
