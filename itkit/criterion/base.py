"""What the loss modules share: weights in a buffer, and the check of the labels they are given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from itkit.criterion.target import check_labels, match_target
from itkit.errors import ConfigError


class SegmentationLoss(nn.Module):
    """A loss ``loss(logits, target) -> scalar`` over one of the functions of `itkit.criterion.functional`.

    Labels out of range raise `DataError`. On a CPU every call is checked, which costs one pass over the target. On a GPU
    reading values makes the processor wait, so calls number 1, 2, 4, 8, ... are checked: a wrong data set is found at the
    start, and later steps do not wait. Inside ``torch.compile`` nothing is checked.

    Args:
        class_weights: One number >= 0 for each class, background first. ``None``: no weights. Kept in a buffer that moves
            with the module and is not part of checkpoints.
        ignore_index: Label whose voxels contribute nothing. ``None``: there is none.

    Raises:
        ConfigError: If a weight is negative or not finite, or all are 0.
    """

    class_weights: Tensor | None

    def __init__(self, *, class_weights: Sequence[float] | None = None, ignore_index: int | None = None):
        super().__init__()
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32).clone()
        if weights is not None and not (weights.ndim == 1 and (weights >= 0).all() and 0 < weights.sum() < torch.inf):
            raise ConfigError(
                f"class_weights must be a list of finite numbers >= 0, one at least above 0; found {class_weights}."
            )
        self.register_buffer("class_weights", weights, persistent=False)
        self.ignore_index = ignore_index
        self._calls = 0

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            logits: (N, K, *spatial) network outputs, 2D or 3D; K = 1 is one sigmoid channel.
            target: (N, *spatial) or (N, 1, *spatial) class numbers of any integer type.

        Raises:
            UsageError: If the shapes do not belong together, or `class_weights` does not fit K.
            DataError: If a label is out of range.
        """
        target = match_target(logits, target)
        if not (torch.compiler.is_compiling() or target.is_meta):
            self._calls += 1
            if target.device.type == "cpu" or self._calls & (self._calls - 1) == 0:
                check_labels(target, max(logits.shape[1], 2), self.ignore_index)
        return self.compute(logits, target)

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a target that has been checked, (N, *spatial) int64."""
        raise NotImplementedError


class OverlapLoss(SegmentationLoss):
    """A loss made of the soft counts of each class, averaged over classes.

    Args:
        include_background: Whether class 0 takes part in the mean. Metrics leave it out, so the default does too.
        batch_dice: Count over the whole batch before dividing.
        class_weights: One number for each class, background first. ``None``: none.
        ignore_index: Label whose voxels contribute nothing. ``None``: there is none.
        smooth: Added to numerator and denominator, above 0.

    Raises:
        ConfigError: If an argument is out of range.
    """

    def __init__(
        self,
        *,
        include_background: bool = False,
        batch_dice: bool = False,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
        smooth: float = 1e-5,
    ):
        super().__init__(class_weights=class_weights, ignore_index=ignore_index)
        if class_weights is not None and not include_background and not self.class_weights[1:].any():
            raise ConfigError(
                f"class_weights {class_weights} leave no foreground class; give one a weight or set include_background=True."
            )
        self.include_background, self.batch_dice = include_background, batch_dice
        self.smooth = check_number("smooth", smooth, 0, above=True)

    @property
    def counting(self) -> dict:
        """The options above, as the functions take them."""
        return {
            "include_background": self.include_background,
            "batch_dice": self.batch_dice,
            "class_weights": self.class_weights,
            "ignore_index": self.ignore_index,
            "smooth": self.smooth,
        }


def check_number(name: str, value: float, low: float, high: float = float("inf"), *, above: bool = False) -> float:
    """Return `value` as a float.

    Args:
        name: Of the argument, for the message.
        value: What was given.
        low: Smallest allowed value.
        high: First value that is too large.
        above: Whether `low` itself is too small.

    Raises:
        ConfigError: If `value` is out of range.
    """
    value = float(value)
    if not (low < value if above else low <= value) or not value < high:
        limits = f"{'above' if above else 'at least'} {low:g}" + (
            "" if high == float("inf") else f" and below {high:g}"
        )
        raise ConfigError(f"{name} must be {limits}; found {value:g}.")
    return value
