"""Cross-entropy as a module for configs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from itkit.criterion.base import SegmentationLoss, check_number
from itkit.criterion.functional import cross_entropy_loss
from itkit.registry import MODELS


@MODELS.register_module()
class CrossEntropyLoss(SegmentationLoss):
    """Cross-entropy over all classes, see `functional.cross_entropy_loss`; calls and checks as in `SegmentationLoss`.

    Args:
        class_weights: One number for each class, background first. ``None``: none.
        ignore_index: Label whose voxels contribute nothing. ``None``: there is none.
        label_smoothing: Share of the truth that is spread over all classes, 0 to 1 (exclusive).

    Raises:
        ConfigError: If an argument is out of range.
    """

    def __init__(
        self,
        *,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
    ):
        super().__init__(class_weights=class_weights, ignore_index=ignore_index)
        self.label_smoothing = check_number("label_smoothing", label_smoothing, 0, 1)

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a checked target."""
        return cross_entropy_loss(
            logits,
            target,
            class_weights=self.class_weights,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )
