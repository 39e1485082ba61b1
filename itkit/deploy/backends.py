"""What the predictor asks of whatever computes a network, and the answer of PyTorch."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from itkit.deploy.recipe import Recipe


@runtime_checkable
class Backend(Protocol):
    """A network that can be asked, with the recipe it must be used by.

    Attributes:
        recipe: What must be done before and after.
        name: ``"mmengine"``, ``"onnx"`` or ``"ensemble"``.
        device: Where it computes, in words, e.g. ``"cpu"`` or ``"cuda:0"``.
    """

    recipe: Recipe
    name: str
    device: str

    def asarray(self, windows: np.ndarray) -> Any:
        """Return windows (B, C, *patch), float32, as `forward` takes them, on its device."""
        ...

    def forward(self, windows: Any) -> Any:
        """Return the logits (B, K, *patch) of windows (B, C, *patch), float32, of the same kind of array.

        A network of slices is given (B, C * (2 k + 1), Y, X) and answers (B, K, Y, X).
        """
        ...

    def to_numpy(self, array: Any) -> np.ndarray:
        """Return an array of the backend's kind as a NumPy array in main memory."""
        ...

    def is_memory_error(self, error: BaseException) -> bool:
        """Whether `error` says that memory could not be had, so that a smaller batch may succeed."""
        ...

    def release_memory(self) -> None:
        """Give back what the backend holds in reserve, before it is asked again with less."""
        ...
