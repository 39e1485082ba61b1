"""DSNet costs what its original does; and takes sizes that the original does not."""

from __future__ import annotations

import pytest
import torch
from zoo_figures import (
    card_of,
    gmacs,
    network_gmacs,
)

from itkit.errors import ConfigError
from itkit.models import DSNet
from itkit.models.zoo import reference

MODULE = "dsnet"
CARD = card_of(MODULE)


@pytest.mark.parametrize("name", [name for name, made in CARD.configurations.items() if made.gmacs is not None])
def test_operations(name):
    assert gmacs(MODULE, name) == pytest.approx(CARD.configurations[name].gmacs, rel=1e-5)


def test_operations_as_fvcore_counts_them_on_a_sixteenth_of_the_image():
    found = network_gmacs(reference("DSNet_head256_ade20k_noaux"), torch.zeros(1, 3, 128, 128))
    assert 16 * found == pytest.approx(51.2774, rel=0.03)


def test_training_gets_the_main_output_first_and_the_original_order_is_kept_on_request():
    torch.manual_seed(0)
    arguments = {"num_classes": 3, "width": 8, "deep_supervision": True}
    ours, original = DSNet(**arguments).eval(), DSNet(**arguments, original_outputs=True).eval()
    original.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 32, 40)
    early, main, late = original(x)
    assert torch.equal(ours(x), main)
    for module in (ours, original):
        for norm in (one for one in module.modules() if isinstance(one, torch.nn.BatchNorm2d)):
            norm.momentum = 0.0
        module.train()
    assert all(torch.equal(a, b) for a, b in zip(ours(x), [original(x)[i] for i in (1, 0, 2)], strict=True))
    assert not torch.equal(early, late)


def test_sizes_are_free_where_the_original_fails():
    net = DSNet(1, 2, width=8).eval()
    for size in ((57, 60), (68, 9), (8, 8)):
        assert net(torch.randn(1, 1, *size)).shape == (1, 2, *size)


def test_impossible_arguments_are_refused():
    with pytest.raises(ConfigError, match="head must be one of s64, s128, s256, m, found 's12'.*Did you mean s128"):
        DSNet(head="s12")
    with pytest.raises(ConfigError, match="must be at least 1, found 32, 2 and 0"):
        DSNet(spatial_blocks=0)
    with pytest.raises(ConfigError, match=r"DSNet takes \(N, 3, Y, X\), found \(1, 1, 32, 32\)"):
        DSNet()(torch.zeros(1, 1, 32, 32))
