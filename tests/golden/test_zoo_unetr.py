"""UNETR costs what its original does; and MONAI's network with the same weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from zoo_figures import (
    card_of,
    gmacs,
    network_gmacs,
)

from itkit.errors import ConfigError
from itkit.models import UNETR

MODULE = "unetr"
CARD = card_of(MODULE)
TINY = {"feature_size": 4, "hidden_size": 12, "mlp_dim": 24, "num_heads": 3}


def test_operations():
    assert gmacs(MODULE, "UNETR_btcv") == pytest.approx(73.2243, rel=1e-5)


def test_fvcore_counts_the_same_operations():
    net, x = CARD.build(CARD.small).eval(), torch.zeros(1, 1, *CARD.small_size)
    with FlopCounterMode(display=False) as count, torch.no_grad():
        net(x)
    assert network_gmacs(net, x) == pytest.approx(count.get_total_flops() / 2e9, rel=0.001)


@pytest.mark.parametrize("conv_block", [True, False])
@pytest.mark.parametrize("res_block", [True, False])
@pytest.mark.parametrize("dims, embedding", [(2, "perceptron"), (3, "conv")])
def test_monai_s_network_answers_the_same_with_the_same_weights(dims, embedding, conv_block, res_block):
    from monai.networks import nets

    torch.manual_seed(0)
    size = (32, 48, 16)[:dims]
    blocks = {"conv_block": conv_block, "res_block": res_block}
    theirs = nets.UNETR(2, 3, size, proj_type=embedding, spatial_dims=dims, **blocks, **TINY).eval()
    ours = UNETR(dims, 2, 3, size, patch_embedding=embedding, **blocks, **TINY).eval()
    loaded = ours.load_state_dict(theirs.state_dict(), strict=False)
    frozen = {name for name, p in ours.named_parameters() if not p.requires_grad}
    assert set(loaded.missing_keys) == frozen
    assert all("norm_cross_attn" in key for key in loaded.unexpected_keys)
    x = torch.randn(2, 2, *size)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_unused_weights_are_named_as_in_the_original_and_frozen():
    frozen = {name for name, p in CARD.build(CARD.small).named_parameters() if not p.requires_grad}
    assert frozen == {
        "vit.patch_embedding.cls_token",
        "encoder2.blocks.0.1.conv3.conv.weight",
        "encoder2.blocks.1.1.conv3.conv.weight",
        "encoder3.blocks.0.1.conv3.conv.weight",
    }


def test_a_copy_answers_alike():
    net, x = CARD.build(CARD.small).eval(), torch.randn(1, 1, *CARD.small_size)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_a_single_patch_is_enough():
    assert UNETR(image_size=16, **TINY)(torch.randn(1, 1, 16, 16, 16)).shape == (1, 2, 16, 16, 16)


def test_impossible_arguments_are_refused():
    with pytest.raises(ConfigError, match=r"spatial_dims must be one of 2, 3, found 4"):
        UNETR(4)
    with pytest.raises(
        ConfigError, match=r"patch_embedding must be one of perceptron, conv, found 'perceptrn'.*perceptron"
    ):
        UNETR(patch_embedding="perceptrn")
    with pytest.raises(ConfigError, match=r"norm must be one of instance, batch, found 'group'"):
        UNETR(norm="group")
    with pytest.raises(ConfigError, match=r"num_classes must be at least 1, found 0"):
        UNETR(num_classes=0)
    with pytest.raises(ConfigError, match=r"hidden_size must be a multiple of num_heads=12, found 100"):
        UNETR(hidden_size=100)
    with pytest.raises(ConfigError, match=r"dropout is a probability from 0 to below 1, found 1.5"):
        UNETR(dropout=1.5)
    with pytest.raises(ConfigError, match=r"positive multiple of 16, one number or 3 of them, found \(96, 96\)"):
        UNETR(image_size=(96, 96))
    with pytest.raises(ConfigError, match=r"positive multiple of 16, .* found 100"):
        UNETR(image_size=100)


def test_inputs_that_do_not_fit_are_refused():
    net = CARD.build(CARD.small)
    with pytest.raises(ConfigError, match=r"takes \(N, 1, Z, Y, X\), found \(1, 1, 32, 48\)"):
        net(torch.zeros(1, 1, 32, 48))
    with pytest.raises(ConfigError, match=r"for the size \(16, 32, 48\) alone, found \(32, 32, 48\).*multiple of 16"):
        net(torch.zeros(1, 1, 32, 32, 48))
