"""U-Net, Attention U-Net, U-Net++, ViT, ResNet and DeepLabV3+ come from libraries: each works from a config, and learns."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from itkit.models.building import build_module
from itkit.registry import MODELS

CONFIGS = Path(__file__).resolve().parents[2] / "configs/0.3.Zoo2D"
NETWORKS = ("unet", "attention_unet", "unet_plus_plus", "vit", "deeplabv3plus", "resnet")
CLASSES = 3


def network_config(name, channels):
    """Return the network of a config in the zoo's folder, for images of `channels` channels and 3 classes."""
    config = copy.deepcopy(Config.fromfile(CONFIGS / f"{name}.py").model.backbone.to_dict())
    inner = config.get("backbone", config)
    inner["in_channels"] = channels
    for key in ("num_classes", "out_channels"):
        for part in (config, config.get("decode_head", {})):
            if key in part:
                part[key] = CLASSES
    return config


def main_logits(answer):
    while not isinstance(answer, torch.Tensor):
        answer = answer[0]
    return answer


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_learns_a_picture_by_heart(name, channels):
    torch.manual_seed(0)
    net = build_module(network_config(name, channels), "test").train()
    target = torch.randint(0, CLASSES, (2, 1, 8, 8)).repeat_interleave(8, 2).repeat_interleave(8, 3)[:, 0]
    image = (target[:, None] + 0.1 * torch.randn(2, channels, 64, 64)).float()
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3)
    losses = []
    for _ in range(12):
        logits = main_logits(net(image))
        assert logits.shape == (2, CLASSES, 64, 64)
        loss = torch.nn.functional.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < 0.8 * losses[0]


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("UNet", dict(out_channels=2, channels=(4, 8), strides=(2,))),
        ("AttentionUnet", dict(out_channels=2, channels=(4, 8), strides=(2,))),
        ("BasicUNetPlusPlus", dict(out_channels=2, features=(4, 4, 8, 8, 16, 4))),
        ("SegResNet", dict(out_channels=2, init_filters=8)),
        ("ViT", dict(img_size=(32,) * 3, patch_size=(16,) * 3, hidden_size=12, mlp_dim=12, num_layers=1, num_heads=3)),
    ],
)
def test_a_name_with_monai_in_front_is_monai_s_class_in_3d(name, arguments):
    from monai.networks import nets

    arguments = dict(spatial_dims=3, in_channels=2, **arguments)
    torch.manual_seed(0)
    by_name = MODELS.build(dict(type=f"monai.{name}", **arguments)).eval()
    torch.manual_seed(0)
    by_class = getattr(nets, name)(**arguments).eval()
    assert type(by_name) is getattr(nets, name)
    x = torch.randn(1, 2, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(main_logits(by_name(x)), main_logits(by_class(x)))


def test_names_in_a_config_give_the_parts_they_say():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        deeplab, resnet = (build_module(network_config(name, 1), "test") for name in ("deeplabv3plus", "resnet"))
    assert type(deeplab.decode_head).__name__ == "DepthwiseSeparableASPPHead"
    assert type(deeplab.decode_head).__module__.startswith("mmseg.")
    assert type(resnet.encoder).__module__.startswith("mmseg.")
    stages = [x.shape[2] for x in deeplab.eval().backbone(torch.zeros(1, 1, 64, 64))]
    assert stages == [16, 8, 8, 8], "dilated, not strided: an output stride of 8"
