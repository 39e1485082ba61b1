"""UNet3+ costs what its original does; its switches, its classifier, and the way of its skips."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from zoo_figures import (
    card_of,
    compare_outputs,
    figures_of,
    gmacs,
    network_gmacs,
)

from itkit.errors import ConfigError
from itkit.models import UNet3Plus

MODULE = "unet3plus"
CARD = card_of(MODULE)
TINY = {"in_channels": 1, "num_classes": 2, "widths": (2, 3, 4, 5, 6)}


def test_the_class_guided_network_answers_like_the_supervised_one_where_it_sees_something():
    net = CARD.build(CARD.configurations["UNet_3Plus_DeepSup_CGM"].arguments)
    compare_outputs(net, figures_of(MODULE)["UNet_3Plus_DeepSup"]["golden"])


@pytest.mark.parametrize("name", CARD.configurations)
def test_operations(name):
    assert gmacs(MODULE, name) == pytest.approx(CARD.configurations[name].gmacs, rel=1e-5)


def test_fvcore_counts_the_same_operations():
    published = CARD.configurations["UNet_3Plus"]
    scale = (32 / 320) ** 2
    assert network_gmacs(CARD.build(published.arguments), torch.zeros(1, 3, 32, 32)) == pytest.approx(
        published.gmacs * scale, rel=1e-5
    )


def test_the_switch_gives_logits_whose_sigmoid_the_original_returns():
    net, original = UNet3Plus(**TINY, deep_supervision=True), UNet3Plus(**TINY, deep_supervision=True, logits=False)
    original.load_state_dict(net.state_dict())
    x = torch.randn(2, 1, 32, 48)
    for training in (True, False):
        logits, probabilities = net.train(training)(x), original.train(training)(x)
        assert [tuple(y.shape) for y in logits] == [(2, 2, 32, 48)] * 5
        assert all(torch.equal(a.sigmoid(), b) for a, b in zip(logits, probabilities, strict=True))


def test_supervision_does_not_change_the_main_output():
    plain, supervised = UNet3Plus(**TINY).eval(), UNet3Plus(**TINY, deep_supervision=True).eval()
    plain.load_state_dict({key: v for key, v in supervised.state_dict().items() if key in plain.state_dict()})
    x = torch.randn(1, 1, 16, 32)
    assert torch.equal(plain(x), supervised(x)[0])


def test_an_image_that_the_classifier_takes_for_empty_has_logits_of_zero():
    net = UNet3Plus(**TINY, deep_supervision=True, class_guided=True).eval()
    plain = UNet3Plus(**TINY, deep_supervision=True).eval()
    plain.load_state_dict({key: v for key, v in net.state_dict().items() if "cls" not in key})
    x = torch.stack([torch.zeros(1, 32, 32), torch.randn(1, 32, 32)])
    with torch.no_grad():
        net.cls[1].weight.zero_()
        net.cls[1].weight[1] = 1
        features = net._encode(x)[5].sum(1).flatten(1).amax(1)
        assert features[0] < features[1]
        net.cls[1].bias.copy_(torch.tensor([features.mean(), 0.0]))
        assert net.classify(x).argmax(1).tolist() == [0, 1]
        for guided, free in zip(net(x), plain(x), strict=True):
            assert not guided[0].any()
            assert free[0].any()
            assert torch.equal(guided[1], free[1])


def test_the_classifier_learns_from_its_own_answers_alone():
    net = UNet3Plus(**TINY, deep_supervision=True, class_guided=True)
    x = torch.randn(2, 1, 32, 32)
    sum(y.square().mean() for y in net(x)).backward()
    assert net.cls[1].weight.grad is None
    answers = net.classify(x)
    assert answers.shape == (2, 2)
    assert 0 < answers.min() < answers.max() < 1
    F.binary_cross_entropy(answers, torch.tensor([[0.0, 1.0], [1.0, 0.0]])).backward()
    assert net.cls[1].weight.grad.any()
    with pytest.raises(ConfigError, match="only a network with class_guided=True has a classifier"):
        UNet3Plus(**TINY).classify(x)


def test_every_decoder_level_sees_all_five_scales():
    net = UNet3Plus(**TINY)
    widths = {1: 2, 2: 3, 3: 4, 4: 5, 5: 6}
    for target in (1, 2, 3, 4):
        names = [name for name, _ in net.named_children() if name.endswith(f"hd{target}_conv")]
        found = sorted(net.get_submodule(name).in_channels for name in names)
        decoder = [10] * (4 - target)
        assert found == sorted([*(widths[s] for s in range(1, target + 1)), *decoder, widths[5]])


def test_volumes_go_too():
    net = UNet3Plus(3, **TINY, deep_supervision=True, class_guided=True)
    assert [tuple(y.shape) for y in net(torch.randn(2, 1, 16, 32, 16))] == [(2, 2, 16, 32, 16)] * 5


def test_impossible_arguments_are_refused():
    with pytest.raises(ConfigError, match="spatial_dims must be 2 or 3, found 1"):
        UNet3Plus(1)
    with pytest.raises(ConfigError, match=r"widths needs five positive numbers, finest level first, found \[8, 16\]"):
        UNet3Plus(widths=(8, 16))
    with pytest.raises(ConfigError, match="must be at least 1, found 1 and 0"):
        UNet3Plus(num_classes=0)
    with pytest.raises(ConfigError, match="published with deep_supervision=True; set both"):
        UNet3Plus(class_guided=True)


def test_inputs_that_do_not_fit_are_refused():
    net = UNet3Plus(**TINY)
    with pytest.raises(ConfigError, match=r"takes \(N, 1, Y, X\), found \(1, 2, 32, 32\)"):
        net(torch.zeros(1, 2, 32, 32))
    with pytest.raises(ConfigError, match=r"multiple of 16, found \(32, 33\)"):
        net(torch.zeros(1, 1, 32, 33))
    with pytest.raises(
        ConfigError, match=r"one cell at the bottleneck.* Make one axis at least 32, or the batch larger"
    ):
        net(torch.zeros(1, 1, 16, 16))
    assert net(torch.zeros(2, 1, 16, 16)).shape == net.eval()(torch.zeros(2, 1, 16, 16)).shape == (2, 2, 16, 16)
