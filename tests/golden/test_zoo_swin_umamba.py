"""Swin-UMamba and its variant D cost what their originals do, and give their outputs in the original's order."""

from __future__ import annotations

import pytest
import torch
from scan_count import scan_gflops
from zoo_figures import build_without_memory, card_of, fill, gmacs, network_gmacs

from itkit.errors import ConfigError
from itkit.models import SwinUMamba, SwinUMambaD
from itkit.models.zoo import reference
from itkit.ops.visual_state_space import VSSBlock

MODULES = {"swin_umamba": "SwinUMamba_in1_c14_ds", "swin_umamba_d": "SwinUMambaD_in1_c14_ds"}
both = pytest.mark.parametrize("module", MODULES)


@both
def test_operations(module):
    made = card_of(module).configurations[MODULES[module]]
    assert gmacs(module, MODULES[module]) == pytest.approx(made.gmacs, rel=1e-5)
    counted = scan_gflops(build_without_memory(module, MODULES[module]), made.input_size)
    assert counted == pytest.approx(made.scan_gflops, rel=1e-5)


@both
def test_operations_as_fvcore_counts_them(module):
    name, size = MODULES[module], 32
    expected = card_of(module).configurations[name].gmacs * (size / 320) ** 2
    assert network_gmacs(reference(name), torch.zeros(1, 1, size, size)) == pytest.approx(expected, rel=0.03)


@both
def test_deep_supervision_adds_outputs_and_changes_nothing_else(module):
    card = card_of(module)
    supervised = fill(card.build(card.small)).eval()
    alone = card.build({**card.small, "deep_supervision": False}).eval()
    alone.load_state_dict(supervised.state_dict(), strict=module == "swin_umamba_d")
    x = torch.randn(1, 1, 64, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = supervised(x)
        assert torch.equal(alone(x), outputs[0])
    steps = (1, 2, 4, 8) if module == "swin_umamba" else (1, 4, 8, 16)
    assert [tuple(y.shape[2:]) for y in outputs] == [(64 // step, 32 // step) for step in steps]


def test_the_encoder_takes_other_depths_and_widths():
    with torch.device("meta"):
        deep = SwinUMamba(2, 3, feature_size=(10, 8, 16, 32, 64), depths=(1, 2, 3, 1), d_state=2)
        flat = SwinUMambaD(2, 3, dims=12, depths=(1, 2, 1), patch_size=2)
        assert deep(torch.empty(1, 2, 96, 32)).shape == (1, 3, 96, 32)
        assert flat(torch.empty(1, 2, 8, 24)).shape == (1, 3, 8, 24)
    assert [len(stage.blocks) for stage in deep.vssm_encoder.layers] == [1, 2, 3, 1]
    assert [len(stage.blocks) for stage in flat.decoder.stages] == [2, 2]
    assert flat.divisor == 8


def test_dropped_scans_keep_the_mean():
    torch.manual_seed(0)
    block = VSSBlock(2, 1, 0.25).train()
    block.self_attention = torch.nn.Identity()
    block.ln_1 = torch.nn.Identity()
    kept = block(torch.ones(20_000, 1, 1, 2)) - 1
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1, abs=0.02)


def test_impossible_arguments_are_refused():
    with pytest.raises(
        ConfigError, match=r"each from the third on double the one before, found \[48, 96, 180, 384, 768\]"
    ):
        SwinUMamba(feature_size=(48, 96, 180, 384, 768))
    with pytest.raises(ConfigError, match="hidden_size is the width of the encoder's last map, 768; found 512"):
        SwinUMamba(hidden_size=512)
    with pytest.raises(
        ConfigError, match="SwinUMamba: in_channels, num_classes and d_state must be at least 1, found 1, 0 and 16"
    ):
        SwinUMamba(num_classes=0)
    with pytest.raises(ConfigError, match=r"SwinUMamba: depths needs four positive numbers, found \[2, 2\]"):
        SwinUMamba(depths=(2, 2))
    with pytest.raises(ConfigError, match="SwinUMambaD: patch_size must be at least 1, found 0"):
        SwinUMambaD(patch_size=0)
    with pytest.raises(ConfigError, match=r"two or more positive numbers, one for each stage, found \[2\]"):
        SwinUMambaD(depths=(2,))
    with pytest.raises(ConfigError, match=r"multiples of 32, found \(32, 40\)"):
        SwinUMambaD(dims=4, depths=(1, 1, 1, 1))(torch.zeros(1, 1, 32, 40))
