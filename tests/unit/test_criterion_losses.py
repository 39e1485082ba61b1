"""Losses in closed form (perfect, empty, uniform predictions), their options, gradients, and refusals."""

from __future__ import annotations

import math

import pytest
import torch

from itkit.criterion import (
    CombinedLoss,
    CrossEntropyLoss,
    DeepSupervisionLoss,
    DiceCELoss,
    DiceLoss,
    FocalLoss,
    TverskyLoss,
)
from itkit.criterion.deep_supervision import nearest_labels
from itkit.criterion.soft_counts import _sums_by_bincount, _sums_by_one_hot, soft_counts
from itkit.errors import ConfigError, DataError, UsageError
from itkit.registry import MODELS

S = 0.01  # smooth, large enough to be seen
GAP = 8.0  # logit of the predicted class above the others
SHAPES = [(2, 6, 5), (2, 4, 3, 5)]
COMBINED = {"type": "CombinedLoss", "losses": [({"type": "DiceLoss", "smooth": S}, 0.5), ({"type": "FocalLoss"}, 2.0)]}
LOSSES = {
    "dice": lambda: DiceLoss(smooth=S),
    "ce": CrossEntropyLoss,
    "dice_ce": lambda: DiceCELoss(smooth=S, dice_weight=0.5, ce_weight=2.0),
    "focal": lambda: FocalLoss(gamma=2.0),
    "tversky": lambda: TverskyLoss(smooth=S, alpha=0.3, beta=0.7),
    "combined": lambda: MODELS.build(COMBINED),
}


def labels(shape, num_classes=3, seed=0):
    return torch.randint(0, num_classes, shape, generator=torch.Generator().manual_seed(seed))


def certain(target, num_classes=3, gap=GAP):
    """Return logits that predict `target`, each voxel with the same certainty."""
    return gap * torch.nn.functional.one_hot(target, num_classes).movedim(-1, 1).double()


def noise(shape, num_classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((shape[0], num_classes, *shape[1:]), generator=generator, dtype=torch.float64)


def closed_form(share, gap_entropy, miss, foreground):
    """Return each loss for Dice share `share`, entropy of a voxel, chance of the other classes, Tversky share."""
    focal = miss**2 * gap_entropy
    dice = 1 - share
    return {
        "dice": dice,
        "ce": gap_entropy,
        "dice_ce": 0.5 * dice + 2 * gap_entropy,
        "focal": focal,
        "tversky": 1 - foreground,
        "combined": 0.5 * dice + 2 * focal,
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LOSSES)
def test_perfect_prediction(name, shape):
    target = labels(shape)
    assert LOSSES[name]()(certain(target, gap=100.0), target).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LOSSES)
def test_perfect_prediction_of_limited_certainty(name, shape):
    target = labels((1, *shape[1:]))
    other = 1 / (math.exp(GAP) + 2)  # probability of each of the other two classes
    sure = 1 - 2 * other
    dice, tversky = [], []
    for k in (1, 2):
        volume = int((target == k).sum())
        extra = other * (target.numel() - volume)
        dice.append((2 * sure * volume + S) / (sure * volume + extra + volume + S))
        tversky.append((sure * volume + S) / (sure * volume + 0.3 * extra + 0.7 * 2 * other * volume + S))
    expected = closed_form(sum(dice) / 2, -math.log(sure), 2 * other, sum(tversky) / 2)
    assert LOSSES[name]()(certain(target), target).item() == pytest.approx(expected[name], rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_empty_prediction(name):
    """Everything is called background, with certainty; half of the voxels are class 1, class 2 is nowhere."""
    target = torch.zeros(1, 4, 4, dtype=torch.uint8)
    target[:, :2] = 1
    logits = certain(torch.zeros_like(target).long(), gap=100.0)
    dice = (S / (8 + S) + 1) / 2  # nothing of class 1 is found; class 2 is rightly empty
    tversky = (S / (0.7 * 8 + S) + 1) / 2
    expected = closed_form(dice, 50.0, 1.0, tversky)  # entropy: 0 in one half, 100 in the other
    assert LOSSES[name]()(logits, target).item() == pytest.approx(expected[name], rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_uniform_prediction(name):
    target = torch.zeros(1, 4, 4, 3, dtype=torch.int32)
    target[:, :2], target[:, 2] = 1, 2
    dice, tversky = [], []
    for volume in (24, 12):
        dice.append((2 * volume / 3 + S) / (16 + volume + S))
        tversky.append((volume / 3 + S) / (volume / 3 + 0.3 * (48 - volume) / 3 + 0.7 * volume * 2 / 3 + S))
    expected = closed_form(sum(dice) / 2, math.log(3), 2 / 3, sum(tversky) / 2)
    assert LOSSES[name]()(torch.zeros(1, 3, 4, 4, 3), target).item() == pytest.approx(expected[name], rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_one_sigmoid_channel(name):
    """A sigmoid of x is a softmax of (0, x): the losses agree, Dice over the foreground alone."""
    target, one = labels((2, 5, 6), 2), noise((2, 5, 6), 1)
    two = torch.cat([torch.zeros_like(one), one], 1)
    assert LOSSES[name]()(one, target).item() == pytest.approx(LOSSES[name]()(two, target).item(), rel=1e-12)
    assert LOSSES[name]()(100 * (2.0 * target[:, None] - 1), target).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize(
    "options", [{}, {"ignore_index": 9}, {"class_weights": 1}, {"class_weights": 1, "ignore_index": 9}]
)
@pytest.mark.parametrize("kind", [DiceLoss, CrossEntropyLoss, DiceCELoss, FocalLoss, TverskyLoss])
def test_gradients(kind, options, classes):
    target = labels((2, 3, 4), max(classes, 2))
    if "ignore_index" in options:
        target[0, 0, 0] = target[1, 2] = 9
    if "class_weights" in options:
        options = options | {"class_weights": (0.5, 2.0, 1.0)[: max(classes, 2)]}
    loss = kind(**options)
    logits = noise((2, 3, 4), classes).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits)


@pytest.mark.parametrize("options", [{"batch_dice": True}, {"include_background": True}, {"label_smoothing": 0.1}])
def test_gradients_of_options(options):
    loss, target = DiceCELoss(**options), labels((2, 3, 4))
    assert torch.autograd.gradcheck(lambda x: loss(x, target), noise((2, 3, 4)).requires_grad_())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_focal_gradient_is_finite_where_a_voxel_is_certain(gamma):
    target = labels((1, 4, 4))
    logits = certain(target, gap=1000.0).float().requires_grad_()
    FocalLoss(gamma=gamma)(logits, target).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_large_logits_give_finite_values_and_gradients(name):
    target = labels((1, 4, 4))
    logits = (1e4 * noise((1, 4, 4))).float().requires_grad_()
    loss = LOSSES[name]()(logits, target)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("kind", [DiceLoss, CrossEntropyLoss, DiceCELoss, FocalLoss, TverskyLoss])
def test_ignored_voxels_are_as_if_they_were_not_there(kind, classes):
    target, logits = labels((2, 4, 6), max(classes, 2)), noise((2, 4, 6), classes)
    cut = kind()(logits[..., :4], target[..., :4]).item()
    target[..., 4:] = 255
    assert kind(ignore_index=255)(logits, target).item() == pytest.approx(cut, rel=1e-12)


@pytest.mark.parametrize("kind", [DiceLoss, CrossEntropyLoss, DiceCELoss, FocalLoss, TverskyLoss])
def test_a_target_that_is_ignored_altogether_costs_nothing(kind):
    logits = noise((1, 3, 4)).requires_grad_()
    loss = kind(ignore_index=255)(logits, torch.full((1, 3, 4), 255))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("kind", [DiceLoss, CrossEntropyLoss, DiceCELoss, FocalLoss, TverskyLoss])
def test_equal_class_weights_change_nothing_and_others_do(kind):
    target, logits = labels((2, 4, 6)), noise((2, 4, 6))
    plain = kind()(logits, target).item()
    assert kind(class_weights=(3, 3, 3))(logits, target).item() == pytest.approx(plain, rel=1e-6)
    assert kind(class_weights=(1, 3, 1))(logits, target).item() != pytest.approx(plain, rel=1e-6)


def test_weighted_dice_is_the_weighted_mean_over_classes():
    target, logits = labels((2, 4, 6)), noise((2, 4, 6))
    each = [DiceLoss(class_weights=(0, *w))(logits, target).item() for w in ((1, 0), (0, 1))]
    assert DiceLoss(class_weights=(7, 1, 3))(logits, target).item() == pytest.approx((each[0] + 3 * each[1]) / 4)


def test_batch_dice_counts_over_the_batch():
    target, logits = labels((2, 4, 6)), noise((2, 4, 6))
    as_one = DiceLoss()(logits.movedim(0, 1).flatten(1, 2)[None], target.flatten(0, 1)[None])
    assert DiceLoss(batch_dice=True)(logits, target).item() == pytest.approx(as_one.item(), rel=1e-12)
    assert DiceLoss()(logits, target).item() != pytest.approx(as_one.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_targets_of_any_integer_type_and_with_a_channel_axis(dtype):
    target, logits = labels((2, 4, 6)), noise((2, 4, 6))
    expected = DiceCELoss()(logits, target)
    assert DiceCELoss()(logits, target.to(dtype)) == expected
    assert DiceCELoss()(logits, target[:, None].to(dtype)) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    target, logits = labels((1, 8, 9)), noise((1, 8, 9)).to(dtype).requires_grad_()
    for loss in (DiceCELoss(), CrossEntropyLoss(), FocalLoss()):
        value = loss(logits, target)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(loss(logits.double(), target).item(), rel=1e-5)
        value.backward()
        assert logits.grad.dtype == dtype


def test_autocast_leaves_the_loss_in_float32():
    target, logits = labels((1, 8, 9)), noise((1, 8, 9)).float().requires_grad_()
    (plain,) = torch.autograd.grad(DiceCELoss()(logits, target), logits)
    with torch.autocast("cpu", torch.bfloat16):
        (mixed,) = torch.autograd.grad(DiceCELoss()(logits, target), logits)
    torch.testing.assert_close(mixed, plain, rtol=1e-6, atol=1e-9)


def test_both_ways_of_counting_agree():
    target, probability = labels((2, 50)), noise((2, 50)).softmax(1)
    valid = labels((2, 50), 2, seed=1).bool()
    for mask in (None, valid):
        seen = probability if mask is None else probability * mask[:, None]
        for one, other in zip(_sums_by_bincount(seen, target, mask), _sums_by_one_hot(seen, target, mask), strict=True):
            torch.testing.assert_close(one, other)


def test_large_volumes_are_summed_precisely():
    counts = soft_counts(torch.zeros(1, 3, 3_000_000), torch.zeros(1, 3_000_000, dtype=torch.long))
    assert counts.overlap[0, 0].item() == pytest.approx(1e6, rel=1e-6)
    assert counts.mass[0, 1].item() == pytest.approx(1e6, rel=1e-6)


def test_losses_run_on_the_meta_device():
    loss = DiceCELoss()(torch.zeros(1, 3, 4, 4, device="meta"), torch.zeros(1, 4, 4, dtype=torch.long, device="meta"))
    assert loss.shape == ()


def test_class_weights_move_with_the_module_and_stay_out_of_checkpoints():
    loss = DiceCELoss(class_weights=(1, 2, 3))
    assert loss.double().class_weights.dtype == torch.float64
    assert not loss.state_dict()


@pytest.mark.parametrize("name", ["DiceLoss", "CrossEntropyLoss", "DiceCELoss", "FocalLoss", "TverskyLoss"])
def test_every_loss_is_registered(name):
    assert type(MODELS.build({"type": name})).__module__.startswith("itkit.criterion")


def test_combined_loss_is_the_weighted_sum():
    target, logits = labels((2, 4, 6)), noise((2, 4, 6))
    both = CombinedLoss([(DiceLoss(), 0.3), ({"type": "CrossEntropyLoss"}, 0.7)])
    expected = 0.3 * DiceLoss()(logits, target) + 0.7 * CrossEntropyLoss()(logits, target)
    torch.testing.assert_close(both(logits, target), expected)
    torch.testing.assert_close(DiceCELoss(dice_weight=0.3, ce_weight=0.7)(logits, target), expected)


def test_deep_supervision_halves_from_level_to_level():
    target = labels((1, 8, 8))
    outputs = [noise((1, 8, 8)), noise((1, 4, 4)), noise((1, 2, 2))]
    each = [DiceCELoss()(logits, nearest_labels(target, logits)) for logits in outputs]
    found = DeepSupervisionLoss({"type": "DiceCELoss"})(outputs, target)
    torch.testing.assert_close(found, (4 * each[0] + 2 * each[1] + each[2]) / 7)
    torch.testing.assert_close(DeepSupervisionLoss(DiceCELoss(), (1, 0, 0.5))(outputs, target), each[0] + 0.5 * each[2])
    torch.testing.assert_close(DeepSupervisionLoss(DiceCELoss())(outputs[0], target), each[0])
    torch.testing.assert_close(DeepSupervisionLoss(DiceCELoss())(tuple(outputs[:1]), target[:, None]), each[0])


def test_coarse_targets_take_the_label_at_the_centre():
    row = torch.arange(9)[None, None]
    assert nearest_labels(row, torch.zeros(1, 1, 1, 3)).tolist() == [[[1, 4, 7]]]
    assert nearest_labels(row[..., :8], torch.zeros(1, 1, 1, 4)).tolist() == [[[1, 3, 5, 7]]]
    assert nearest_labels(row[..., :7], torch.zeros(1, 1, 1, 3)).tolist() == [[[1, 3, 5]]]
    assert nearest_labels(row, torch.zeros(1, 1, 1, 9)) is row
    volume = labels((2, 6, 4, 9), 5)
    assert torch.equal(nearest_labels(volume, torch.zeros(2, 1, 2, 4, 3)), volume[:, 1::3][..., 1::3])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("wrong", [3, -1])
def test_labels_out_of_range_are_named(name, wrong):
    target = labels((1, 4, 4))
    target[0, 1, 1] = wrong
    with pytest.raises(DataError, match=f"the target holds label {wrong}, but the model has 3 classes, labels 0 to 2"):
        LOSSES[name]()(noise((1, 4, 4)), target)


def test_labels_out_of_range_beside_ignored_ones_and_with_one_channel():
    target = torch.tensor([[[0, 255], [7, 1]]])
    with pytest.raises(DataError, match="holds label 7"):
        DiceLoss(ignore_index=255)(noise((1, 2, 2)), target)
    with pytest.raises(DataError, match="holds label 2, but the model has 2 classes"):
        DiceLoss()(noise((1, 1, 2), 1), torch.tensor([[[1, 2]]]))


def test_refused_shapes_and_types():
    logits = noise((1, 4, 4))
    with pytest.raises(UsageError, match=r"found \(1, 3, 4, 4\) and \(1, 4, 5\)"):
        DiceLoss()(logits, torch.zeros(1, 4, 5, dtype=int))
    with pytest.raises(UsageError, match="not one-hot"):
        DiceLoss()(logits, torch.zeros(1, 3, 4, 4, dtype=int))
    with pytest.raises(UsageError, match="not one-hot"):
        DeepSupervisionLoss(DiceLoss())([logits], torch.zeros(1, 3, 4, 4, dtype=int))
    with pytest.raises(UsageError, match="found torch.float32. Pack labels as integers"):
        DiceLoss()(logits, torch.zeros(1, 4, 4))
    with pytest.raises(UsageError, match="class_weights has 2 numbers for 3 classes"):
        DiceCELoss(class_weights=(1, 2))(logits, torch.zeros(1, 4, 4, dtype=int))
    with pytest.raises(UsageError, match="deep supervision has 2 weights and the network 1 outputs"):
        DeepSupervisionLoss(DiceLoss(), (1, 1))([logits], torch.zeros(1, 4, 4, dtype=int))
    with pytest.raises(UsageError, match="given no output"):
        DeepSupervisionLoss(DiceLoss())([], torch.zeros(1, 4, 4, dtype=int))


@pytest.mark.parametrize(
    "build, text",
    [
        (lambda: DiceLoss(smooth=0), "smooth must be above 0; found 0"),
        (lambda: DiceLoss(class_weights=(1, -1)), r"class_weights must be a list of finite numbers >= 0.*\(1, -1\)"),
        (lambda: FocalLoss(class_weights=()), "class_weights must be a list of finite numbers"),
        (lambda: FocalLoss(class_weights=(1, math.inf)), "class_weights must be a list of finite numbers"),
        (lambda: DiceLoss(class_weights=(1, 0, 0)), "leave no foreground class"),
        (lambda: DiceCELoss(dice_weight=-1), "dice_weight must be at least 0; found -1"),
        (lambda: DiceCELoss(ce_weight=-1), "ce_weight must be at least 0"),
        (lambda: CrossEntropyLoss(label_smoothing=1), "label_smoothing must be at least 0 and below 1; found 1"),
        (lambda: FocalLoss(gamma=math.nan), "gamma must be at least 0; found nan"),
        (lambda: TverskyLoss(alpha=-0.1), "alpha must be at least 0"),
        (lambda: TverskyLoss(alpha=0, beta=0), "alpha and beta are both 0"),
        (lambda: CombinedLoss([]), "needs at least one pair"),
        (lambda: CombinedLoss([DiceLoss()]), r"takes pairs \(loss, weight\); found DiceLoss"),
        (lambda: CombinedLoss([(DiceLoss(), -1)]), "the weight of a loss must be at least 0"),
        (lambda: DeepSupervisionLoss(DiceLoss(), (1, -1)), "a deep supervision weight must be at least 0"),
        (lambda: DeepSupervisionLoss(DiceLoss(), (0, 0)), "deep supervision weights must not all be 0"),
    ],
)
def test_refused_arguments(build, text):
    with pytest.raises(ConfigError, match=text):
        build()


def test_a_gpu_target_is_checked_at_calls_one_two_four_eight(monkeypatch):
    from itkit.criterion import base

    class FarTarget:
        device, is_meta = torch.device("cuda"), False

    checked = []
    loss = DiceLoss()
    monkeypatch.setattr(base, "match_target", lambda logits, target: target)
    monkeypatch.setattr(base, "check_labels", lambda *_: checked.append(loss._calls))
    monkeypatch.setattr(loss, "compute", lambda logits, target: torch.zeros(()))
    for _ in range(20):
        loss(torch.zeros(1, 2, 3), FarTarget())
    assert checked == [1, 2, 4, 8, 16]
