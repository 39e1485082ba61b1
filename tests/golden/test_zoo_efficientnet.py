"""EfficientNet costs what its original does, answers as MONAI's with the same weights, and serves as an encoder."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from zoo_figures import card_of, gmacs, network_gmacs

from itkit.errors import ConfigError
from itkit.models import EfficientNet, EncoderUNet, MMSegBackboneHead

MODULE = "efficientnet"
CARD = card_of(MODULE)
NARROW = dict(in_channels=1, width=0.25, depth=0.3)


@pytest.mark.parametrize("name", list(CARD.configurations))
def test_operations_of_every_variant(name):
    assert gmacs(MODULE, name) == pytest.approx(CARD.configurations[name].gmacs, rel=1e-5)


def test_fvcore_counts_the_same_operations():
    net, x = CARD.build(CARD.small).eval(), torch.zeros(1, 1, 96, 96)
    with FlopCounterMode(display=False) as count, torch.no_grad():
        net(x)
    assert network_gmacs(net, x) == pytest.approx(count.get_total_flops() / 2e9, rel=0.001)


def test_monai_s_network_answers_the_same_with_the_same_weights():
    from monai.networks.nets import EfficientNetBN

    torch.manual_seed(0)
    theirs = EfficientNetBN("efficientnet-b0", pretrained=False, spatial_dims=3, in_channels=2, num_classes=5).eval()
    ours = EfficientNet(2, 5, spatial_dims=3).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), _in_our_order(theirs, ours), strict=True)))
    x = torch.randn(1, 2, 32, 47, 38)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


def _in_our_order(theirs, ours):
    """Return MONAI's values in the order of our keys: theirs are numbered by stage and place in it, ours all through."""
    state, renamed = theirs.state_dict(), {}
    numbers = iter(range(len(ours._blocks)))
    number_of = {}
    for key, value in state.items():
        if key.startswith("_blocks."):
            _, stage, place, rest = key.split(".", 3)
            if (stage, place) not in number_of:
                number_of[stage, place] = next(numbers)
            key = f"_blocks.{number_of[stage, place]}.{rest}"
        renamed[key] = value
    return [renamed[key] for key in ours.state_dict()]


def test_maps_are_the_last_ones_on_their_grids_and_the_classifier_goes_on_from_them():
    torch.manual_seed(0)
    classifier = EfficientNet(1, 3, width=0.25, depth=0.3).eval()
    encoder = EfficientNet(**NARROW, out_indices=(0, 1, 2, 3, 4)).eval()
    encoder.load_state_dict(classifier.state_dict(), strict=True)
    x = torch.randn(1, 1, 96, 128)
    with torch.no_grad():
        maps = encoder(x)
        assert [tuple(y.shape[2:]) for y in maps] == [(96 // s, 128 // s) for s in (2, 4, 8, 16, 32)]
        assert tuple(y.shape[1] for y in maps) == encoder.feature_channels
        y = classifier._swish(classifier._bn1(classifier._conv_head(maps[-1])))
        assert torch.equal(classifier._fc(y.mean((2, 3), keepdim=True).flatten(1)), classifier(x))


def test_maps_that_are_not_asked_for_cost_nothing():
    whole, part = EfficientNet(out_indices=(0, 1, 2, 3, 4)), EfficientNet(out_indices=(1, 3))
    assert part.feature_channels == (24, 112)
    assert len(part._blocks) == 11
    part.load_state_dict(whole.state_dict(), strict=True)
    part.load_state_dict({f"{k}": v for k, v in EfficientNet().state_dict().items()}, strict=True)
    with pytest.raises(RuntimeError, match="Missing key"):
        whole.load_state_dict(part.state_dict(), strict=True)
    sum(y.mean() for y in part.train()(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in part.parameters())


def test_a_checkpoint_loads_below_another_module_too():
    net = EncoderUNet(dict(type=EfficientNet, width=0.25, depth=0.3, out_indices=(1, 2)), 1, 2)
    weights = {f"encoder.{k}": v for k, v in EfficientNet(**NARROW).state_dict().items()}
    own = {k: v for k, v in net.state_dict().items() if not k.startswith("encoder.")}
    net.load_state_dict({**own, **weights}, strict=True)


def test_the_padding_belongs_to_the_size_of_image():
    torch.manual_seed(0)
    x = torch.randn(1, 1, 65, 65)
    for size, edges in ((224, (32, 16, 8, 4, 2)), (65, (33, 17, 9, 5, 3))):
        net = EfficientNet(**NARROW, image_size=size, out_indices=(0, 1, 2, 3, 4)).eval()
        assert [y.shape[2] for y in net(x)] == list(edges)


@pytest.mark.parametrize("arguments", [{}, {"variant": "B2"}, {"out_indices": (0, 1)}, {"image_size": 33}])
def test_the_least_size_is_the_least(arguments):
    net = EfficientNet(**{**NARROW, **arguments}).eval()
    least = net.least_size
    net(torch.zeros(1, 1, least, least))
    with pytest.raises(ConfigError, match=rf"at least {least} voxels along each axis, found \({least}, {least - 1}\)"):
        net(torch.zeros(1, 1, least, least - 1))


def test_it_is_a_backbone_of_mmseg_s_heads():
    head = dict(type="FCNHead", in_channels=40, in_index=2, channels=4, num_convs=1, num_classes=3)
    backbone = dict(type="itkit.EfficientNet", in_channels=2, depth=0.3, out_indices=(0, 1, 2))
    net = MMSegBackboneHead(backbone, head).eval()
    assert net(torch.zeros(1, 2, 50, 64)).shape == (1, 3, 50, 64)


def test_impossible_arguments_are_refused():
    with pytest.raises(ConfigError, match="variant must be one of B0, .*found 'b3'. Did you mean B3"):
        EfficientNet(variant="b3")
    with pytest.raises(ConfigError, match="spatial_dims must be 2 or 3, found 1"):
        EfficientNet(spatial_dims=1)
    with pytest.raises(ConfigError, match="at least 1, found 0 and 1000"):
        EfficientNet(0)
    with pytest.raises(ConfigError, match="must be positive, found 1.0, 0 and 224"):
        EfficientNet(depth=0)
    with pytest.raises(ConfigError, match="probabilities from 0 to below 1, found 1 and 0.2"):
        EfficientNet(drop_connect=1)
    for wrong in ((), (1, 0), (0, 0), (3, 5)):
        with pytest.raises(ConfigError, match=r"out_indices must be rising numbers out of \[0, 1, 2, 3, 4\]"):
            EfficientNet(out_indices=wrong)
    with pytest.raises(ConfigError, match=r"EfficientNet takes \(N, 3, Y, X\), found \(1, 1, 64, 64\)"):
        EfficientNet()(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ConfigError, match="Linear does not return a list of maps|EfficientNet does not return a list"):
        EncoderUNet(dict(type=EfficientNet), 1)
