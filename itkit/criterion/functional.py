"""The mathematics of the losses: pure functions of logits and target.

Shapes throughout: `logits` (N, K, *spatial) in 2D or 3D, raw network outputs; `target` (N, *spatial) int64 with labels 0 to
K - 1. K = 1 means one sigmoid channel, the foreground, with labels 0 and 1. Options that several functions share:

* `include_background`: whether class 0 takes part in the mean over classes (no effect for K = 1, which has none);
* `batch_dice`: count over the whole batch before dividing, in place of one value for each sample;
* `class_weights`: one number for each class, background first (K = 1: background, foreground); means become weighted
  means, so weights that are all equal change nothing. ``None``: no weights;
* `ignore_index`: label whose voxels contribute nothing. ``None``: there is none;
* `smooth`: added to numerator and denominator: a class that neither truth nor prediction has is then a perfect one.

Labels are not checked here (that would make a GPU wait): see `itkit.criterion.target`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from itkit.criterion.soft_counts import SoftCounts, soft_counts
from itkit.errors import UsageError


def dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    include_background: bool = False,
    batch_dice: bool = False,
    class_weights: Tensor | None = None,
    ignore_index: int | None = None,
    smooth: float = 1e-5,
) -> Tensor:
    """Return the soft Dice loss, the mean over samples and classes of 1 - (2 overlap + s) / (mass + volume + s).

    0 for a perfect prediction, 1 - O(s) for one that misses everything. Source: Milletari, Navab, Ahmadi, V-Net, 3DV 2016
    (without the squares in the denominator).

    Raises:
        UsageError: If `class_weights` has not one number for each class.
    """
    counts = soft_counts(logits, target, ignore_index)
    return _dice(counts, include_background, batch_dice, _fitting(class_weights, logits), smooth)


def tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    include_background: bool = False,
    batch_dice: bool = False,
    class_weights: Tensor | None = None,
    ignore_index: int | None = None,
    smooth: float = 1e-5,
) -> Tensor:
    """Return the Tversky loss, the mean of 1 - (TP + s) / (TP + alpha FP + beta FN + s) with soft counts.

    ``alpha = beta = 0.5`` is the Dice loss but for `smooth`. Source: Salehi, Erdogmus, Gholipour, MLMI 2017.

    Args:
        logits: See above.
        target: See above.
        alpha: Weight of false positives.
        beta: Weight of false negatives; above `alpha` it favours recall.
        include_background: See above.
        batch_dice: See above.
        class_weights: See above.
        ignore_index: See above.
        smooth: See above.

    Raises:
        UsageError: If `class_weights` has not one number for each class.
    """
    counts = soft_counts(logits, target, ignore_index)
    hit, mass, volume = _pooled(counts, batch_dice)
    share = (hit + smooth) / (hit + alpha * (mass - hit) + beta * (volume - hit) + smooth)
    return _mean_over_classes(1 - share, include_background, _fitting(class_weights, logits))


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    *,
    class_weights: Tensor | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the cross-entropy in nats, the (weighted) mean over all voxels that are not ignored, 0 if all are.

    Args:
        logits: See above.
        target: See above.
        class_weights: See above.
        ignore_index: See above.
        label_smoothing: Share of the truth that is spread evenly over all classes (K = 1: over both labels), with the
            classes' weights. Source: Szegedy et al., CVPR 2016.

    Raises:
        UsageError: If `class_weights` has not one number for each class.
    """
    weights = _fitting(class_weights, logits)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if logits.shape[1] == 1:  # sigmoid(x) is the second entry of softmax([0, x])
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    total = F.cross_entropy(
        logits,
        target,
        weight=None if weights is None else weights.to(logits.dtype),
        ignore_index=-100 if ignore_index is None else ignore_index,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    valid = None if ignore_index is None else target != ignore_index
    return total / _total_weight(target, valid, weights, total.dtype)


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    class_weights: Tensor | None = None,
    ignore_index: int | None = None,
) -> Tensor:
    """Return the focal loss, the (weighted) mean over voxels of -(1 - p)^gamma log p with p the probability of the truth.

    ``gamma = 0`` is the cross-entropy. (MONAI also divides by the number of classes.) Source: Lin et al., ICCV 2017.

    Raises:
        UsageError: If `class_weights` has not one number for each class.
    """
    weights = _fitting(class_weights, logits)
    counts = soft_counts(logits, target, ignore_index)
    # 1 - p without cancellation; the floor keeps the derivative of the power finite for gamma < 1
    miss = (-torch.expm1(counts.log_truth)).clamp_min(torch.finfo(counts.log_truth.dtype).tiny)
    return _voxel_mean(-(miss**gamma) * counts.log_truth, target, counts.valid, weights)


def dice_ce_loss(
    logits: Tensor,
    target: Tensor,
    *,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    include_background: bool = False,
    batch_dice: bool = False,
    class_weights: Tensor | None = None,
    ignore_index: int | None = None,
    smooth: float = 1e-5,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return ``dice_weight * dice_loss + ce_weight * cross_entropy_loss``, both from one softmax.

    The cross-entropy always covers all classes; `label_smoothing` concerns it alone.

    Raises:
        UsageError: If `class_weights` has not one number for each class.
    """
    weights = _fitting(class_weights, logits)
    counts = soft_counts(logits, target, ignore_index)
    dice = _dice(counts, include_background, batch_dice, weights, smooth)
    if label_smoothing:
        entropy = cross_entropy_loss(
            logits, target, class_weights=weights, ignore_index=ignore_index, label_smoothing=label_smoothing
        )
    else:
        entropy = _voxel_mean(-counts.log_truth, target, counts.valid, weights)
    return dice_weight * dice + ce_weight * entropy


def _dice(
    counts: SoftCounts, include_background: bool, batch_dice: bool, weights: Tensor | None, smooth: float
) -> Tensor:
    hit, mass, volume = _pooled(counts, batch_dice)
    share = (2 * hit + smooth) / (mass + volume + smooth)
    return _mean_over_classes(1 - share, include_background, weights)


def _pooled(counts: SoftCounts, batch_dice: bool) -> tuple[Tensor, Tensor, Tensor]:
    parts = counts.overlap, counts.mass, counts.volume
    return tuple(part.sum(0, keepdim=True) for part in parts) if batch_dice else parts


def _mean_over_classes(losses: Tensor, include_background: bool, weights: Tensor | None) -> Tensor:
    """Return the mean of (N, K) losses over samples, and over classes with their weights."""
    if losses.shape[1] == 1:
        return losses.mean()
    first = 0 if include_background else 1
    losses = losses[:, first:]
    if weights is None:
        return losses.mean()
    weights = weights[first:].to(losses.dtype)
    return (losses.mean(0) * weights).sum() / weights.sum()


def _voxel_mean(losses: Tensor, target: Tensor, valid: Tensor | None, weights: Tensor | None) -> Tensor:
    """Return the mean of (N, V) losses, 0 where ignored, over the voxels that count, weighted by their true class."""
    if weights is not None:
        index = target if valid is None else target.masked_fill(~valid.view_as(target), 0)
        losses = losses * weights.to(losses.dtype)[index].flatten(1)
    return losses.sum() / _total_weight(target, valid, weights, losses.dtype)


def _total_weight(target: Tensor, valid: Tensor | None, weights: Tensor | None, dtype: torch.dtype) -> Tensor | int:
    """Return the sum of the weights of the voxels that count, never 0 (the sum it divides is 0 then)."""
    if valid is None and weights is None:
        return max(target.numel(), 1)
    if weights is None:
        return valid.sum().clamp_min(1)
    if valid is None:
        each = weights[target]
    else:
        valid = valid.view_as(target)
        each = weights[target.masked_fill(~valid, 0)].masked_fill(~valid, 0)
    return each.sum().to(dtype).clamp_min(torch.finfo(dtype).tiny)


def _fitting(class_weights: Tensor | None, logits: Tensor) -> Tensor | None:
    if class_weights is None:
        return None
    wanted = max(logits.shape[1], 2)
    if class_weights.numel() != wanted:
        raise UsageError(
            f"class_weights has {class_weights.numel()} numbers for {wanted} classes; give one for each class, the "
            "background first."
        )
    return class_weights.to(logits.device)
