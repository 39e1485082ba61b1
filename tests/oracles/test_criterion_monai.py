"""Our losses against MONAI's and PyTorch's, values and gradients, in 2D and 3D."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai import losses as monai

from itkit.criterion import CrossEntropyLoss, DiceCELoss, DiceLoss, FocalLoss, TverskyLoss

SHAPES = [(2, 3, 12, 14), (2, 3, 6, 8, 7), (3, 9, 5, 6, 7)]
SOFTMAX = {"to_onehot_y": True, "softmax": True}


def data(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(shape, generator=generator, dtype=dtype)).requires_grad_()
    target = torch.randint(
        0, max(shape[1], 2) - 1, (shape[0], *shape[2:]), generator=generator
    )  # the last class is absent
    target[0, :2] = shape[1] - 1 if shape[1] > 1 else 1
    return logits, target


def agree(ours, theirs, logits, rtol=1e-6):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-9)
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_dice(shape, background, batch):
    logits, target = data(shape)
    theirs = monai.DiceLoss(include_background=background, batch=batch, **SOFTMAX)(logits, target[:, None])
    agree(DiceLoss(include_background=background, batch_dice=batch)(logits, target), theirs, logits)


def test_dice_with_class_weights_is_monais_over_the_mean_weight():
    logits, target = data(SHAPES[1])
    theirs = monai.DiceLoss(include_background=False, weight=[1.0, 3.0], **SOFTMAX)(logits, target[:, None])
    agree(DiceLoss(class_weights=(5, 1, 3))(logits, target), theirs / 2, logits)


@pytest.mark.parametrize("shape", SHAPES)
def test_dice_ce(shape):
    logits, target = data(shape)
    theirs = monai.DiceCELoss(include_background=False, lambda_dice=0.4, lambda_ce=1.5, **SOFTMAX)
    ours = DiceCELoss(dice_weight=0.4, ce_weight=1.5)
    agree(ours(logits, target), theirs(logits, target[:, None]), logits)


def test_dice_ce_with_label_smoothing():
    logits, target = data(SHAPES[1])
    theirs = monai.DiceCELoss(label_smoothing=0.2, **SOFTMAX)(logits, target[:, None])
    agree(DiceCELoss(label_smoothing=0.2, include_background=True)(logits, target), theirs, logits)


def test_dice_ce_in_float32():
    logits, target = data((2, 3, 24, 28, 24), torch.float32)
    theirs = monai.DiceCELoss(include_background=False, **SOFTMAX)(logits, target[:, None])
    agree(DiceCELoss()(logits, target), theirs, logits, rtol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_tversky(shape):
    logits, target = data(shape)
    theirs = monai.TverskyLoss(include_background=False, alpha=0.2, beta=0.8, **SOFTMAX)(logits, target[:, None])
    agree(TverskyLoss(alpha=0.2, beta=0.8)(logits, target), theirs, logits)


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_focal_is_monais_times_the_classes(shape, gamma):
    logits, target = data(shape, torch.float32)  # MONAI's takes everything to float32
    theirs = monai.FocalLoss(use_softmax=True, to_onehot_y=True, gamma=gamma)(logits, target[:, None])
    agree(FocalLoss(gamma=gamma)(logits, target), shape[1] * theirs, logits, rtol=2e-5)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"ignore_index": 1}])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(options, weighted):
    logits, target = data(SHAPES[1])
    weights = (0.5, 2.0, 1.0) if weighted else None
    theirs = F.cross_entropy(
        logits, target, torch.tensor(weights, dtype=torch.float64) if weighted else None, **options
    )
    agree(CrossEntropyLoss(class_weights=weights, **options)(logits, target), theirs, logits)
    if "label_smoothing" not in options:
        agree(DiceCELoss(dice_weight=0, class_weights=weights, **options)(logits, target), theirs, logits)
        agree(FocalLoss(gamma=0, class_weights=weights, **options)(logits, target), theirs, logits)


def test_one_sigmoid_channel():
    logits, target = data((2, 1, 6, 8, 7))
    truth = target[:, None].double()
    agree(DiceLoss()(logits, target), monai.DiceLoss(sigmoid=True)(logits, truth), logits)
    tversky = monai.TverskyLoss(sigmoid=True, alpha=0.2, beta=0.8)
    agree(TverskyLoss(alpha=0.2, beta=0.8)(logits, target), tversky(logits, truth), logits)
    agree(CrossEntropyLoss()(logits, target), F.binary_cross_entropy_with_logits(logits, truth), logits)
    agree(DiceCELoss()(logits, target), monai.DiceCELoss(sigmoid=True)(logits, truth), logits)
    agree(FocalLoss()(logits.float(), target), monai.FocalLoss()(logits.float(), truth), logits, rtol=1e-4)
