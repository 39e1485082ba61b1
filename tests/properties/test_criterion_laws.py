"""Laws of the losses over random logits: order of classes and voxels, flips, shifts of logits, and bounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itkit.criterion import CrossEntropyLoss, DeepSupervisionLoss, DiceCELoss, DiceLoss, FocalLoss, TverskyLoss
from itkit.criterion.deep_supervision import nearest_labels

LAWS = settings(max_examples=25, deadline=None, derandomize=True)
LOSSES = [DiceLoss, CrossEntropyLoss, DiceCELoss, FocalLoss, TverskyLoss]


def draw(seed, classes, shape):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((2, classes, *shape), generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, classes, (2, *shape), generator=generator), generator


CASES = st.integers(0, 10**6), st.integers(2, 5), st.lists(st.integers(1, 4), min_size=2, max_size=3)


@pytest.mark.parametrize("kind", LOSSES)
@LAWS
@given(*CASES)
def test_symmetries(kind, seed, classes, shape):
    logits, target, generator = draw(seed, classes, shape)
    expected = kind()(logits, target)
    assert expected >= 0
    torch.testing.assert_close(kind()(logits + 5.0, target), expected)  # a softmax knows differences only
    torch.testing.assert_close(kind()(logits.flip(-1), target.flip(-1)), expected)
    torch.testing.assert_close(kind()(logits.flip(0), target.flip(0)), expected)
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(classes - 1, generator=generator)])
    torch.testing.assert_close(kind()(logits[:, order], torch.argsort(order)[target]), expected)  # foreground renamed


@pytest.mark.parametrize("kind", [DiceLoss, TverskyLoss])
@LAWS
@given(*CASES)
def test_overlap_losses_stay_between_0_and_1(kind, seed, classes, shape):
    logits, target, _ = draw(seed, classes, shape)
    assert 0 <= kind()(logits, target) <= 1


@LAWS
@given(*CASES)
def test_tversky_with_halves_is_dice(seed, classes, shape):
    logits, target, _ = draw(seed, classes, shape)
    both = TverskyLoss(alpha=0.5, beta=0.5, smooth=1e-9), DiceLoss(smooth=2e-9)
    torch.testing.assert_close(*(loss(logits, target) for loss in both))


@pytest.mark.parametrize("kind", LOSSES)
@LAWS
@given(*CASES)
def test_a_step_against_the_gradient_lowers_the_loss(kind, seed, classes, shape):
    logits, target, _ = draw(seed, classes, shape)
    logits.requires_grad_()
    before = kind()(logits, target)
    (gradient,) = torch.autograd.grad(before, logits)
    torch.testing.assert_close(gradient.sum(1), torch.zeros_like(gradient[:, 0]), atol=1e-12, rtol=0)
    after = kind()(logits - 1e-3 * gradient / gradient.norm().clamp_min(1e-12), target)
    assert after <= before


@LAWS
@given(st.integers(0, 10**6), st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=3))
def test_coarse_targets_invent_no_label_and_flip_with_odd_ratios(seed, sizes):
    fine = [max(pair) for pair in sizes]
    coarse = [min(pair) for pair in sizes]
    target = torch.randint(0, 50, (1, *fine), generator=torch.Generator().manual_seed(seed))
    found = nearest_labels(target, torch.zeros(1, 1, *coarse))
    assert list(found.shape[1:]) == coarse
    assert set(found.unique().tolist()) <= set(target.unique().tolist())
    thrice = target.repeat_interleave(3, -1)
    assert torch.equal(nearest_labels(thrice, torch.zeros(1, 1, *fine)), target)


@LAWS
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_deep_supervision_of_equal_levels_is_the_loss(seed, levels):
    logits, target, _ = draw(seed, 3, [3, 4])
    plain = DiceCELoss()(logits, target)
    torch.testing.assert_close(DeepSupervisionLoss(DiceCELoss())([logits] * levels, target), plain)
