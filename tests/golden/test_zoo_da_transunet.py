"""DA-TransUNet costs what its original does, and leaves the same parameters untrained."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from zoo_figures import (
    card_of,
    network_gmacs,
)

from itkit.errors import ConfigError
from itkit.models import DATransUNet
from itkit.models.da_transunet import ChannelAttention, PositionAttention, StandardisedConvolution
from itkit.models.zoo import reference

MODULE = "da_transunet"
CARD = card_of(MODULE)
CANONICAL = "DA_TransUNet_R50-ViT-B_16_224_c9"


@pytest.fixture(scope="module")
def canonical():
    return reference(CANONICAL)


def test_operations(canonical):
    """The original also computes the two heads of each dual attention that nothing uses."""
    unused = sum(2 * (width // 16) * width * cells**2 for width, cells in ((768, 14), (512, 28), (256, 56))) / 1e9
    assert network_gmacs(canonical, torch.zeros(1, 3, 224, 224)) + unused == pytest.approx(30.1619, rel=1e-5)


def test_what_the_original_never_trains(canonical):
    canonical.train()(torch.randn(1, 3, 224, 224)).square().mean().backward()
    without = [p.numel() for p in canonical.parameters() if p.grad is None]
    assert (len(without), sum(without)) == (272, 1_513_816)


def test_one_channel_is_repeated():
    torch.manual_seed(0)
    grey = CARD.build(CARD.small).eval()
    colour = CARD.build({**CARD.small, "in_channels": 3}).eval()
    colour.load_state_dict(grey.state_dict())
    x = torch.randn(1, 1, 48, 64)
    with torch.no_grad():
        assert torch.equal(grey(x), colour(x.repeat(1, 3, 1, 1)))


def test_position_attention_in_closed_form():
    torch.manual_seed(0)
    net, x = PositionAttention(16), torch.randn(2, 16, 3, 5)
    assert torch.equal(net(x), x), "the attention's weight begins at 0"
    torch.nn.init.constant_(net.gamma, 0.7)
    query, key, value = (layer(x).flatten(2) for layer in (net.query_conv, net.key_conv, net.value_conv))
    weights = torch.einsum("nci,ncj->nij", query, key).softmax(-1)
    attended = torch.einsum("nij,ncj->nci", weights, value).reshape(x.shape)
    torch.testing.assert_close(net(x), x + 0.7 * attended)


def test_channel_attention_prefers_the_channel_least_alike():
    net = ChannelAttention()
    torch.nn.init.constant_(net.gamma, 1.0)
    x = torch.tensor([[[[10.0, 0.0]], [[0.0, 10.0]]]])  # two channels at right angles, each most like itself
    torch.testing.assert_close(net(x), x + x.flip(1))


def test_standardised_weights():
    torch.manual_seed(0)
    convolution, x = StandardisedConvolution(4, 8, 3, padding=1, bias=False), torch.randn(1, 4, 6, 6)
    weight = convolution.weight.detach().flatten(1)
    weight = (weight - weight.mean(1, keepdim=True)) / (weight.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(convolution(x), F.conv2d(x, weight.view(8, 4, 3, 3), padding=1))


def test_a_traced_graph_has_the_attention_of_the_skips():
    torch.manual_seed(0)
    net, x = CARD.build(CARD.small).eval(), torch.randn(1, 1, 48, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(net, x)
    with torch.no_grad():
        torch.testing.assert_close(traced(x), net(x))


@pytest.mark.parametrize("skips", [0, 1, 2])
def test_fewer_skips(skips):
    net = CARD.build({**CARD.small, "skips": skips}).eval()
    joined = [*(512, 256, 64)[:skips], 0, 0, 0, 0][:4]
    widths = [block.conv1[0].in_channels for block in net.decoder.blocks]
    assert widths == [a + b for a, b in zip((512, 256, 128, 64), joined, strict=True)]
    with torch.no_grad():
        assert net(torch.randn(1, 1, 48, 64)).shape == (1, 2, 48, 64)


def test_building_is_silent(recwarn):
    CARD.build(CARD.small)
    assert not recwarn.list


def test_impossible_arguments_are_refused():
    with pytest.raises(ConfigError, match=r"one or two multiples of 16 \(Y, X\), found 100"):
        DATransUNet(image_size=100)
    with pytest.raises(ConfigError, match="num_heads must divide 768, found 7"):
        DATransUNet(num_heads=7)
    with pytest.raises(ConfigError, match=r"three numbers from 1 on, found \[3, 4\]"):
        DATransUNet(resnet_layers=(3, 4))
    with pytest.raises(ConfigError, match="0 to 3 skips, found 4"):
        DATransUNet(skips=4)
    with pytest.raises(ConfigError, match="at least 1, found 1 and 0"):
        DATransUNet(1, 0)
    net = CARD.build(CARD.small)
    with pytest.raises(ConfigError, match=r"takes \(N, 1, Y, X\), found \(1, 3, 48, 64\)"):
        net(torch.zeros(1, 3, 48, 64))
    with pytest.raises(ConfigError, match=r"built for image_size=\(48, 64\) \(Y, X\), found \(64, 64\)"):
        net(torch.zeros(1, 1, 64, 64))
