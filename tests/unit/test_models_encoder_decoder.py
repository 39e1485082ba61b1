"""EncoderUNet: any encoder's maps become logits of the image's size, in 2D and 3D, with heads at coarser levels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from itkit.errors import ConfigError
from itkit.models import EncoderUNet
from itkit.models.encoder_decoder import feature_channels
from itkit.registry import MODELS


class Pyramid(nn.Module):
    """Maps at 1/2, 1/4, ... of the size, rounded up; `stated` is the attribute by which an encoder names its channels."""

    def __init__(self, in_channels=1, widths=(4, 6, 8), dims=2, stated=False):
        super().__init__()
        kind = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        before = [in_channels, *widths]
        self.steps = nn.ModuleList(kind(a, b, 3, 2, 1) for a, b in zip(before, widths, strict=False))
        self.norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](widths[-1])
        if stated:
            self.feature_channels = widths

    def forward(self, x):
        maps = []
        for step in self.steps:
            x = step(x)
            maps.append(x)
        maps[-1] = self.norm(maps[-1])
        return maps


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
@pytest.mark.parametrize("image_width", [0, 8])
def test_odd_images_become_logits_of_their_size_and_every_parameter_learns(dims, norm, image_width):
    encoder = Pyramid(2, (4, 8, 8), dims)
    net = EncoderUNet(encoder, 2, 5, dims, widths=(8, 16), image_width=image_width, norm=norm, deep_supervision=1)
    size = (17, 22, 13)[-dims:]
    answers = net(torch.randn(2, 2, *size))
    assert answers[0].shape == (2, 5, *size)
    sum(answer.square().mean() for answer in answers).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_heads_at_coarser_levels_speak_in_training_only():
    net = EncoderUNet(Pyramid(), 1, 3, deep_supervision=2)
    shapes = [tuple(y.shape) for y in net(torch.randn(2, 1, 32, 40))]
    assert shapes == [(2, 3, 32, 40), (2, 3, 16, 20), (2, 3, 8, 10)]
    without = EncoderUNet(Pyramid(), 1, 3, image_width=0, deep_supervision=1)
    assert [tuple(y.shape) for y in without(torch.randn(2, 1, 32, 40))] == [(2, 3, 32, 40), (2, 3, 8, 10)]
    assert net.eval()(torch.randn(2, 1, 32, 40)).shape == (2, 3, 32, 40)


def test_the_decoder_joins_every_map_to_the_enlarged_coarser_one():
    net = EncoderUNet(Pyramid(), 1, 2, image_width=0, widths=(5, 7)).eval()
    x = torch.randn(1, 1, 16, 24)
    fine, middle, coarse = net.encoder(x)
    below = net.decoder.levels[1](torch.cat([middle, F.interpolate(coarse, (4, 6), mode="bilinear")], 1))
    above = net.decoder.levels[0](torch.cat([fine, F.interpolate(below, (8, 12), mode="bilinear")], 1))
    expected = F.interpolate(net.head(above), (16, 24), mode="bilinear")
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)


def test_the_level_at_full_size_sees_the_image_itself():
    net = EncoderUNet(Pyramid(), 1, 2).eval()
    for p in net.encoder.parameters():
        nn.init.zeros_(p)
    with torch.no_grad():
        flat, edge = torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)
        edge[..., 20:] = 1
        difference = (net(edge) - net(flat)).abs().sum((0, 1, 2))
    assert (difference[:16] == 0).all(), "only the image's own convolutions can tell, five cells far"
    assert (difference[20:] > 0).all()


def test_channels_are_asked_of_the_encoder_or_counted_without_a_trace():
    assert feature_channels(Pyramid(stated=True), 1, 2) == (4, 6, 8)
    encoder = Pyramid(3, (4, 6))
    encoder.steps.eval()
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert feature_channels(encoder, 3, 2) == (4, 6)
    assert encoder.training
    assert encoder.norm.training
    assert not encoder.steps.training
    assert all(torch.equal(state[key], value) for key, value in encoder.state_dict().items())


def test_encoders_by_name_get_the_channels_of_the_image():
    config = dict(type="mmseg.ResNet", depth=18, base_channels=8, stem_channels=8)
    net = MODELS.build(dict(type="EncoderUNet", in_channels=2, num_classes=3, encoder=config))
    assert net.channels == (8, 16, 32, 64)
    assert net.encoder.conv1.weight.shape[1] == 2
    assert net(torch.randn(2, 2, 40, 33)).shape == (2, 3, 40, 33)
    features = dict(type="monai.ResNetFeatures", model_name="resnet18", pretrained=False)
    with torch.device("meta"):
        for size in ((32, 40), (32, 32, 40)):
            net = EncoderUNet(features, 2, 3, spatial_dims=len(size)).eval()
            assert net(torch.empty(1, 2, *size)).shape == (1, 3, *size)


def test_a_module_of_ones_own_class_is_taken_as_it_is():
    encoder = Pyramid(2)
    assert EncoderUNet(encoder, 2, 3).encoder is encoder
    assert EncoderUNet(dict(type=Pyramid, widths=(4, 6)), 2, 3).encoder.steps[0].in_channels == 2


def test_initialisation_is_left_to_the_encoder():
    class Loaded(Pyramid):
        def init_weights(self):
            nn.init.constant_(self.steps[0].bias, 7)

    net = EncoderUNet(Loaded(), 1, 2)
    net.init_weights()
    assert (net.encoder.steps[0].bias == 7).all()
    EncoderUNet(Pyramid(), 1, 2).init_weights()


def test_impossible_arguments_are_refused():
    with pytest.raises(
        ConfigError, match=r"norm must be one of batch, instance, group, found 'bach'. Did you mean batch"
    ):
        EncoderUNet(Pyramid(), norm="bach")
    with pytest.raises(ConfigError, match="spatial_dims must be one of 2, 3, found 1"):
        EncoderUNet(Pyramid(), spatial_dims=1)
    with pytest.raises(ConfigError, match="at least 1, image_width at least 0, found 0, 2 and 16"):
        EncoderUNet(Pyramid(), 0)
    with pytest.raises(ConfigError, match="two maps of features or more, found 1.*out_indices"):
        EncoderUNet(Pyramid(1, (4,)))
    with pytest.raises(ConfigError, match=r"3 maps of features need 2 widths, one a skip, found \[8\]"):
        EncoderUNet(Pyramid(), widths=(8,))
    with pytest.raises(ConfigError, match=r"widths must be positive numbers, found \[8, 0\]"):
        EncoderUNet(Pyramid(), widths=(8, 0))
    with pytest.raises(ConfigError, match=r"multiples of 8, found \[4, 6\] and 16"):
        EncoderUNet(Pyramid(), norm="group")
    with pytest.raises(ConfigError, match="room for 0 to 2 deep-supervision heads .* found 3"):
        EncoderUNet(Pyramid(), deep_supervision=3)
    with pytest.raises(ConfigError, match="in_channels=1, but its encoder has in_channels=3"):
        EncoderUNet(dict(type=Pyramid, in_channels=3), 1)
    with pytest.raises(ConfigError, match="spatial_dims=2, but its encoder has spatial_dims=3"):
        EncoderUNet(dict(type="monai.ResNetFeatures", spatial_dims=3), 1)
    with pytest.raises(
        ConfigError, match="EncoderUNet: encoder: no model is called 'SubvoxelUNett'. Nearest: SubvoxelUNet"
    ):
        EncoderUNet(dict(type="SubvoxelUNett"))


def test_encoders_that_give_no_maps_are_refused():
    with pytest.raises(ConfigError, match=r"Flatten does not return a list of maps \(N, C_i, Y, X\) but Tensor"):
        EncoderUNet(nn.Flatten())
    with pytest.raises(ConfigError, match=r"Conv2d could not be tried on zeros \(1, 2, 64, 64\).*channels=\(...\)"):
        EncoderUNet(nn.Conv2d(1, 1, 1), 2)


def test_inputs_and_maps_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"EncoderUNet takes \(N, 1, Y, X\), found \(1, 2, 8, 8\)"):
        EncoderUNet(Pyramid())(torch.zeros(1, 2, 8, 8))
    with pytest.raises(ConfigError, match=r"made for maps of \[4, 6, 9\] channels; Pyramid returned \[4, 6, 8\]"):
        EncoderUNet(Pyramid(), channels=(4, 6, 9))(torch.zeros(2, 1, 32, 32))
