"""SegMamba costs what its original does; its three orders are what they are called; sizes that do not divide are refused."""

from __future__ import annotations

import pytest
import torch
from scan_count import scan_gflops
from torch.utils.flop_counter import FlopCounterMode
from zoo_figures import build_without_memory, card_of, gmacs, network_gmacs

from itkit.errors import ConfigError
from itkit.models import SegMamba
from itkit.models.segmamba import TriOrientedMamba

MODULE = "segmamba"
CARD = card_of(MODULE)


def test_operations():
    name = "SegMamba_brats"
    made = CARD.configurations[name]
    assert gmacs(MODULE, name) == pytest.approx(made.gmacs, rel=1e-5)
    assert scan_gflops(build_without_memory(MODULE, name), made.input_size) == pytest.approx(made.scan_gflops, rel=1e-5)


def test_operations_as_fvcore_counts_them():
    size = (1, 1, *CARD.small_size)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as count:
        CARD.build(CARD.small)(torch.empty(size))
    counted = network_gmacs(CARD.build(CARD.small), torch.zeros(size))
    assert counted == pytest.approx(count.get_total_flops() / 2e9, rel=0.01)


def test_the_third_order_goes_from_slice_to_slice():
    mamba = TriOrientedMamba(width=4, d_state=1, d_conv=2, expand=1, slices=3)
    tokens = torch.arange(6.0).view(1, 1, 6)
    assert mamba._across(tokens).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert torch.equal(mamba._along(mamba._across(tokens)), tokens)


def test_each_order_sees_what_lies_behind_it():
    torch.manual_seed(0)
    mamba = TriOrientedMamba(width=4, d_state=2, d_conv=2, expand=2, slices=2).double()
    x, gate = torch.randn(1, 8, 6, dtype=torch.float64), torch.randn(1, 8, 6, dtype=torch.float64)
    changed = x.clone()
    changed[..., 2] += 1

    def moved(scan):
        return (scan(changed) - scan(x)).abs().sum(1)[0].gt(1e-12).tolist()

    assert moved(lambda x: mamba._scan("", x, gate)) == [False, False, True, True, True, True]
    assert moved(lambda x: mamba._scan("_b", x.flip(-1), gate).flip(-1)) == [True, True, True, False, False, False]
    across = moved(lambda x: mamba._along(mamba._scan("_s", mamba._across(x), gate)))
    assert across == [False, False, True, False, False, True]  # order 0 3 1 4 2 5


def test_other_shapes_and_slices():
    with torch.device("meta"):
        net = SegMamba(2, 3, depths=(1, 2, 1, 1), feature_size=(8, 12, 20, 24), hidden_size=30, slices=(6, 3, 3, 3))
        assert net(torch.empty(2, 2, 48, 16, 32)).shape == (2, 3, 48, 16, 32)
    assert [len(stage) for stage in net.vit.stages] == [1, 2, 1, 1]


def test_impossible_arguments_are_refused():
    with pytest.raises(ConfigError, match=r"four stages: slices needs 4 positive numbers, found \[8, 4\]"):
        SegMamba(slices=(8, 4))
    with pytest.raises(ConfigError, match="expand must be at least 1, found 0"):
        SegMamba(expand=0)
    net = CARD.build(CARD.small)
    with pytest.raises(ConfigError, match=r"multiples of 16, found \(16, 16, 24\)"):
        net(torch.zeros(1, 1, 16, 16, 24))
    with pytest.raises(
        ConfigError,
        match=r"stage 3 of an input \(48, 16, 16\) .* has 3 voxels \(3, 1, 1\), which 2 slices do not divide",
    ):
        net(torch.zeros(1, 1, 48, 16, 16))
    with pytest.raises(ConfigError, match=r"leaves one voxel in the last stage, .* at least 32"):
        CARD.build({**CARD.small, "slices": (1, 1, 1, 1)})(torch.zeros(1, 1, 16, 16, 16))
