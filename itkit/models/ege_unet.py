"""EGE-UNet: a U-Net of some 50 thousand parameters that mixes in groups of channels, for lesions of the skin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itkit.errors import ConfigError
from itkit.models.zoo import Configuration, NetworkCard
from itkit.ops.image_size import check_image
from itkit.registry import MODELS

GROUPS = 4
DILATIONS = (1, 2, 5, 7)
DIVISOR = 32
GRID = 8
"""Edge length of the learned maps that the attention stretches to the size of its input."""


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of (N, C, Y, X), with weight and bias (C,)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` normalised at every pixel."""
        return F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)


class HadamardAttention(nn.Module):
    """Grouped multi-axis Hadamard product attention (GHPA): (N, in_width, Y, X) to (N, out_width, Y, X).

    A quarter of the channels is multiplied by a learned map over the plane, one by a map over channel and Y, one by a map
    over channel and X; the last goes through a depthwise convolution.
    """

    def __init__(self, in_width: int, out_width: int):
        super().__init__()
        width = in_width // GROUPS
        self.params_xy = nn.Parameter(torch.ones(1, width, GRID, GRID))
        self.params_zx = nn.Parameter(torch.ones(1, 1, width, GRID))
        self.params_zy = nn.Parameter(torch.ones(1, 1, width, GRID))
        self.conv_xy = _depthwise_then_mix(nn.Conv2d, width, width)
        self.conv_zx = _depthwise_then_mix(nn.Conv1d, width, width)
        self.conv_zy = _depthwise_then_mix(nn.Conv1d, width, width)
        self.dw = nn.Sequential(
            nn.Conv2d(width, width, 1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1, groups=width)
        )
        self.norm1, self.norm2 = ChannelNorm(in_width), ChannelNorm(in_width)
        self.ldw = _depthwise_then_mix(nn.Conv2d, in_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_width, Y, X) for `x` (N, in_width, Y, X)."""
        height, width = x.shape[2:]
        plane, column, row, rest = self.norm1(x).chunk(GROUPS, 1)
        over_plane = F.interpolate(self.params_xy, (height, width), mode="bilinear", align_corners=True)
        over_column = F.interpolate(self.params_zx[0], height, mode="linear", align_corners=True)
        over_row = F.interpolate(self.params_zy[0], width, mode="linear", align_corners=True)
        mixed = [
            plane * self.conv_xy(over_plane),
            column * self.conv_zx(over_column)[:, :, :, None],
            row * self.conv_zy(over_row)[:, :, None, :],
            self.dw(rest),
        ]
        return self.ldw(self.norm2(torch.cat(mixed, 1)))


class AggregationBridge(nn.Module):
    """Group aggregation bridge (GAB): joins a deep map, a skip and the prediction of the deep stage.

    Each quarter of the channels of both maps meets the prediction in a depthwise convolution with a dilation of its own.
    """

    def __init__(self, deep_width: int, skip_width: int):
        super().__init__()
        self.pre_project = nn.Conv2d(deep_width, skip_width, 1)
        width = 2 * (skip_width // GROUPS) + 1
        for group, dilation in enumerate(DILATIONS):
            conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=width)
            self.add_module(f"g{group}", nn.Sequential(ChannelNorm(width), conv))
        self.tail_conv = nn.Sequential(ChannelNorm(GROUPS * width), nn.Conv2d(GROUPS * width, skip_width, 1))

    def forward(self, deep: Tensor, skip: Tensor, mask: Tensor) -> Tensor:
        """Return (N, skip_width, Y, X).

        Args:
            deep: (N, deep_width, ., .), smaller than the skip or as large.
            skip: (N, skip_width, Y, X).
            mask: Prediction (N, 1, Y, X) as logits.
        """
        deep = F.interpolate(self.pre_project(deep), skip.shape[2:], mode="bilinear", align_corners=True)
        pairs = zip(deep.chunk(GROUPS, 1), skip.chunk(GROUPS, 1), strict=True)
        joined = [getattr(self, f"g{i}")(torch.cat([a, b, mask], 1)) for i, (a, b) in enumerate(pairs)]
        return self.tail_conv(torch.cat(joined, 1))


@MODELS.register_module()
class EGEUNet(nn.Module):
    """EGE-UNet, efficient group-enhanced U-Net: images (N, C, Y, X) to logits (N, K, Y, X).

    Shape:
        Input (N, in_channels, Y, X), Y and X multiples of 32. Output (N, num_classes, Y, X). In training with one class
        and `deep_supervision` a list of six such maps, the main one first, then from the finest stage to the deepest. With
        several classes the main output alone: the stages predict one foreground channel, which the bridges still use.
        With ``logits=False`` always the original's answer: a tuple of five foreground maps (N, 1, Y, X), the deepest stage
        first, then the main map, all after a sigmoid.

    Args:
        in_channels: C.
        num_classes: K.
        widths: Channels of the six stages, multiples of 4.
        bridge: Skips pass a group aggregation bridge; False adds them as they are.
        deep_supervision: Every decoder stage but the last predicts a foreground mask; bridges need it.
        logits: Return logits; False: probabilities in the order of the original.

    Raises:
        ConfigError: If widths do not fit, bridges lack their masks, or an input is no multiple of 32.

    Source: Ruan et al., EGE-UNet: an Efficient Group Enhanced UNet for Skin Lesion Segmentation, MICCAI 2023,
    arXiv 2307.08473. State dicts of the authors' code load as they are.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1,
        widths: Sequence[int] = (8, 16, 24, 32, 48, 64),
        bridge: bool = True,
        deep_supervision: bool = True,
        logits: bool = True,
    ):
        super().__init__()
        widths = list(widths)
        if len(widths) != 6 or any(width < GROUPS or width % GROUPS for width in widths):
            raise ConfigError(f"EGEUNet: widths must be six multiples of {GROUPS}, found {widths}.")
        if bridge and not deep_supervision:
            raise ConfigError(
                "EGEUNet: the bridges join the masks of deep_supervision; set bridge=False too, or keep both."
            )
        self.in_channels, self.num_classes = in_channels, num_classes
        self.bridge, self.deep_supervision, self.logits = bridge, deep_supervision, logits
        for stage, (before, width) in enumerate(zip([in_channels, *widths], widths, strict=False), start=1):
            conv = nn.Conv2d(before, width, 3, padding=1) if stage <= 3 else HadamardAttention(before, width)
            self.add_module(f"encoder{stage}", nn.Sequential(conv))
            if stage < 6:
                self.add_module(f"ebn{stage}", nn.GroupNorm(GROUPS, width))
        backwards = widths[::-1]
        for stage, (before, width) in enumerate(zip(backwards, backwards[1:], strict=False), start=1):
            if bridge:
                self.add_module(f"GAB{6 - stage}", AggregationBridge(before, width))
            if deep_supervision:
                self.add_module(f"gt_conv{stage}", nn.Sequential(nn.Conv2d(width, 1, 1)))
            up = HadamardAttention(before, width) if stage <= 3 else nn.Conv2d(before, width, 3, padding=1)
            self.add_module(f"decoder{stage}", nn.Sequential(up))
            self.add_module(f"dbn{stage}", nn.GroupNorm(GROUPS, width))
        self.final = nn.Conv2d(widths[0], num_classes, 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                nn.init.zeros_(module.bias)

    def forward(self, inputs: Tensor) -> Tensor | list[Tensor] | tuple[Tensor, ...]:
        """Return logits (N, K, Y, X), or more of them as the class says.

        Args:
            inputs: (N, C, Y, X).
        """
        check_image("EGEUNet", inputs, self.in_channels, divisor=DIVISOR)
        x, skips = inputs, []
        for stage in range(1, 6):
            x = self.get_submodule(f"ebn{stage}")(self.get_submodule(f"encoder{stage}")(x))
            x = F.gelu(F.max_pool2d(x, 2))
            skips.append(x)
        x = deep = F.gelu(self.encoder6(x))
        masks = []
        for stage in range(1, 6):
            x = self.get_submodule(f"dbn{stage}")(self.get_submodule(f"decoder{stage}")(x))
            x = F.gelu(_enlarged(x, 2 if stage > 1 else 1))
            skip = skips[5 - stage]
            if self.deep_supervision:
                mask = self.get_submodule(f"gt_conv{stage}")(x)
                masks.append(_enlarged(mask, DIVISOR >> (stage - 1)))
            if self.bridge:
                deep = skip = self.get_submodule(f"GAB{6 - stage}")(deep, skip, mask)
            x = x + skip
        main = _enlarged(self.final(x), 2)
        if not self.logits:
            answers = tuple(torch.sigmoid(answer) for answer in (*masks, main))
            return answers if masks else answers[0]
        return [main, *masks[::-1]] if masks and self.training and self.num_classes == 1 else main


def _depthwise_then_mix(conv: type[nn.Module], in_width: int, out_width: int) -> nn.Sequential:
    return nn.Sequential(
        conv(in_width, in_width, 3, padding=1, groups=in_width), nn.GELU(), conv(in_width, out_width, 1)
    )


def _enlarged(x: Tensor, factor: int) -> Tensor:
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)


CARD = NetworkCard(
    name="EGEUNet",
    factory="itkit.models.ege_unet:EGEUNet",
    title="EGE-UNet",
    paper="Ruan et al., MICCAI 2023, arXiv 2307.08473",
    licence="see the original's repository (JCruan519/EGE-UNet); ours is code of its own",
    dims=(2,),
    configurations={
        "EGE_UNet_isic": Configuration(
            {"in_channels": 3, "num_classes": 1, "logits": False}, 53_374, (3, 256, 256), 0.0720963
        ),
        "EGE_UNet_small": Configuration(
            {"in_channels": 1, "num_classes": 2, "widths": (8, 8, 12, 16, 24, 32), "logits": False}, 18_391
        ),
    },
    small={"in_channels": 1, "num_classes": 2, "widths": (8, 8, 12, 16, 24, 32)},
    small_size=(32, 64),
    divisor=DIVISOR,
    sigmoid=True,
    notes=(
        "The stages predict one foreground channel whatever num_classes is; with several classes only the main output is "
        "returned for training.",
    ),
)
