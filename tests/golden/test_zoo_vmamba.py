"""VMamba costs what its original does; a classifier's weights make an encoder, for decoders of ours and of MMSegmentation."""

from __future__ import annotations

import pytest
import torch
from scan_count import scan_gflops
from zoo_figures import build_without_memory, card_of, fill, gmacs, network_gmacs

from itkit.errors import ConfigError
from itkit.models import EncoderUNet, MMSegBackboneHead, VMamba
from itkit.models.zoo import reference

MODULE = "vmamba"
CARD = card_of(MODULE)
MEASURED = [name for name, made in CARD.configurations.items() if made.gmacs is not None]
SMALL = {key: value for key, value in CARD.small.items() if key != "num_classes"}


@pytest.mark.parametrize("name", MEASURED)
def test_operations_of_every_variant(name):
    made = CARD.configurations[name]
    assert gmacs(MODULE, name) == pytest.approx(made.gmacs, rel=1e-5)
    assert scan_gflops(build_without_memory(MODULE, name), made.input_size) == pytest.approx(made.scan_gflops, rel=1e-5)


def test_operations_as_fvcore_counts_them():
    counted = network_gmacs(reference("VMamba_T_s1l8"), torch.zeros(1, 3, 64, 64))
    assert counted == pytest.approx(4.81262 * (64 / 224) ** 2, rel=0.03)


@pytest.mark.parametrize("variant", ["T", "vanilla_T"])
def test_a_classifier_becomes_an_encoder(variant):
    small = {**SMALL, "variant": variant}
    classifier, encoder = fill(VMamba(num_classes=3, **small)).eval(), VMamba(out_indices=(1, 3), **small).eval()
    answer = encoder.load_state_dict(classifier.state_dict(), strict=False)
    assert sorted(answer.missing_keys) == [f"outnorm{i}.{part}" for i in (1, 3) for part in ("bias", "weight")]
    assert not answer.unexpected_keys
    encoder.outnorm3.load_state_dict(classifier.classifier.norm.state_dict())
    x = torch.randn(2, 1, 37, 50, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        middle, last = encoder(x)
        torch.testing.assert_close(classifier.classifier.head(last.mean((2, 3))), classifier(x))
    assert (middle.shape[1], last.shape[1]) == encoder.feature_channels == (32, 128)


def test_maps_have_the_sizes_of_the_stages():
    with torch.no_grad():
        maps = VMamba(out_indices=(0, 1, 2, 3), **SMALL).eval()(torch.zeros(1, 1, 37, 64))
    assert [tuple(x.shape[1:]) for x in maps] == [(16, 10, 16), (32, 5, 8), (64, 3, 4), (128, 2, 2)]


def test_it_is_a_backbone_for_a_head_of_mmsegmentation():
    net = MMSegBackboneHead(
        backbone=dict(type="itkit.VMamba", out_indices=(0, 1, 2, 3), **SMALL),
        decode_head=dict(
            type="UPerHead", in_channels=(16, 32, 64, 128), in_index=(0, 1, 2, 3), channels=8, num_classes=3
        ),
        norm_cfg=dict(type="BN"),
    )
    logits = net(torch.randn(2, 1, 64, 48))
    assert logits.shape == (2, 3, 64, 48)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in net.backbone.parameters())


def test_it_is_an_encoder_for_a_u_net():
    net = EncoderUNet(dict(type=VMamba, out_indices=(0, 1, 2, 3), **SMALL), in_channels=1, num_classes=3)
    assert net.channels == (16, 32, 64, 128)
    assert net(torch.randn(2, 1, 40, 56)).shape == (2, 3, 40, 56)


def test_variants_follow_their_names():
    with torch.device("meta"):
        nets = {name: VMamba(variant=name) for name in ("S", "B", "S_s1l20", "vanilla_S", "vanilla_B")}
    assert [len(nets[name].layers[2].blocks) for name in nets] == [15, 15, 20, 27, 27]
    assert [nets[name].layers[0].blocks[0].op.in_proj.out_features for name in nets] == [192, 256, 96, 384, 512]
    assert nets["vanilla_B"].layers[3].blocks[0].op.A_logs.shape == (4 * 2048, 16)
    assert nets["B"].layers[-1].blocks[-1].drop_path == pytest.approx(0.6)


def test_arguments_override_the_variant():
    with torch.device("meta"):
        net = VMamba(1, 4, depths=(1, 2), dims=(8, 24), d_state=3, dt_rank=5, mlp_ratio=0, conv_kernel=1, gate=True)
    block = net.layers[1].blocks[1].op
    assert not hasattr(net.layers[1].blocks[1], "mlp")
    assert not hasattr(block, "conv2d")
    assert block.in_proj.weight.shape == (2 * 24, 24)
    assert block.x_proj.weight.shape == (4 * (5 + 2 * 3), 24)
    net = VMamba(1, 4, depths=(1, 2), dims=(8, 24), d_state=3, dt_rank=5, mlp_ratio=0, conv_kernel=1, gate=True)
    assert net(torch.ones(2, 1, 9, 9)).shape == (2, 4)


def test_the_names_of_projections_change_no_number():
    torch.manual_seed(0)
    one, two = (VMamba(num_classes=3, stacked_projections=stacked, **SMALL) for stacked in (False, True))
    state = one.state_dict()
    for key, value in two.state_dict().items():
        old = key.replace("x_proj_weight", "x_proj.weight").replace("dt_projs_weight", "dt_projs.weight")
        value.copy_(state[old].view_as(value))
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(one.eval()(x), two.eval()(x))


def test_impossible_arguments_are_refused():
    with pytest.raises(ConfigError, match="variant must be one of T, S, B, .* found 't'. Did you mean T"):
        VMamba(variant="t")
    with pytest.raises(
        ConfigError, match=r"depths and dims need a number for each stage, found depths \[2, 2\] and dims \[8\]"
    ):
        VMamba(depths=[2, 2], dims=[8])
    with pytest.raises(ConfigError, match=r"out_indices must be rising numbers out of \[0, 1, 2, 3\]"):
        VMamba(out_indices=(0, 4))
    with pytest.raises(ConfigError, match="d_state must be at least 1, found 0"):
        VMamba(d_state=0)
    with pytest.raises(ConfigError, match="conv_kernel must be odd, found 4"):
        VMamba(conv_kernel=4)
    with pytest.raises(ConfigError, match=r"drop_path within \[0, 1\), found 1.0, 4.0 and 1.0"):
        VMamba(drop_path=1.0)
    with pytest.raises(ConfigError, match=r"takes \(N, 3, Y, X\), found \(1, 1, 64, 64\)"):
        VMamba(**{**SMALL, "in_channels": 3})(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ConfigError, match=r"at least 4 pixels along both axes, found \(3, 64\)"):
        VMamba(overlapping=False, **SMALL)(torch.zeros(1, 1, 3, 64))


def test_dropped_paths_keep_the_mean():
    block = VMamba(**{**SMALL, "drop_path": 0.25}).layers[3].blocks[0].train()
    torch.manual_seed(0)
    kept = block._kept(torch.ones(20_000, 1, 1, 1))
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1, abs=0.02)
