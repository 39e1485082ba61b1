"""A trained network asked by PyTorch: the task model of a config, with the weights of a checkpoint."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import numpy as np
import torch

from itkit.deploy.recipe import Recipe
from itkit.errors import UsageError
from itkit.ops.memory_errors import give_back_device_memory, is_memory_error


class TorchBackend:
    """The network of a task model.

    Args:
        model: A task model of itkit with its weights. It is put on the device and into evaluation mode.
        recipe: What must be done before and after.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...; None: the first GPU where there is one, else the CPU.
        half: Compute in float16 on a GPU whatever the model's `use_half` says. On a CPU a warning is given and float32 used.

    Raises:
        UsageError: If there is no such device.
    """

    name = "mmengine"

    def __init__(self, model: torch.nn.Module, recipe: Recipe, *, device: str | None = None, half: bool = False):
        self._device = _device(device)
        self.device, self.recipe = str(self._device), recipe
        self._model = model.to(self._device).eval()
        if half and self._device.type == "cpu":
            warnings.warn("half precision has no effect on a CPU; predicting in float32.", stacklevel=2)
        elif half:
            self._model.use_half = "fp16"
        elif self._device.type == "cpu":
            self._model.use_half = False  # said by the model itself otherwise, with every case

    @property
    def model(self) -> torch.nn.Module:
        """The task model."""
        return self._model

    def asarray(self, windows: np.ndarray) -> torch.Tensor:
        """Return windows (B, C, *patch) as a float32 tensor on the device."""
        tensor = torch.from_numpy(np.ascontiguousarray(windows, dtype=np.float32))
        return tensor if self._device.type == "cpu" else tensor.to(self._device, non_blocking=True)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, K, *patch) of windows (B, C, *patch)."""
        with torch.inference_mode():
            return self._model.window_logits(windows)

    def to_numpy(self, array: Any) -> np.ndarray:
        """Return a tensor as an array in main memory."""
        return array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()

    def is_memory_error(self, error: BaseException) -> bool:
        """Whether `error` says that memory could not be had."""
        return is_memory_error(error)

    def release_memory(self) -> None:
        """Give cached blocks of a GPU back."""
        give_back_device_memory()


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    with contextlib.suppress(RuntimeError):
        device = torch.device(name)
        if device.type == "cpu":
            return device
        if device.type == "cuda" and torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count():
            return torch.device("cuda", device.index or 0)
    found = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    raise UsageError(f"device {name!r} is not here; found {', '.join(['cpu', *found])}.")
