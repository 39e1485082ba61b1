"""Several losses as one: their weighted sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from itkit.criterion.base import check_number
from itkit.errors import ConfigError
from itkit.registry import MODELS


@MODELS.register_module()
class CombinedLoss(nn.Module):
    """The weighted sum of losses, e.g. ``dict(type=CombinedLoss, losses=[(dict(type=DiceLoss), 1.0), ...])``.

    For Dice with cross-entropy take `DiceCELoss`, which computes both from one softmax.

    Args:
        losses: Pairs of a loss (a module, or its config) and its weight >= 0.

    Raises:
        ConfigError: If there is no loss, an entry is no such pair, or a weight is negative.
    """

    def __init__(self, losses: Sequence[tuple[nn.Module | dict[str, Any], float]]):
        super().__init__()
        if not losses:
            raise ConfigError("CombinedLoss needs at least one pair (loss, weight).")
        for entry in losses:
            if not isinstance(entry, Sequence) or len(entry) != 2:
                raise ConfigError(f"CombinedLoss takes pairs (loss, weight); found {entry!r}.")
        self.losses = nn.ModuleList(build_loss(loss) for loss, _ in losses)
        self.weights = tuple(check_number("the weight of a loss", weight, 0) for _, weight in losses)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the weighted sum, a scalar; the arguments are those of the losses."""
        return sum(weight * loss(logits, target) for loss, weight in zip(self.losses, self.weights, strict=True))


def build_loss(loss: nn.Module | dict[str, Any]) -> nn.Module:
    """Return `loss`, built if it is a config."""
    return loss if isinstance(loss, nn.Module) else MODELS.build(loss)
