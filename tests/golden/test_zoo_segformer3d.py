"""SegFormer3D costs what its original does in both versions; and takes boxes of any size."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from zoo_figures import (
    build_without_memory,
    card_of,
    fill,
    gmacs,
    image,
    network_gmacs,
)

from itkit.errors import ConfigError
from itkit.models import SegFormer3D
from itkit.models.zoo import reference

MODULE = "segformer3d"
CARD = card_of(MODULE)


def test_operations():
    assert gmacs(MODULE, "SegFormer3D_brats") == pytest.approx(15.547, rel=1e-5)


def test_operations_as_fvcore_counts_them():
    name, size = "SegFormer3D_brats", (1, 4, 64, 64, 64)
    with FlopCounterMode(display=False) as count, torch.no_grad():
        build_without_memory(MODULE, name).eval()(torch.empty(size, device="meta"))
    assert network_gmacs(reference(name), torch.zeros(size)) == pytest.approx(count.get_total_flops() / 2e9, rel=1e-9)


def test_the_two_attention_scales_have_the_same_keys_and_other_answers():
    late, paper = (fill(reference(name)).eval() for name in ("SegFormer3D_small", "SegFormer3D_small_2024code"))
    assert late.state_dict().keys() == paper.state_dict().keys()
    with torch.no_grad():
        x = image([1, 1, 32, 32, 32])
        a, b = late(x), paper(x)
    assert (a - b).abs().max() > 0.1 * a.std()


def test_a_box_is_not_taken_for_a_cube():
    torch.manual_seed(0)
    net, x = SegFormer3D(embed_dims=(8, 16, 40, 64), decoder_channels=16).eval(), torch.randn(1, 1, 32, 64, 96)
    with torch.no_grad():
        maps = net.segformer_encoder(x)
        assert [tuple(m.shape[2:]) for m in maps] == [(8, 16, 24), (4, 8, 12), (2, 4, 6), (1, 2, 3)]
        net.segformer_encoder.tf_block1 = torch.nn.ModuleList()
        tokens = net.segformer_encoder(x)[0]
        first = net.segformer_encoder.norm1(net.segformer_encoder.embed_1(x)[0])
    assert torch.equal(tokens[0, :, 1, 2, 3], first[0, (1 * 16 + 2) * 24 + 3])


def test_impossible_arguments_are_refused():
    with pytest.raises(ConfigError, match=r"head_dim or num_heads, found 'heads'. Did you mean"):
        SegFormer3D(attention_scale="heads")
    with pytest.raises(ConfigError, match=r"sr_ratios needs 4 numbers, found \[4, 2\]"):
        SegFormer3D(sr_ratios=(4, 2))
    with pytest.raises(ConfigError, match=r"num_heads must divide embed_dims, found \[1, 2, 5, 7\]"):
        SegFormer3D(num_heads=(1, 2, 5, 7))
    with pytest.raises(ConfigError, match="at least 1, found 0 and 2"):
        SegFormer3D(0)
    with pytest.raises(ConfigError, match=r"takes \(N, 1, Z, Y, X\), found \(1, 2, 32, 32, 32\)"):
        SegFormer3D()(torch.zeros(1, 2, 32, 32, 32))
    with pytest.raises(ConfigError, match=r"at least 13 voxels .* found \(32, 12, 32\)"):
        SegFormer3D()(torch.zeros(1, 1, 32, 12, 32))


def test_a_batch_with_one_token_cannot_be_trained_on():
    net = CARD.build(CARD.small).train()
    with pytest.raises(ConfigError, match="stage 4 has one token in the whole batch"):
        net(torch.zeros(1, 1, 32, 32, 32))
    assert net(torch.zeros(2, 1, 32, 32, 32)).shape == (2, 2, 32, 32, 32)


def test_the_least_size_works():
    with torch.no_grad():
        assert CARD.build(CARD.small).eval()(torch.zeros(1, 1, 13, 13, 13)).shape == (1, 2, 13, 13, 13)
