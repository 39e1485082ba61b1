"""Tversky loss as a module for configs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from itkit.criterion.base import OverlapLoss, check_number
from itkit.criterion.functional import tversky_loss
from itkit.errors import ConfigError
from itkit.registry import MODELS


@MODELS.register_module()
class TverskyLoss(OverlapLoss):
    """Dice loss with separate costs of false positives and negatives, see `functional.tversky_loss`.

    Args:
        alpha: Weight of false positives, >= 0.
        beta: Weight of false negatives, >= 0. The two may not both be 0.
        include_background: As in `OverlapLoss`.
        batch_dice: As in `OverlapLoss`.
        class_weights: As in `OverlapLoss`.
        ignore_index: As in `OverlapLoss`.
        smooth: As in `OverlapLoss`.

    Raises:
        ConfigError: If an argument is out of range.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.3,
        beta: float = 0.7,
        include_background: bool = False,
        batch_dice: bool = False,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
        smooth: float = 1e-5,
    ):
        super().__init__(
            include_background=include_background,
            batch_dice=batch_dice,
            class_weights=class_weights,
            ignore_index=ignore_index,
            smooth=smooth,
        )
        self.alpha, self.beta = check_number("alpha", alpha, 0), check_number("beta", beta, 0)
        if not self.alpha + self.beta:
            raise ConfigError(
                "alpha and beta are both 0: no error would cost anything; give one of them a value above 0."
            )

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a checked target."""
        return tversky_loss(logits, target, alpha=self.alpha, beta=self.beta, **self.counting)
