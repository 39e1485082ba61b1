"""Focal loss as a module for configs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from itkit.criterion.base import SegmentationLoss, check_number
from itkit.criterion.functional import focal_loss
from itkit.registry import MODELS


@MODELS.register_module()
class FocalLoss(SegmentationLoss):
    """Cross-entropy that counts easy voxels less, see `functional.focal_loss`; calls and checks as in `SegmentationLoss`.

    Args:
        gamma: How much less, >= 0; 0 is the cross-entropy.
        class_weights: One number for each class, background first (the alpha of the paper). ``None``: none.
        ignore_index: Label whose voxels contribute nothing. ``None``: there is none.

    Raises:
        ConfigError: If an argument is out of range.
    """

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
    ):
        super().__init__(class_weights=class_weights, ignore_index=ignore_index)
        self.gamma = check_number("gamma", gamma, 0)

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a checked target."""
        return focal_loss(
            logits, target, gamma=self.gamma, class_weights=self.class_weights, ignore_index=self.ignore_index
        )
