"""EGE-UNet costs what its original does; and gives training what a loss can use."""

from __future__ import annotations

import pytest
import torch
from zoo_figures import (
    gmacs,
    network_gmacs,
)

from itkit.errors import ConfigError
from itkit.models import EGEUNet
from itkit.models.zoo import reference

MODULE = "ege_unet"
SMALL = {"in_channels": 1, "widths": (8, 8, 12, 16, 24, 32)}


def test_operations():
    assert gmacs(MODULE, "EGE_UNet_isic") == pytest.approx(0.0720963, rel=1e-5)
    assert network_gmacs(reference("EGE_UNet_isic"), torch.zeros(1, 3, 256, 256)) == pytest.approx(0.0720963, rel=0.03)


def test_training_gets_the_logits_of_the_original_main_one_first():
    torch.manual_seed(0)
    net, original = EGEUNet(**SMALL), EGEUNet(**SMALL, logits=False)
    original.load_state_dict(net.state_dict())
    x = torch.randn(1, 1, 32, 64)
    supervised, probabilities = net(x), original(x)
    assert isinstance(supervised, list)
    assert [tuple(y.shape) for y in supervised] == [(1, 1, 32, 64)] * 6
    for logits, probability in zip(supervised, reversed(probabilities), strict=True):
        assert torch.equal(logits.sigmoid(), probability)
    assert torch.equal(net.eval()(x), supervised[0])


def test_several_classes_train_on_the_main_output_alone():
    assert EGEUNet(1, 3, SMALL["widths"])(torch.randn(1, 1, 32, 32)).shape == (1, 3, 32, 32)


def test_without_bridges_there_may_be_no_masks():
    net = EGEUNet(**SMALL, bridge=False, deep_supervision=False, logits=False)
    assert not any("GAB" in key or "gt_conv" in key for key in net.state_dict())
    probabilities = net(torch.randn(1, 1, 32, 32))
    assert probabilities.shape == (1, 1, 32, 32)
    assert 0 < probabilities.min() < probabilities.max() < 1


def test_impossible_arguments_are_refused():
    with pytest.raises(ConfigError, match=r"widths must be six multiples of 4, found \[8, 16, 24, 30, 48, 64\]"):
        EGEUNet(widths=(8, 16, 24, 30, 48, 64))
    with pytest.raises(ConfigError, match="set bridge=False too"):
        EGEUNet(deep_supervision=False)
    with pytest.raises(ConfigError, match=r"takes \(N, 3, Y, X\), found \(1, 1, 32, 32\)"):
        EGEUNet()(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ConfigError, match=r"multiples of 32, found \(32, 33\)"):
        EGEUNet()(torch.zeros(1, 3, 32, 33))
