"""LM-Net costs what its original does; folded kernels answer the same."""

from __future__ import annotations

import pytest
import torch
from zoo_figures import (
    card_of,
    fill,
    gmacs,
    network_gmacs,
    shapes_of,
)

from itkit.errors import ConfigError
from itkit.models import LMNet
from itkit.models.zoo import reference

MODULE = "lm_net"
CARD = card_of(MODULE)
SMALL = {"in_channels": 1, "widths": (12, 12, 24, 24, 48)}


def test_operations():
    assert gmacs(MODULE, "LM_Net_natten014_rpb") == pytest.approx(3.98263, rel=0.03)
    counted = network_gmacs(reference("LM_Net_natten014_rpb"), torch.zeros(1, 3, 224, 224))
    assert counted == pytest.approx(3.98263, rel=0.03)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 2e-4)], ids=str)
def test_folded_kernels_answer_the_same(dtype, tolerance):
    net = fill(LMNet(**SMALL)).to(dtype).eval()
    x = torch.randn(1, 1, 48, 32, dtype=dtype, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = net(x)
        after = net.switch_to_deploy().switch_to_deploy()(x)
    assert (after - before).abs().max() < tolerance * before.std()
    assert not any(part in key for key in net.state_dict() for part in ("square_conv", "ver_conv", "hor_conv"))
    again = LMNet(**SMALL, deploy=True).to(dtype).eval()
    assert shapes_of(again) == shapes_of(net)
    again.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), after)


def test_impossible_arguments_are_refused():
    with pytest.raises(ConfigError, match=r"five multiples of 12, found \[12, 24, 48, 96, 100\]"):
        LMNet(widths=(12, 24, 48, 96, 100))
    with pytest.raises(ConfigError, match=r"multiples of 16, found \(32, 40\)"):
        LMNet()(torch.zeros(1, 3, 32, 40))
    with pytest.raises(ConfigError, match=r"at least 32 pixels, found \(16, 64\)"):
        LMNet()(torch.zeros(1, 3, 16, 64))
