"""Encoders of timm by name, against a stand-in with timm's documented interface."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from mmengine.config import Config
from torch import nn

from itkit.errors import ConfigError, MissingDependency
from itkit.mm.config_check import check_config
from itkit.models import EncoderUNet, MMSegBackboneHead, TimmEncoder
from itkit.registry import MODELS


class FeatureInfo:
    def __init__(self, channels, strides):
        self._channels, self._strides = channels, strides

    def channels(self):
        return list(self._channels)

    def reduction(self):
        return list(self._strides)


class Features(nn.Module):
    """Maps at 1/2, 1/4, 1/8; channels last where asked, as timm's transformers do."""

    def __init__(self, in_chans, out_indices, output_fmt):
        super().__init__()
        self.output_fmt, self.out_indices, widths = output_fmt, out_indices, (4, 6, 8)
        before = (in_chans, *widths)
        self.steps = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(before, widths, strict=False))
        self.feature_info = FeatureInfo([widths[i] for i in out_indices], [2 ** (1 + i) for i in out_indices])

    def forward(self, x):
        maps = []
        for step in self.steps:
            x = step(x)
            maps.append(x.permute(0, 2, 3, 1) if self.output_fmt == "NHWC" else x)
        return [maps[i] for i in self.out_indices]


@pytest.fixture
def timm(monkeypatch):
    """Return the list of calls of ``create_model``; timm itself is a stand-in."""
    calls = []

    def create_model(model_name, pretrained=False, features_only=False, in_chans=3, out_indices=(0, 1, 2), **options):
        calls.append(dict(model_name=model_name, pretrained=pretrained, features_only=features_only, **options))
        if model_name == "vit_whole":
            raise RuntimeError("features_only not implemented for Vision Transformer models.")
        return Features(in_chans, out_indices, "NHWC" if model_name.startswith("swin") else "NCHW")

    module = types.ModuleType("timm")
    module.create_model = create_model
    module.list_models = lambda: ["resnet18", "swin_tiny", "vit_whole"]
    monkeypatch.setitem(sys.modules, "timm", module)
    return calls


def test_a_name_in_a_config_is_an_encoder(timm):
    net = MODELS.build(dict(type="timm.resnet18", in_channels=2, out_indices=(0, 2), drop_path_rate=0.1))
    assert isinstance(net, TimmEncoder)
    assert timm == [dict(model_name="resnet18", pretrained=False, features_only=True, drop_path_rate=0.1)]
    assert net.feature_channels == (4, 8)
    assert net.feature_strides == (2, 8)
    assert [tuple(x.shape) for x in net(torch.zeros(1, 2, 32, 24))] == [(1, 4, 16, 12), (1, 8, 4, 3)]


def test_names_may_have_a_tag_or_lie_elsewhere(timm):
    MODELS.build(dict(type="timm.resnet18.a1_in1k", pretrained=True))
    TimmEncoder("hf-hub:someone/something")
    assert [(call["model_name"], call["pretrained"]) for call in timm] == [
        ("resnet18.a1_in1k", True),
        ("hf-hub:someone/something", False),
    ]


def test_maps_with_channels_last_are_turned(timm):
    assert [tuple(x.shape) for x in TimmEncoder("swin_tiny", 1)(torch.zeros(1, 1, 32, 24))] == [
        (1, 4, 16, 12),
        (1, 6, 8, 6),
        (1, 8, 4, 3),
    ]


def test_it_is_an_encoder_of_our_decoder_and_a_backbone_of_mmseg_s_heads(timm):
    net = EncoderUNet(dict(type="timm.resnet18"), in_channels=2, num_classes=3)
    assert net.channels == (4, 6, 8)
    assert net(torch.randn(2, 2, 33, 40)).shape == (2, 3, 33, 40)
    head = dict(type="FCNHead", in_channels=8, channels=4, num_convs=1, num_classes=3)
    net = MMSegBackboneHead(dict(type="timm.resnet18", in_channels=1), head)
    assert net(torch.randn(2, 1, 33, 40)).shape == (2, 3, 33, 40)


def test_names_and_models_that_do_not_fit_are_refused(timm):
    with pytest.raises(ConfigError, match="timm has no model 'resnet81'. Did you mean resnet18"):
        MODELS.build(dict(type="timm.resnet81"))
    with pytest.raises(ConfigError, match="timm makes no encoder of 'vit_whole' .*features_only not implemented"):
        TimmEncoder("vit_whole")
    with pytest.raises(ConfigError, match=r"timm.resnet18 takes \(N, 2, Y, X\), found \(1, 1, 8, 8\)"):
        TimmEncoder("resnet18", 2)(torch.zeros(1, 1, 8, 8))


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependency, match=r"needed for the encoder 'resnet18'.*pip install 'itkit\[timm\]'"):
        MODELS.build(dict(type="timm.resnet18"))


def test_the_check_of_a_config_knows_such_names_and_their_arguments():
    encoder = dict(type="timm.resnet18", out_indices=(0, 1))
    model = dict(type="EncoderUNet", in_channels=1, num_classes=3, encoder=encoder)
    check_config(Config(dict(model=model)))
    encoder["out_indicees"] = encoder.pop("out_indices")
    with pytest.raises(ConfigError, match='no argument "out_indicees". Did you mean out_indices'):
        check_config(Config(dict(model=model)))
