"""DconnNet: predicts for every pixel to which of its eight neighbours it is connected, and segments by their votes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itkit.errors import ConfigError
from itkit.models.zoo import Configuration, NetworkCard
from itkit.ops.image_size import check_image
from itkit.registry import MODELS

DIVISOR = 32
DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""Steps (Y, X) to the neighbours, in the order of the channels; the opposite of direction i is 7 - i."""
MANY_CHANNELS = 32
"""From this many directional channels on, the prior is widened at once to the width of the deepest map."""


def connectivity_logits(connectivity: Tensor) -> Tensor:
    """Return the logits of the classes by bilateral voting.

    A pixel and its neighbour agree with the product of the probabilities that each gives to the other; the probability of a
    class is the mean over the neighbours within the image.

    Args:
        connectivity: Logits (N, 8 * K, Y, X); of every class eight channels in the order of `DIRECTIONS`.

    Returns:
        Log-odds (N, K, Y, X), float32 or float64.
    """
    n, channels, height, width = connectivity.shape
    maps = connectivity.reshape(n, channels // 8, 8, height, width)
    if maps.dtype not in (torch.float32, torch.float64):
        maps = maps.float()
    yes, no = F.pad(maps.sigmoid(), (1, 1, 1, 1)), F.pad((-maps).sigmoid(), (1, 1, 1, 1))
    inside = F.pad(torch.ones_like(maps[:1, :1, :1]), (1, 1, 1, 1))
    agree, differ = 0, 0
    for i, (dy, dx) in enumerate(DIRECTIONS):
        rows, columns = slice(1 + dy, 1 + dy + height), slice(1 + dx, 1 + dx + width)
        mine, mine_not = yes[:, :, i, 1:-1, 1:-1], no[:, :, i, 1:-1, 1:-1]
        agree = agree + mine * yes[:, :, 7 - i, rows, columns]
        differ = differ + inside[:, :, 0, rows, columns] * (mine_not + mine * no[:, :, 7 - i, rows, columns])
    tiny = torch.finfo(maps.dtype).tiny
    return agree.clamp_min(tiny).log() - differ.clamp_min(tiny).log()


class ResidualBlock(nn.Module):
    """Basic block of a ResNet: (N, before, Y, X) to (N, width, Y / stride, X / stride)."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.downsample = nn.Identity()
        if stride > 1 or before != width:
            self.downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's answer, after a ReLU."""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.downsample(x))


class ResNet(nn.Module):
    """The encoder, keys as in common ImageNet checkpoints; its classifier is there for them alone."""

    def __init__(self, in_channels: int, width: int, blocks: Sequence[int]):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        before = width
        for stage, count in enumerate(blocks, start=1):
            after, stride = width << (stage - 1), 1 if stage == 1 else 2
            layers = [ResidualBlock(before if i == 0 else after, after, stride if i == 0 else 1) for i in range(count)]
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
            before = after
        self.fc = nn.Linear(before, 1000)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size."""
        maps = [F.relu(self.bn1(self.conv1(x)))]
        x = F.max_pool2d(maps[0], 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


class PositionAttention(nn.Module):
    """Self-attention over the pixels of a map, added with a learned weight that begins at 0."""

    def __init__(self, width: int):
        super().__init__()
        self.query_conv, self.key_conv = nn.Conv2d(width, width // 8, 1), nn.Conv2d(width, width // 8, 1)
        self.value_conv = nn.Conv2d(width, width, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        queries, keys, values = (conv(x).flatten(2) for conv in (self.query_conv, self.key_conv, self.value_conv))
        weights = (queries.transpose(1, 2) @ keys).softmax(-1)
        return self.gamma * (values @ weights.transpose(1, 2)).reshape(x.shape) + x


class ChannelAttention(nn.Module):
    """Attention over the channels of a map, the least alike counting most; added with a learned weight."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        rows = x.flatten(2)
        alike = rows @ rows.transpose(1, 2)
        weights = (alike.amax(-1, keepdim=True) - alike).softmax(-1)
        return self.gamma * (weights @ rows).reshape(x.shape) + x


class DirectionHead(nn.Module):
    """Both attentions over one slice of the channels, weighted by the prior of the directions."""

    def __init__(self, width: int):
        super().__init__()
        self.conv5a, self.conv5c = _conv_norm_relu(width, width, 3), _conv_norm_relu(width, width, 3)
        self.sa, self.sc = PositionAttention(width), ChannelAttention()
        self.conv51, self.conv52 = _conv_norm_relu(width, width, 3), _conv_norm_relu(width, width, 3)
        self.conv8 = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor, prior: Tensor) -> Tensor:
        """Return a map of the shape of `x` (N, width, Y, X) for a `prior` (N, width, 1, 1)."""
        both = self.conv51(self.sa(self.conv5a(x))) + self.conv52(self.sc(self.conv5c(x)))
        return self.conv8(both * prior.sigmoid())


class DirectionExcitation(nn.Module):
    """Sub-path direction excitation (SDE): eight heads, each on an eighth of the channels and of the prior."""

    def __init__(self, width: int, directional: int):
        super().__init__()
        for i in range(1, 9):
            self.add_module(f"att{i}", DirectionHead(width // 8))
        self.final_conv = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(width, width, 1))
        middle = 8 * directional if directional < MANY_CHANNELS else width
        self.reencoder = nn.Sequential(nn.Conv2d(directional, middle, 1), nn.ReLU(), nn.Conv2d(middle, width, 1))

    def forward(self, x: Tensor, prior: Tensor) -> Tensor:
        """Return a map of the shape of `x` for a `prior` (N, directional, 1, 1)."""
        parts = zip(x.chunk(8, 1), self.reencoder(prior).chunk(8, 1), strict=True)
        heads = [self.get_submodule(f"att{i}")(*part) for i, part in enumerate(parts, start=1)]
        return self.final_conv(torch.cat(heads, 1)) + x


class SpaceBlock(nn.Module):
    """Weights every pixel by its likeness to the whole scene."""

    def __init__(self, scene_width: int, width: int):
        super().__init__()
        self.scene_encoder = nn.Sequential(nn.Conv2d(scene_width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1))
        self.content_encoders = _pointwise_norm_relu(width)
        self.feature_reencoders = _pointwise_norm_relu(width)

    def forward(self, scene: Tensor, x: Tensor) -> Tensor:
        """Return a map of the shape of `x` (N, width, Y, X) for a `scene` (N, scene_width, 1, 1)."""
        likeness = (self.scene_encoder(scene) * self.content_encoders(x)).sum(1, keepdim=True)
        return likeness.sigmoid() * self.feature_reencoders(x)


class ConvNorm(nn.Module):
    """A convolution without bias and batch norm."""

    def __init__(self, before: int, width: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(before, width, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Y, X)."""
        return self.bn(self.conv(x))


class UpBlock(nn.Module):
    """Brings a map to the width and the size of the next finer one; the deepest skips its first convolution."""

    def __init__(self, before: int, width: int, deepest: bool = False):
        super().__init__()
        self.conv_3x3, self.conv_1x1 = ConvNorm(before, before, 3), ConvNorm(before, width, 1)
        self.deepest = deepest

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, 2 * Y, 2 * X)."""
        if not self.deepest:
            x = F.relu(self.conv_3x3(x))
        return F.relu(self.conv_1x1(_doubled(x)))


class MeanDecoder(nn.Module):
    """Brings maps of several sizes to the finest one and averages them."""

    def __init__(self, befores: Sequence[int], width: int):
        super().__init__()
        self.blocks = nn.ModuleList()
        for doublings, before in enumerate(befores):
            widths = [before] + [width] * max(1, doublings)
            layers = [_conv_norm_relu(a, b, 3) for a, b in zip(widths, widths[1:], strict=False)]
            self.blocks.append(nn.Sequential(*layers))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return (N, width, Y, X) for maps at 1, 1/2, 1/4 and 1/8 of that size."""
        total = 0
        for doublings, (block, x) in enumerate(zip(self.blocks, maps, strict=True)):
            for layer in block:
                x = _doubled(layer(x)) if doublings else layer(x)
            total = total + x
        return total / len(maps)


@MODELS.register_module()
class DconnNet(nn.Module):
    """DconnNet, directional connectivity network: images (N, C, Y, X) to logits (N, K, Y, X).

    Shape:
        Input (N, in_channels, Y, X), Y and X multiples of 32. Output (N, num_classes, Y, X): the votes of neighbours, see
        `connectivity_logits`; in training a list of two, the second from the directional prior at 1/32. With
        ``connectivity=True`` the original's answer: a tuple of two maps (N, 8 * num_classes, Y, X), the prediction and the
        prior, before any sigmoid.

    Args:
        in_channels: C.
        num_classes: K.
        width: Channels of the first stage, a multiple of 8; 64 in the original.
        blocks: Residual blocks of the four stages of the encoder; (3, 4, 6, 3) is a ResNet-34, (2, 2, 2, 2) a ResNet-18.
        connectivity: Return the connectivity of the neighbours instead of classes.

    Raises:
        ConfigError: If an argument is impossible, or an input is no multiple of 32.

    Source: Yang and Farsiu, Directional Connectivity-based Segmentation of Medical Images, CVPR 2023, arXiv 2304.00145.
    State dicts of the authors' code load as they are.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1,
        width: int = 64,
        blocks: Sequence[int] = (3, 4, 6, 3),
        connectivity: bool = False,
    ):
        super().__init__()
        if width < 8 or width % 8:
            raise ConfigError(f"DconnNet: width must be a multiple of 8, found {width}.")
        if len(blocks) != 4 or min(blocks) < 1:
            raise ConfigError(f"DconnNet: blocks must be four positive numbers, found {tuple(blocks)}.")
        self.in_channels, self.num_classes, self.connectivity = in_channels, num_classes, connectivity
        w, directional = width, 8 * num_classes
        self.backbone = ResNet(in_channels, w, blocks)
        self.sde_module = DirectionExcitation(8 * w, directional)
        self.fb5 = UpBlock(8 * w, 4 * w, deepest=True)
        self.fb4, self.fb3, self.fb2 = UpBlock(4 * w, 2 * w), UpBlock(2 * w, w), UpBlock(w, w)
        self.sb1, self.sb2 = SpaceBlock(8 * w, 8 * w), SpaceBlock(8 * w, 4 * w)
        self.sb3, self.sb4 = SpaceBlock(4 * w, 2 * w), SpaceBlock(2 * w, w)
        self.final_decoder = MeanDecoder((w, w, 2 * w, 4 * w), w // 2)
        self.cls_pred_conv = nn.Conv2d(w, w // 2, 3, padding=1)  # in the original's checkpoints, never used
        self.cls_pred_conv_2 = nn.Conv2d(w // 2, directional, 1)
        self.channel_mapping = nn.Sequential(
            nn.Conv2d(8 * w, directional, 3, padding=1), nn.BatchNorm2d(directional), nn.ReLU()
        )
        self.direc_reencode = nn.Sequential(nn.Conv2d(directional, directional, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, inputs: Tensor) -> Tensor | list[Tensor] | tuple[Tensor, Tensor]:
        """Return logits (N, K, Y, X), or two maps as the class says.

        Args:
            inputs: (N, C, Y, X).
        """
        check_image("DconnNet", inputs, self.in_channels, divisor=DIVISOR)
        half, c2, c3, c4, c5 = self.backbone(inputs)
        prior = F.interpolate(self.channel_mapping(c5), inputs.shape[2:], mode="bilinear", align_corners=True)
        prior = self.direc_reencode(prior)
        c5 = self.sde_module(c5, _mean(prior))
        r5 = self.sb1(_mean(c5), c5)
        d4 = F.relu(self.fb5(r5) + c4)
        r4 = self.sb2(_mean(r5), d4)
        d3 = F.relu(self.fb4(r4) + c3)
        r3 = self.sb3(_mean(r4), d3)
        d2 = F.relu(self.fb3(r3) + c2)
        r2 = self.sb4(_mean(r3), d2)
        d1 = self.fb2(r2) + half
        main = _doubled(self.cls_pred_conv_2(self.final_decoder([d1, d2, d3, d4])))
        if self.connectivity:
            return main, prior
        logits = connectivity_logits(main)
        return [logits, connectivity_logits(prior)] if self.training else logits


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def _conv_norm_relu(before: int, width: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(before, width, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())


def _pointwise_norm_relu(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU())


CARD = NetworkCard(
    name="DconnNet",
    factory="itkit.models.dconnnet:DconnNet",
    title="DconnNet",
    paper="Yang and Farsiu, CVPR 2023, arXiv 2304.00145",
    licence="none stated (Zyun-Y/DconnNet); ours is code of its own",
    dims=(2,),
    configurations={
        "DconnNet_c4": Configuration({"num_classes": 4, "connectivity": True}, 28_741_048, (3, 256, 256), 6.2566),
        "DconnNet_c1": Configuration({"num_classes": 1, "connectivity": True}, 28_382_912, (3, 224, 320), 6.75274),
    },
    small={"in_channels": 1, "num_classes": 2, "width": 16, "blocks": (1, 1, 1, 1)},
    small_size=(64, 96),
    divisor=DIVISOR,
    unused=("backbone.fc.*", "cls_pred_conv.*", "fb5.conv_3x3.*"),
    outputs=2,
    notes=(
        "Predicts 8 maps a class, whether a pixel is connected to its neighbours; classes are voted from them. With "
        "connectivity=True these maps are returned, as by the original.",
    ),
)
