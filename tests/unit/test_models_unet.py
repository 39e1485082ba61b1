"""SubvoxelUNet: sizes, deep supervision, padding, arguments, and that it learns."""

from __future__ import annotations

import io

import pytest
import torch

from itkit.errors import ConfigError
from itkit.models import SubvoxelUNet
from itkit.models.unet import depth_to_space, space_to_depth
from itkit.registry import MODELS

SMALL = {"widths": (8, 16), "groups": 4}
VARIANTS = [
    {},
    {"upsample": "shuffle", "merge": "add"},
    {"norm": "instance", "activation": "gelu", "merge": "add"},
    {"norm": "batch", "activation": "relu"},
    {"stem_stride": 1, "activation": "silu"},
    {"channels_last": True, "blocks": 2, "decoder_blocks": (2,)},
    {"drop_path": 0.5, "dropout": 0.1},
]


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_logits_have_the_size_of_the_input_and_every_parameter_a_gradient(dims, variant):
    net = SubvoxelUNet(dims, 2, 3, **SMALL, **variant)
    size = (9, 14, 11)[-dims:]
    logits = net(torch.randn(2, 2, *size))
    assert logits.shape == (2, 3, *size)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert torch.isfinite(torch.cat([p.grad.flatten() for p in net.parameters()])).all()


def test_padding_repeats_the_edge_and_is_cropped_back():
    net = SubvoxelUNet(3, 1, 2, **SMALL).eval()
    assert net.divisor == (4, 4, 4)
    x = torch.randn(1, 1, 8, 5, 6)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 2, 0, 0), mode="replicate")
    assert torch.equal(net(x), net(padded)[:, :, :, 1:6, 1:7])


def test_thick_slices_may_be_folded_and_pooled_in_the_plane_only():
    net = SubvoxelUNet(3, 1, 2, widths=(8, 16, 24), stem_stride=(1, 2, 2), strides=[(1, 2, 2), 2], groups=4)
    assert net.divisor == (2, 8, 8)
    assert net(torch.randn(1, 1, 2, 8, 16)).shape == (1, 2, 2, 8, 16)


def test_deep_supervision_gives_a_list_in_training_only():
    net = SubvoxelUNet(3, 1, 2, widths=(8, 16, 24), groups=4, deep_supervision=2)
    x = torch.randn(1, 1, 16, 16, 24)
    shapes = [tuple(y.shape) for y in net(x)]
    assert shapes == [(1, 2, 16, 16, 24), (1, 2, 8, 8, 12), (1, 2, 4, 4, 6)]
    assert net.eval()(x).shape == (1, 2, 16, 16, 24)
    with pytest.raises(ConfigError, match=r"multiple of \(8, 8, 8\), found \(16, 16, 20\)"):
        net.train()(torch.randn(1, 1, 16, 16, 20))


def test_supervised_heads_do_not_change_the_main_output():
    plain, deep = SubvoxelUNet(2, 1, 2, **SMALL), SubvoxelUNet(2, 1, 2, **SMALL, deep_supervision=1)
    deep.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 1, 8, 8)
    assert torch.equal(plain(x), deep(x)[0])


def test_drop_path_of_one_branch_keeps_the_mean():
    net = SubvoxelUNet(2, 1, 2, **SMALL, drop_path=0.5)
    block = net.encoders[0][0]
    x = torch.randn(4000, 8, 3, 3)
    dropped = block(x) - x
    kept = dropped.flatten(1).abs().amax(1) > 0
    assert abs(kept.float().mean().item() - 0.5) < 0.05
    assert torch.allclose(dropped[kept], 2 * (block.eval()(x) - x)[kept], atol=1e-5)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"spatial_dims": 4}, "spatial_dims must be one of 2, 3, found 4"),
        ({"norm": "grop"}, "norm must be one of group, instance, batch, found 'grop'. Did you mean group?"),
        ({"activation": "swish"}, "activation must be one of relu"),
        ({"upsample": "linear"}, "upsample must be one of nearest, shuffle"),
        ({"merge": "sum"}, "merge must be one of cat, add"),
        ({"widths": (8,)}, "at least two levels"),
        ({"widths": (8, 15), "groups": 4}, "multiple of groups=4"),
        ({"deep_supervision": 3}, "has room for 0 to 2 deep-supervision heads, found 3"),
        ({"blocks": (1, 1)}, "blocks needs 3 numbers"),
        ({"decoder_blocks": (1, 1, 1)}, "decoder_blocks needs 2 numbers"),
        ({"decoder_blocks": 0}, "merge='cat' needs at least one decoder block"),
        ({"stem_stride": (2, 2)}, "stem_stride must be a positive number or 3 of them"),
        ({"stem_stride": 0}, "stem_stride must be a positive number"),
        ({"strides": (2,)}, "strides needs 2 entries"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ConfigError) as error:
        SubvoxelUNet(**wrong)
    assert message in str(error.value)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (1, 2, 8, 8, 8)])
def test_wrong_inputs_are_refused(shape):
    with pytest.raises(ConfigError, match=r"takes \(N, 1, Z, Y, X\), found"):
        SubvoxelUNet(**SMALL)(torch.zeros(shape))


def test_state_dict_round_trip_and_seed():
    torch.manual_seed(3)
    one = SubvoxelUNet(**SMALL).eval()
    torch.manual_seed(3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), SubvoxelUNet(**SMALL).parameters(), strict=True))
    other = SubvoxelUNet(**SMALL).eval()
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(2, 1, 8, 8, 8)
    assert torch.equal(one(x), other(x))


def test_folding_is_lossless_with_one_stride_an_axis():
    x = torch.randn(2, 3, 4, 6, 10)
    folded = space_to_depth(x, (1, 3, 2))
    assert folded.shape == (2, 18, 4, 2, 5)
    assert torch.equal(depth_to_space(folded, (1, 3, 2)), x)


def test_it_is_registered_and_builds_on_the_meta_device():
    with torch.device("meta"):
        net = MODELS.build({"type": "SubvoxelUNet", "num_classes": 3})
        assert net(torch.empty(2, 1, 32, 48, 33)).shape == (2, 3, 32, 48, 33)
    assert {p.device.type for p in net.parameters()} == {"meta"}
