"""MedNeXt costs what its original does; its variants, checkpointing and larger kernels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from zoo_figures import (
    card_of,
    fill,
    gmacs,
    network_gmacs,
)

from itkit.errors import ConfigError
from itkit.models import MedNeXt
from itkit.models.mednext import MedNeXtBlock, upsample_kernels

MODULE = "mednext"
CARD = card_of(MODULE)
MEASURED = [name for name, made in CARD.configurations.items() if made.gmacs is not None]


@pytest.mark.parametrize("name", MEASURED)
def test_operations(name):
    assert gmacs(MODULE, name) == pytest.approx(CARD.configurations[name].gmacs, rel=1e-5)


def test_fvcore_counts_the_same_operations():
    net, x = (
        CARD.build({"variant": "S", "num_classes": 14, "deep_supervision": True}).eval(),
        torch.zeros(1, 1, 32, 32, 32),
    )
    with FlopCounterMode(display=False) as count, torch.no_grad():
        net(x)
    assert network_gmacs(net, x) == pytest.approx(count.get_total_flops() / 2e9, rel=1e-9)


def test_monai_s_small_variant_has_all_but_the_unused_parameter():
    from monai.networks.nets import MedNeXtS

    with torch.device("meta"):
        theirs = MedNeXtS(spatial_dims=3, in_channels=1, out_channels=3, kernel_size=3, deep_supervision=False)
        ours = MedNeXt(num_classes=3, variant="S")
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) + 1


def test_global_response_normalisation_by_hand():
    block = MedNeXtBlock(2, 4, 4, 2, 3, grn=True)
    torch.manual_seed(0)
    x, gamma, beta = torch.randn(2, 8, 3, 5), torch.randn(1, 8, 1, 1), torch.randn(1, 8, 1, 1)
    block.grn_gamma.data, block.grn_beta.data = gamma, beta
    expected = torch.empty_like(x)
    for n in range(2):
        norms = [x[n, c].square().sum().sqrt() for c in range(8)]
        for c in range(8):
            relative = norms[c] / (sum(norms) / 8 + 1e-6)
            expected[n, c] = gamma[0, c] * x[n, c] * relative + beta[0, c] + x[n, c]
    torch.testing.assert_close(block._respond(x), expected)


def test_fresh_response_normalisation_changes_nothing():
    net = MedNeXt(2, width=4, blocks=(1,) * 9, grn=True).eval()
    plain = MedNeXt(2, width=4, blocks=(1,) * 9).eval()
    plain.load_state_dict({key: value for key, value in net.state_dict().items() if "grn" not in key})
    x = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(net(x), plain(x))


def test_layer_norm_is_over_the_channels():
    block = MedNeXtBlock(3, 6, 6, 2, 3, norm="layer")
    x = torch.randn(2, 6, 4, 3, 5) * 3 + 1
    y = block.norm(x)
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 4, 3, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(1, correction=0), torch.ones(2, 4, 3, 5), atol=1e-3, rtol=0)
    assert MedNeXt(2, width=4, blocks=(1,) * 9, norm="layer")(torch.randn(1, 1, 16, 32)).shape == (1, 2, 16, 32)


def test_without_residuals_the_original_s_shortcuts_are_gone():
    net = MedNeXt(2, width=4, blocks=(1,) * 9, residual=False, residual_resampling=False)
    assert not any("res_conv" in key for key in net.state_dict())
    block = MedNeXtBlock(2, 4, 4, 2, 3, residual=False)
    torch.nn.init.zeros_(block.conv3.weight)
    torch.nn.init.zeros_(block.conv3.bias)
    assert not block(torch.randn(1, 4, 5, 5)).any()


def test_the_first_cells_of_an_up_block_are_zero():
    y = MedNeXtBlock(2, 4, 2, 2, 3, step="up")(torch.randn(1, 4, 3, 5))
    assert y.shape == (1, 2, 6, 10)
    assert not y[:, :, 0].any()
    assert not y[:, :, :, 0].any()
    assert y[:, :, 1:, 1:].all()


def test_checkpointing_gives_the_same_gradients_from_fewer_stored_tensors():
    arguments = {**CARD.small, "width": 4}
    plain, saving = MedNeXt(**arguments), MedNeXt(**arguments, checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    x, stored = torch.randn(2, 1, 32, 16, 16), []
    for net in (plain, saving):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            outputs = net(x)
        stored.append(sum(kept))
        sum(y.square().mean() for y in outputs).backward()
    assert stored[1] < stored[0] / 3
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("dims", [2, 3])
def test_larger_kernels_are_resampled_and_the_rest_is_kept(dims):
    arguments = {**CARD.small, "spatial_dims": dims, "width": 4}
    small, large = fill(MedNeXt(**arguments)), MedNeXt(**arguments, kernel_size=5)
    before = {key: value.clone() for key, value in small.state_dict().items()}
    state = upsample_kernels(small.state_dict(), large)
    large.load_state_dict(state)
    kernel = small.state_dict()["down_1.conv1.weight"]
    mode = {2: "bilinear", 3: "trilinear"}[dims]
    assert torch.equal(state["down_1.conv1.weight"], F.interpolate(kernel, (5,) * dims, mode=mode))
    assert torch.equal(state["down_1.conv2.weight"], small.state_dict()["down_1.conv2.weight"])
    assert all(torch.equal(before[key], value) for key, value in small.state_dict().items())
    constant = {key: torch.full_like(value, 0.5) for key, value in small.state_dict().items()}
    assert all((value == 0.5).all() for value in upsample_kernels(constant, large).values())


def test_encoder_and_decoder_may_have_different_kernels():
    shapes = {
        key: tuple(value.shape) for key, value in MedNeXt(2, kernel_size=3, decoder_kernel_size=7).state_dict().items()
    }
    assert shapes["down_3.conv1.weight"][2:] == shapes["bottleneck.0.conv1.weight"][2:] == (3, 3)
    assert shapes["up_3.conv1.weight"][2:] == shapes["dec_block_0.1.conv1.weight"][2:] == (7, 7)


def test_impossible_arguments_are_refused():
    with pytest.raises(ConfigError, match=r"variant must be one of S, B, M, L, found 'XL'"):
        MedNeXt(variant="XL")
    with pytest.raises(ConfigError, match=r"spatial_dims must be one of 2, 3, found 1"):
        MedNeXt(1)
    with pytest.raises(ConfigError, match=r"norm must be one of group, layer, found 'batch'"):
        MedNeXt(norm="batch")
    with pytest.raises(ConfigError, match=r"decoder_kernel_size must be a positive odd number, found 4"):
        MedNeXt(decoder_kernel_size=4)
    with pytest.raises(ConfigError, match=r"blocks needs nine positive numbers, one for each stage, found \(2, 2\)"):
        MedNeXt(blocks=(2, 2))
    with pytest.raises(ConfigError, match=r"expansion needs nine positive numbers, one for each stage, found 0"):
        MedNeXt(expansion=0)
    with pytest.raises(ConfigError, match=r"in_channels, num_classes and width must be at least 1, found 1, 0 and 32"):
        MedNeXt(num_classes=0)
    with pytest.raises(ConfigError, match=r"differ in more than their kernels, first in out_1.conv_out.weight"):
        upsample_kernels(CARD.build(CARD.small).state_dict(), MedNeXt(**{**CARD.small, "deep_supervision": False}))


def test_inputs_that_do_not_fit_are_refused():
    net = CARD.build(CARD.small)
    with pytest.raises(ConfigError, match=r"takes \(N, 1, Z, Y, X\), found \(1, 2, 32, 32, 32\)"):
        net(torch.zeros(1, 2, 32, 32, 32))
    with pytest.raises(ConfigError, match=r"multiple of 16, found \(32, 32, 40\)"):
        net(torch.zeros(1, 1, 32, 32, 40))
    with pytest.raises(
        ConfigError, match=r"one cell at the bottleneck.* Make one axis at least 32, or the batch larger"
    ):
        net(torch.zeros(1, 1, 16, 16, 16))
    assert net(torch.zeros(2, 1, 16, 16, 16))[0].shape == (2, 2, 16, 16, 16)
