"""SegFormer costs what its original does; and gives logits of any image's size."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from zoo_figures import (
    card_of,
    gmacs,
    network_gmacs,
)

from itkit.errors import ConfigError
from itkit.models import SegFormer
from itkit.models.zoo import reference

MODULE = "segformer"
CARD = card_of(MODULE)
MEASURED = [name for name, made in CARD.configurations.items() if made.gmacs is not None]


@pytest.mark.parametrize("name", MEASURED)
def test_operations_of_every_variant(name):
    assert gmacs(MODULE, name) == pytest.approx(CARD.configurations[name].gmacs, rel=1e-5)


def test_operations_as_fvcore_counts_them():
    name = "SegFormer_B0_ade150"
    assert network_gmacs(reference(name), torch.zeros(1, 3, 512, 512)) == pytest.approx(8.38782, rel=1e-5)


def test_full_size_logits_are_the_original_ones_enlarged():
    torch.manual_seed(0)
    net, original = CARD.build(CARD.small).eval(), CARD.build({**CARD.small, "full_size": False}).eval()
    original.load_state_dict(net.state_dict())
    x = torch.randn(1, 1, 45, 38)
    with torch.no_grad():
        quarter = original(x)
        assert quarter.shape == (1, 2, 12, 10)
        assert torch.equal(net(x), F.interpolate(quarter, (45, 38), mode="bilinear", align_corners=False))


def test_the_fused_attention_and_the_traced_one_agree():
    torch.manual_seed(0)
    net, x = CARD.build(CARD.small).eval(), torch.randn(1, 1, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(net, x)
    assert "scaled_dot_product_attention" not in str(traced.inlined_graph)
    with torch.no_grad():
        torch.testing.assert_close(traced(x), net(x))


def test_a_checkpoint_of_the_encoder_alone_loads_into_the_backbone():
    net = CARD.build(CARD.small)
    weights = {key: torch.randn_like(value) for key, value in net.backbone.state_dict().items()}
    classifier = {"head.weight": torch.zeros(1000, 64), "head.bias": torch.zeros(1000)}
    answer = net.backbone.load_state_dict({**weights, **classifier}, strict=False)
    assert not answer.missing_keys
    assert sorted(answer.unexpected_keys) == ["head.bias", "head.weight"]
    assert all(torch.equal(weights[key], value) for key, value in net.backbone.state_dict().items())


def test_variants_differ_in_widths_and_depths_alone():
    with torch.device("meta"):
        net = SegFormer(1, 5, variant="B5")
    assert net.backbone.patch_embed1.proj.weight.shape == (64, 1, 7, 7)
    assert [len(getattr(net.backbone, f"block{i}")) for i in (1, 2, 3, 4)] == [3, 6, 40, 3]
    assert net.backbone.block1[0].drop_path == 0
    assert net.backbone.block4[-1].drop_path == pytest.approx(0.1)


def test_dropped_paths_keep_the_mean():
    block = SegFormer(1, 2, drop_path=0.25).backbone.block4[-1].train()
    torch.manual_seed(0)
    kept = block._kept(torch.ones(20_000, 1, 1))
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1, abs=0.02)


def test_impossible_arguments_are_refused():
    with pytest.raises(ConfigError, match=r"one of B0, B1, B2, B3, B4, B5, found 'b2'. Did you mean B2"):
        SegFormer(variant="b2")
    with pytest.raises(ConfigError, match=r"depths needs 4 numbers, found \[2, 2, 2\]"):
        SegFormer(depths=(2, 2, 2))
    with pytest.raises(ConfigError, match=r"num_heads must divide embed_dims, found \[1, 3, 5, 8\]"):
        SegFormer(num_heads=(1, 3, 5, 8))
    with pytest.raises(ConfigError, match="at least 1, found 3 and 0"):
        SegFormer(3, 0)
    with pytest.raises(ConfigError, match=r"takes \(N, 3, Y, X\), found \(1, 1, 64, 64\)"):
        SegFormer()(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ConfigError, match=r"at least 29 voxels .* found \(64, 28\)"):
        SegFormer()(torch.zeros(1, 3, 64, 28))


def test_the_least_size_works():
    with torch.no_grad():
        assert SegFormer(1, 3).eval()(torch.zeros(1, 1, 29, 29)).shape == (1, 3, 29, 29)
