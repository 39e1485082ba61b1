"""Dice loss, alone and together with cross-entropy, as modules for configs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from itkit.criterion.base import OverlapLoss, check_number
from itkit.criterion.functional import dice_ce_loss, dice_loss
from itkit.registry import MODELS


@MODELS.register_module()
class DiceLoss(OverlapLoss):
    """Soft Dice loss, see `functional.dice_loss`; arguments as in `OverlapLoss`, calls and checks as in `SegmentationLoss`."""

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a checked target."""
        return dice_loss(logits, target, **self.counting)


@MODELS.register_module()
class DiceCELoss(OverlapLoss):
    """Weighted sum of Dice loss and cross-entropy from one softmax, see `functional.dice_ce_loss`.

    Args:
        dice_weight: Weight of the Dice loss.
        ce_weight: Weight of the cross-entropy.
        label_smoothing: Of the cross-entropy, 0 to 1 (exclusive).
        include_background: As in `OverlapLoss`; the cross-entropy always covers all classes.
        batch_dice: As in `OverlapLoss`.
        class_weights: As in `OverlapLoss`, for both parts.
        ignore_index: As in `OverlapLoss`, for both parts.
        smooth: As in `OverlapLoss`.

    Raises:
        ConfigError: If an argument is out of range.
    """

    def __init__(
        self,
        *,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        include_background: bool = False,
        batch_dice: bool = False,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
        smooth: float = 1e-5,
        label_smoothing: float = 0.0,
    ):
        super().__init__(
            include_background=include_background,
            batch_dice=batch_dice,
            class_weights=class_weights,
            ignore_index=ignore_index,
            smooth=smooth,
        )
        self.dice_weight = check_number("dice_weight", dice_weight, 0)
        self.ce_weight = check_number("ce_weight", ce_weight, 0)
        self.label_smoothing = check_number("label_smoothing", label_smoothing, 0, 1)

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a checked target."""
        return dice_ce_loss(
            logits,
            target,
            dice_weight=self.dice_weight,
            ce_weight=self.ce_weight,
            **self.counting,
            label_smoothing=self.label_smoothing,
        )
