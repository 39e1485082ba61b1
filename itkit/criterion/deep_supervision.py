"""A loss on several outputs of one network, of which the later ones are coarser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from itkit.criterion.base import check_number
from itkit.criterion.combined import build_loss
from itkit.criterion.target import match_target
from itkit.errors import ConfigError, UsageError
from itkit.registry import MODELS


@MODELS.register_module()
class DeepSupervisionLoss(nn.Module):
    """The weighted sum of one loss over the outputs of a network, each against the target at its own resolution.

    Source: Lee et al., Deeply-supervised nets, AISTATS 2015.

    Args:
        loss: A loss (a module, or its config), called ``loss(logits, target)``.
        weights: Weight >= 0 of each output, the finest first, used as they are; an output of weight 0 costs nothing.
            ``None``: each weight is half of the one before, and all add up to 1.

    Raises:
        ConfigError: If a weight is negative, or all are 0.
    """

    def __init__(self, loss: nn.Module | dict[str, Any], weights: Sequence[float] | None = None):
        super().__init__()
        self.loss = build_loss(loss)
        self.weights = (
            None if weights is None else tuple(check_number("a deep supervision weight", w, 0) for w in weights)
        )
        if self.weights is not None and not any(self.weights):
            raise ConfigError(f"deep supervision weights must not all be 0; found {self.weights}.")

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            outputs: Logits (N, K, *spatial) of each level, the finest first. One tensor: its plain loss.
            target: (N, *spatial) or (N, 1, *spatial) class numbers.

        Raises:
            UsageError: If there is no output, or the number of outputs is not that of the weights.
        """
        if isinstance(outputs, Tensor):
            return self.loss(outputs, target)
        weights = self._weights_of(len(outputs))
        return sum(
            weight * self.loss(logits, nearest_labels(target, logits))
            for logits, weight in zip(outputs, weights, strict=True)
            if weight
        )

    def _weights_of(self, count: int) -> tuple[float, ...]:
        if not count:
            raise UsageError("deep supervision was given no output; a network must return at least one.")
        if self.weights is None:
            total = 2 - 0.5 ** (count - 1)
            return tuple(0.5**level / total for level in range(count))
        if len(self.weights) != count:
            raise UsageError(
                f"deep supervision has {len(self.weights)} weights and the network {count} outputs; give one weight for "
                "each output, or none to halve from output to output."
            )
        return self.weights


def nearest_labels(target: Tensor, logits: Tensor) -> Tensor:
    """Return the target on the grid of the logits, each new voxel with the label at its centre; no new label can appear.

    Both grids cover the same space. A centre that lies on the border of two voxels takes the later one.

    Args:
        target: (N, *spatial) or (N, 1, *spatial) integers. Returned as it is if the sizes agree. Not modified.
        logits: (N, K, *coarser spatial); only its shape is looked at.

    Raises:
        UsageError: If the target has not as many axes as the logits have.
    """
    if target.ndim == logits.ndim and target.shape[1] == 1:
        target = target[:, 0]
    if target.ndim != logits.ndim - 1:
        return match_target(logits, target)
    for axis, (old, new) in enumerate(zip(target.shape[1:], logits.shape[2:], strict=True), start=1):
        if old != new:
            index = (2 * torch.arange(new, device=target.device) + 1) * old // (2 * new)
            target = target.index_select(axis, index)
    return target
