"""DSNet: two branches at an eighth of the size, one with atrous convolutions, fused at several scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError
from itkit.models.zoo import Configuration, NetworkCard
from itkit.ops.image_size import check_image
from itkit.registry import MODELS

HEADS = {
    # name: widths of pyramid, head and quarter-size skip, in parts of `width`; dilations of the blocks of layer4
    "s64": (4, 2, 1, (3, 5)),
    "s128": (4, 4, 1, (3, 5)),
    "s256": (8, 8, 2, (3, 5)),
    "m": (4, 4, 1, (3, 5, 5)),
}
PYRAMID_DILATIONS = (6, 12, 18, 24)
FUSION_GRIDS = (4, 8, 16)


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions, after which a ReLU may be left to the next stage."""

    def __init__(self, before: int, width: int, stride: int = 1, last_relu: bool = True):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        if stride > 1 or before != width:
            self.downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        else:
            self.downsample = nn.Identity()
        self.last_relu = last_relu

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Y / stride, X / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.downsample(x)
        return F.relu(y) if self.last_relu else y


class Bottleneck(nn.Module):
    """Residual bottleneck to half the width, the middle convolution dilated; it ends without a ReLU."""

    def __init__(self, width: int, dilation: int = 1):
        super().__init__()
        middle = width // 2
        self.conv1, self.bn1 = nn.Conv2d(width, middle, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3, self.bn3 = nn.Conv2d(middle, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return self.bn3(self.conv3(y)) + x


class DilatedConv(nn.Module):
    """A dilated 3x3 convolution, batch norm and ReLU."""

    def __init__(self, before: int, width: int, dilation: int):
        super().__init__()
        self.conv = nn.Conv2d(before, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Y, X)."""
        return F.relu(self.bn(self.conv(x)))


class CascadeBlock(nn.Module):
    """Multi-scale fusion atrous convolutional block (MFACB): three dilated convolutions in a row, all of them seen."""

    def __init__(self, before: int, width: int, dilation: int):
        super().__init__()
        self.conv_list = nn.ModuleList(DilatedConv(before, before, dilation) for _ in range(3))
        self.process1 = _pointwise(before, width)
        self.process2 = _pointwise(3 * before, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Y, X)."""
        return self.process2(torch.cat(_cascade(self.conv_list, x), 1)) + self.process1(x)


class CascadePyramid(nn.Module):
    """Serial-parallel atrous spatial pyramid pooling (SPASPP): dilated convolutions in a row, and the mean of the image."""

    def __init__(self, before: int, width: int):
        super().__init__()
        self.conv_list = nn.ModuleList(
            DilatedConv(before if i == 0 else width, width, dilation) for i, dilation in enumerate(PYRAMID_DILATIONS)
        )
        self.pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_pointwise(before, width))
        self.process1 = _pointwise(before, width)
        self.process2 = _pointwise((len(PYRAMID_DILATIONS) + 1) * width, width)
        self.process3 = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Y, X)."""
        whole = self.pooling(x).expand(-1, -1, *x.shape[2:])
        seen = self.process2(torch.cat([*_cascade(self.conv_list, x), whole], 1))
        return self.process3(seen + self.process1(x))


class ScaleFusion(nn.Module):
    """Multi-scale attention fusion (MSAF) of two maps (N, width, Y, X): weights from their sum, seen at five scales."""

    def __init__(self, width: int, reduction: int = 4):
        super().__init__()
        self.local_att = nn.Sequential(*_squeeze(width, reduction))
        for place, grid in enumerate(FUSION_GRIDS, start=1):
            self.add_module(f"context{place}", nn.Sequential(nn.AdaptiveAvgPool2d(grid), *_squeeze(width, reduction)))
        self.global_att = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_squeeze(width, reduction))

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        """Return twice the mean of both maps, weighted at every place and channel."""
        both = spatial + context
        total = self.local_att(both) + self.global_att(both)
        for branch in (self.context1, self.context2, self.context3):
            total = total + F.interpolate(branch(both), both.shape[2:], mode="nearest")
        weight = torch.sigmoid(total)
        return 2 * spatial * weight + 2 * context * (1 - weight)


class SegmentationHead(nn.Module):
    """A 3x3 convolution and a classifier, each after a ReLU; the result is enlarged to the size of the image."""

    def __init__(self, before: int, middle: int, num_classes: int, first_norm: bool = True):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before) if first_norm else nn.Identity()
        self.conv1, self.bn2 = nn.Conv2d(before, middle, 3, padding=1, bias=False), nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, num_classes, 1)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Return logits (N, num_classes, *size)."""
        logits = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)


@MODELS.register_module()
class DSNet(nn.Module):
    """DSNet of 2024, dual-branch segmentation with atrous convolutions: images (N, C, Y, X) to logits (N, K, Y, X).

    Shape:
        Input (N, in_channels, Y, X) of any size. Output (N, num_classes, Y, X); in training with
        `deep_supervision` a list of three such maps: the main one, that after the first fusion, that after the second.
        With `original_outputs` the order of the authors in training and evaluation: first fusion, main, second fusion.

    Args:
        in_channels: C.
        num_classes: K.
        width: Channels at a quarter of the size; the deepest maps have 8 times as many. 32 in DSNet, 64 in DSNet-Base.
        stem_blocks: Residual blocks of each of the first two stages.
        spatial_blocks: Residual blocks of each stage of the spatial branch. 2 in DSNet, 3 in DSNet-Base.
        head: Widths of pyramid and head: ``"s64"``, ``"s128"``, ``"s256"``, or ``"m"`` of DSNet-Base.
        deep_supervision: Two further heads, used in training.
        original_outputs: All outputs always, in the authors' order.

    Raises:
        ConfigError: If an argument is impossible, or an input has other channels.

    Source: Guo et al., DSNet: A Novel Way to Use Atrous Convolutions in Semantic Segmentation, arXiv 2406.03702. State
    dicts of the authors' code load when the prefix ``model.`` (or ``module.``) is taken off.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 19,
        width: int = 32,
        stem_blocks: int = 2,
        spatial_blocks: int = 2,
        head: str = "s128",
        deep_supervision: bool = False,
        original_outputs: bool = False,
    ):
        super().__init__()
        if head not in HEADS:
            raise ConfigError(
                f"DSNet: head must be one of {', '.join(HEADS)}, found {head!r}.{did_you_mean(head, HEADS)}"
            )
        if width < 1 or stem_blocks < 1 or spatial_blocks < 1:
            raise ConfigError(
                f"DSNet: width, stem_blocks and spatial_blocks must be at least 1, found {width}, {stem_blocks} and "
                f"{spatial_blocks}."
            )
        c, (pyramid, last, skip, dilations) = width, HEADS[head]
        self.in_channels, self.num_classes = in_channels, num_classes
        self.deep_supervision, self.original_outputs = deep_supervision, original_outputs
        self.conv1 = nn.Sequential(
            *(nn.Conv2d(in_channels, c, 3, 2, 1), nn.BatchNorm2d(c), nn.ReLU()),
            *(nn.Conv2d(c, c, 3, 2, 1), nn.BatchNorm2d(c), nn.ReLU()),
        )
        self.layer1 = _stage(c, c, stem_blocks)
        self.layer1_a = _stage(c, skip * c, 1)
        self.layer2 = _stage(c, 2 * c, stem_blocks, stride=2)
        self.layer3 = _cascades(2 * c, 4 * c, (2, 2, 3))
        self.layer4 = _cascades(4 * c, 8 * c, dilations)
        self.layer5 = nn.Sequential(Bottleneck(8 * c, dilation=5))
        self.layer3_ = _stage(2 * c, 4 * c, spatial_blocks)
        self.layer4_ = _stage(4 * c, 4 * c, spatial_blocks)
        self.layer5_ = nn.Sequential(Bottleneck(4 * c))
        for stage, before in ((3, 4 * c), (4, 8 * c), (5, 8 * c)):
            squeeze = nn.Sequential(nn.Conv2d(before, 4 * c, 1, bias=False), nn.BatchNorm2d(4 * c))
            self.add_module(f"compression{stage}", squeeze)
            self.add_module(f"aff{stage - 2}", ScaleFusion(4 * c))
        self.spp = CascadePyramid(4 * c, pyramid * c)
        self.up8 = nn.Sequential(nn.Conv2d(pyramid * c, last * c, 3, padding=1, bias=False), nn.BatchNorm2d(last * c))
        self.lastlayer = SegmentationHead((last + skip) * c, last * c, num_classes, first_norm=False)
        if deep_supervision:
            self.seghead_p = SegmentationHead(4 * c, 4 * c, num_classes)
            self.seghead_d = SegmentationHead(4 * c, c, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, inputs: Tensor) -> Tensor | list[Tensor]:
        """Return logits (N, K, Y, X), or a list of them as the class says.

        Args:
            inputs: (N, C, Y, X).
        """
        check_image("DSNet", inputs, self.in_channels)
        size = inputs.shape[2:]
        x = self.layer1(self.conv1(inputs))
        fine = self.layer1_a(x)
        x = F.relu(self.layer2(F.relu(x)))
        spatial, context = self.layer3_(x), self.layer3(x)
        spatial = first = self.aff1(spatial, self.compression3(context))
        spatial, context = self.layer4_(F.relu(spatial)), self.layer4(F.relu(context))
        spatial = second = self.aff2(spatial, self.compression4(context))
        spatial, context = self.layer5_(F.relu(spatial)), self.layer5(F.relu(context))
        x = self.up8(self.spp(F.relu(self.aff3(spatial, self.compression5(F.relu(context))))))
        x = F.interpolate(x, fine.shape[2:], mode="bilinear", align_corners=False)
        main = self.lastlayer(torch.cat([x, fine], 1), size)
        if not self.deep_supervision or not (self.training or self.original_outputs):
            return main
        early, late = self.seghead_p(first, size), self.seghead_d(second, size)
        return [early, main, late] if self.original_outputs else [main, early, late]


def _stage(before: int, width: int, blocks: int, stride: int = 1) -> nn.Sequential:
    """Return residual blocks, the last without ReLU unless it is the only one."""
    first = BasicBlock(before, width, stride)
    return nn.Sequential(first, *(BasicBlock(width, width, last_relu=i < blocks) for i in range(2, blocks + 1)))


def _cascades(before: int, width: int, dilations: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(*(CascadeBlock(before if i == 0 else width, width, d) for i, d in enumerate(dilations)))


def _cascade(convolutions: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """Return what each convolution makes of the one before."""
    answers = []
    for convolution in convolutions:
        x = convolution(x)
        answers.append(x)
    return answers


def _pointwise(before: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def _squeeze(width: int, reduction: int) -> list[nn.Module]:
    """Return the layers of one scale's weights: down to a part of the channels and up again."""
    middle = width // reduction
    return [
        *(nn.Conv2d(width, middle, 1), nn.BatchNorm2d(middle), nn.ReLU()),
        *(nn.Conv2d(middle, width, 1), nn.BatchNorm2d(width)),
    ]


def _small(num_classes: int, **changes: object) -> dict:
    return {"num_classes": num_classes, "width": 8, "original_outputs": True, **changes}


def _published(num_classes: int, head: str, supervised: bool) -> dict:
    base = {"width": 64, "spatial_blocks": 3} if head == "m" else {"width": 32, "spatial_blocks": 2}
    heads = {"head": head, "deep_supervision": supervised, "original_outputs": True}
    return {"in_channels": 3, "num_classes": num_classes, **base, **heads}


CARD = NetworkCard(
    name="DSNet",
    factory="itkit.models.dsnet:DSNet",
    title="DSNet (2024)",
    paper="Guo et al., 2024, arXiv 2406.03702",
    licence="MIT (takaniwa/DSNet); ours is code of its own",
    dims=(2,),
    configurations={
        "DSNet_head128_cityscapes": Configuration(_published(19, "s128", True), 6_943_769, (3, 1024, 2048), 248.109),
        "DSNet_head128_cityscapes_noaux": Configuration(
            _published(19, "s128", False), 6_755_539, (3, 1024, 2048), 241.969
        ),
        "DSNet_head256_ade20k": Configuration(_published(150, "s256", True), 10_233_730, (3, 512, 512), 52.1307),
        "DSNet_head256_ade20k_noaux": Configuration(_published(150, "s256", False), 10_024_278, (3, 512, 512), 51.2774),
        "DSNet_head64_bdd": Configuration(_published(19, "s64", True), 6_739_545, (3, 720, 1280), 100.473),
        "DSNet_head64_bdd_noaux": Configuration(_published(19, "s64", False), 6_551_315, (3, 720, 1280), 97.7753),
        "DSNet_Base_cityscapes": Configuration(_published(19, "m", True), 38_206_457, (3, 1024, 2048), 1334.29),
        "DSNet_Base_cityscapes_noaux": Configuration(_published(19, "m", False), 37_461_395, (3, 1024, 2048), 1309.93),
        "DSNet_Base_ade20k": Configuration(_published(150, "m", True), 38_282_306, (3, 512, 512), 167.536),
        "DSNet_Base_ade20k_noaux": Configuration(_published(150, "m", False), 37_495_062, (3, 512, 512), 164.32),
        "DSNet_Base_bdd_noaux": Configuration(_published(19, "m", False), 37_461_395, (3, 720, 1280), 575.672),
        "DSNet_Base_camvid": Configuration(_published(11, "m", True), 38_201_825, (3, 720, 960), 439.674),
        "DSNet_Base_camvid_noaux": Configuration(_published(11, "m", False), 37_459_339, (3, 720, 960), 431.674),
        "DSNet_head128_mapillary": Configuration(_published(66, "s128", True), 6_957_446, (3, 768, 1536), 140.147),
        "DSNet_small_s128": Configuration(_small(4, deep_supervision=True), 438_668),
        "DSNet_small_s64": Configuration(_small(3, head="s64", deep_supervision=True), 425_809),
        "DSNet_small_s256_noaux": Configuration(_small(2, head="s256"), 629_362),
        "DSNet_small_m": Configuration(_small(4, head="m", spatial_blocks=3, deep_supervision=True), 603_404),
    },
    small={"in_channels": 1, "num_classes": 2, "width": 8, "deep_supervision": True},
    small_size=(45, 62),
    outputs=3,
    least_batch=2,
    notes=(
        "Not the DSNet of other toolkits: this is the segmentation network of arXiv 2406.03702.",
        "Sizes are free here; the original takes those with an even ceil(size / 4), and answers the same on them.",
        "Batch normalisation of maps of one pixel: training needs at least two images in a batch.",
    ),
)
