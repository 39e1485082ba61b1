"""MMSegmentation's backbones and heads as one network from images to logits."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import DefaultScope
from torch import nn

from itkit.errors import ConfigError
from itkit.models import MMSegBackboneHead
from itkit.registry import MODELS

RESNET = {"type": "ResNet", "depth": 18, "in_channels": 1, "base_channels": 8, "stem_channels": 8}
HEAD = {"type": "FCNHead", "in_channels": 64, "channels": 8, "num_classes": 3, "num_convs": 1}
AUXILIARY = {**HEAD, "in_channels": 32, "in_index": 2}


def test_logits_have_the_size_of_the_input_and_parts_come_from_mmseg():
    net = MODELS.build({"type": "MMSegBackboneHead", "backbone": RESNET, "decode_head": HEAD})
    assert {type(p).__module__.split(".")[0] for p in (net.backbone, net.decode_head)} == {"mmseg"}
    assert type(net.decode_head.loss_decode).__module__.startswith("mmseg.")
    assert net(torch.randn(2, 1, 64, 48)).shape == (2, 3, 64, 48)


def test_parts_of_the_same_name_in_itkit_are_not_taken_by_mistake():
    with DefaultScope.overwrite_default_scope("itkit"):  # as the engine does; itkit has a CrossEntropyLoss of its own
        net = MMSegBackboneHead(RESNET, HEAD)
    assert type(net.decode_head.loss_decode).__module__.startswith("mmseg.")


def test_scoped_names_classes_and_modules_are_accepted_alike():
    from mmseg.models import FCNHead

    class Pyramid(nn.Module):
        def forward(self, x):
            return [x, nn.functional.avg_pool2d(x, 2)]

    head = {**HEAD, "in_channels": 1}
    torch.manual_seed(0)
    by_class = MMSegBackboneHead(Pyramid(), {**head, "type": FCNHead}).eval()
    torch.manual_seed(0)
    by_name = MMSegBackboneHead(Pyramid(), {**head, "type": "mmseg.FCNHead"}).eval()
    x = torch.randn(1, 1, 8, 8)
    assert torch.equal(by_class(x), by_name(x))
    by_hand = by_class.decode_head([nn.functional.avg_pool2d(x, 2)])
    assert torch.equal(by_class(x), nn.functional.interpolate(by_hand, (8, 8), mode="bilinear", align_corners=False))


def test_auxiliary_heads_speak_in_training_only():
    net = MMSegBackboneHead(RESNET, HEAD, auxiliary_head=AUXILIARY)
    outputs = net(torch.randn(2, 1, 64, 64))
    assert [tuple(y.shape) for y in outputs] == [(2, 3, 64, 64)] * 2
    sum(y.sum() for y in outputs).backward()
    assert net.auxiliary_heads[0].conv_seg.weight.grad is not None
    assert net.eval()(torch.randn(2, 1, 64, 64)).shape == (2, 3, 64, 64)


def test_neck_and_norm_cfg_reach_the_parts():
    net = MMSegBackboneHead(
        RESNET,
        {**HEAD, "in_channels": 8, "in_index": 0},
        neck={"type": "FPN", "in_channels": [8, 16, 32, 64], "out_channels": 8, "num_outs": 4},
        auxiliary_head=[{**HEAD, "in_channels": 8, "norm_cfg": {"type": "BN"}}],
        norm_cfg={"type": "GN", "num_groups": 4},
    ).eval()
    assert net(torch.randn(1, 1, 64, 64)).shape == (1, 3, 64, 64)
    assert any(isinstance(m, nn.GroupNorm) for m in net.backbone.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in (*net.backbone.modules(), *net.decode_head.modules()))
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.auxiliary_heads.modules())
    net.init_weights()


def test_it_builds_on_the_meta_device():
    with torch.device("meta"):
        net = MMSegBackboneHead(RESNET, HEAD)
        assert net.eval()(torch.empty(1, 1, 64, 64)).shape == (1, 3, 64, 64)


def test_unknown_names_and_wrong_parts_are_refused():
    with pytest.raises(
        ConfigError, match="backbone of MMSegBackboneHead: MMSegmentation has no 'ResNett'. Did you mean ResNet"
    ):
        MMSegBackboneHead({"type": "ResNett"}, HEAD)
    with pytest.raises(ConfigError, match="has no 'itkit.EfficientNett'.*Encoders of itkit and timm: 'itkit.<name>'"):
        MMSegBackboneHead({"type": "itkit.EfficientNett"}, HEAD)
    with pytest.raises(ConfigError, match="decode_head of MMSegBackboneHead must be a module or a config"):
        MMSegBackboneHead(RESNET, "FCNHead")


def test_a_head_that_returns_no_logits_is_refused():
    class Masks(nn.Module):
        def forward(self, features):
            return {"masks": features}

    with pytest.raises(ConfigError, match="Masks does not return logits"):
        MMSegBackboneHead(nn.Identity(), Masks())(torch.zeros(1, 1, 4, 4))
