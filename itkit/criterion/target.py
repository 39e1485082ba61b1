"""The label map that a loss is given: its shape against the logits, its values against the classes."""

from __future__ import annotations

import torch
from torch import Tensor

from itkit.errors import DataError, UsageError


def match_target(logits: Tensor, target: Tensor) -> Tensor:
    """Return the target without channel axis, (N, *spatial) int64, for logits (N, K, *spatial).

    Looks at shapes and types only, never at values: it does not wait for a GPU.

    Args:
        logits: (N, K, *spatial), any floating type.
        target: (N, *spatial) or (N, 1, *spatial), any integer type or bool. Not modified.

    Raises:
        UsageError: If the shapes do not belong together, or the target does not hold integers.
    """
    found = tuple(target.shape)
    if target.ndim == logits.ndim and target.shape[1] == 1:
        target = target[:, 0]
    if logits.ndim < 3 or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise UsageError(
            f"a loss needs logits (N, classes, *spatial) and a target (N, *spatial); found {tuple(logits.shape)} and "
            f"{found}. Targets are class numbers, not one-hot."
        )
    if target.is_floating_point() or target.is_complex():
        raise UsageError(
            f"a target holds class numbers of an integer type; found {target.dtype}. Pack labels as integers."
        )
    return target.long()


def check_labels(target: Tensor, num_classes: int, ignore_index: int | None = None) -> None:
    """Refuse labels that no class has. Reads the values: on a GPU this waits for all work before it.

    Args:
        target: Integers, any shape.
        num_classes: Number of classes, background included; labels are 0 to ``num_classes - 1``.
        ignore_index: Another label that is allowed. ``None``: there is none.

    Raises:
        DataError: If a label is out of range.
    """
    if target.numel() == 0:
        return
    low, high = (int(value) for value in torch.aminmax(target))
    if low >= 0 and high < num_classes:
        return
    wrong = (target < 0) | (target >= num_classes)
    if ignore_index is not None:
        wrong &= target != ignore_index
    if wrong.any():
        raise DataError(
            f"the target holds label {int(target[wrong][0])}, but the model has {num_classes} classes, labels 0 to "
            f"{num_classes - 1}. Correct the labels or num_classes, or set ignore_index."
        )
