"""LM-Net: a light U-shaped network with attention to neighbours in its skips and to the whole image at its bottom."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itkit.errors import ConfigError
from itkit.models.zoo import Configuration, NetworkCard
from itkit.ops.attention import attend
from itkit.ops.image_size import check_image
from itkit.ops.neighbourhood import neighbourhood_attention
from itkit.registry import MODELS

DIVISOR = 16
LEAST_VOX = 32
"""Smallest edge of an image: the window of the attention must fit into an eighth of it."""
HEADS = 12
WINDOW = 3


class DepthwiseNorm(nn.Module):
    """A depthwise convolution without bias and batch norm; after `fold` one convolution with bias."""

    def __init__(self, width: int, kernel: tuple[int, int]):
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(width, width, kernel, padding=padding, groups=width, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        return self.bn(self.conv(x))

    def as_kernel(self, size: int) -> tuple[Tensor, Tensor]:
        """Return the weight (width, 1, size, size) and bias (width,) of one convolution that does the same."""
        scale = self.bn.weight / (self.bn.running_var + self.bn.eps).sqrt()
        high, wide = ((size - count) // 2 for count in self.conv.kernel_size)
        weight = F.pad(self.conv.weight, (wide, wide, high, high)) * scale[:, None, None, None]
        return weight, self.bn.bias - self.bn.running_mean * scale

    def fold(self) -> None:
        """Leave one convolution with bias, to be filled, in place of both."""
        old = self.conv
        where = {"device": old.weight.device, "dtype": old.weight.dtype}
        self.conv = nn.Conv2d(
            old.in_channels, old.out_channels, old.kernel_size, padding=old.padding, groups=old.groups, **where
        )
        self.bn = nn.Identity()


class SqueezeExcitation(nn.Module):
    """Weights the channels by what the mean of the image says of them."""

    def __init__(self, width: int, middle: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, middle, 1), nn.Conv2d(middle, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class ReparamConv(nn.Module):
    """Inverted bottleneck with four depthwise kernels side by side, which `switch_to_deploy` folds into one."""

    def __init__(self, before: int, width: int, middle: int):
        super().__init__()
        self.se = SqueezeExcitation(middle, max(1, middle // 4))
        self.expand_conv = nn.Sequential(nn.Conv2d(before, middle, 1), nn.BatchNorm2d(middle), nn.Hardswish())
        self.large_conv = DepthwiseNorm(middle, (5, 5))
        self.square_conv = DepthwiseNorm(middle, (3, 3))
        self.ver_conv, self.hor_conv = DepthwiseNorm(middle, (3, 1)), DepthwiseNorm(middle, (1, 3))
        self.pointwise_conv = nn.Sequential(nn.Conv2d(middle, width, 1))
        self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1))
        self.deployed = False

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Y, X)."""
        y = self.expand_conv(x)
        z = self.large_conv(y)
        if not self.deployed:
            z = z + self.square_conv(y) + self.ver_conv(y) + self.hor_conv(y)
        return self.pointwise_conv(self.se(F.gelu(z))) + self.shortcut(x)

    @torch.no_grad()
    def switch_to_deploy(self) -> None:
        """Fold the four kernels and their norms, with the running statistics, into the large one; for inference only."""
        if self.deployed:
            return
        parts = (self.large_conv, self.square_conv, self.ver_conv, self.hor_conv)
        kernels, biases = zip(*(part.as_kernel(5) for part in parts), strict=True)
        self.large_conv.fold()
        self.large_conv.conv.weight.copy_(sum(kernels))
        self.large_conv.conv.bias.copy_(sum(biases))
        del self.square_conv, self.ver_conv, self.hor_conv
        self.deployed = True


class PatchEmbedding(nn.Module):
    """A 3x3 convolution, after which the channels come last."""

    def __init__(self, width: int):
        super().__init__()
        self.patch_embeddings = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, Y, X, width) for `x` (N, width, Y, X)."""
        return self.patch_embeddings(x).permute(0, 2, 3, 1)


class Attention(nn.Module):
    """Attention between all pixels of a map with its channels last."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of `x` (N, Y, X, width)."""
        n, _, _, width = x.shape
        query, key, value = self.qkv(x).reshape(n, -1, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        return self.proj(attend(query, key, value).transpose(1, 2).reshape(x.shape))


class NeighbourAttention(nn.Module):
    """Attention of every pixel to its window, with or without a bias by relative position."""

    def __init__(self, width: int, position_bias: bool):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rpb = nn.Parameter(torch.zeros(HEADS, 2 * WINDOW - 1, 2 * WINDOW - 1)) if position_bias else None
        if position_bias:
            nn.init.trunc_normal_(self.rpb, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of `x` (N, Y, X, width)."""
        n, height, across, width = x.shape
        parts = self.qkv(x).reshape(n, height, across, 3, HEADS, width // HEADS).unbind(3)
        return self.proj(neighbourhood_attention(*parts, WINDOW, self.rpb).reshape(x.shape))


class MLP(nn.Module):
    """Two linear layers with a GELU between them, the middle twice as wide."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class LocalTransformer(nn.Module):
    """Local feature transformer (LFT): neighbourhood attention and an MLP on one map."""

    def __init__(self, width: int, position_bias: bool):
        super().__init__()
        self.patchembedding = PatchEmbedding(width)
        self.norm1, self.att1 = nn.LayerNorm(width), NeighbourAttention(width, position_bias)
        self.norm2, self.mlp = nn.LayerNorm(width), MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        x = self.patchembedding(x)
        x = x + self.att1(self.norm1(x))
        return (x + self.mlp(self.norm2(x))).permute(0, 3, 1, 2)


class GlobalTransformer(nn.Module):
    """Global feature transformer (GFT): attention between all pixels of the maps of all scales, at the coarsest."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        width = sum(widths)
        self.patchembedding = PatchEmbedding(width)
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2, self.mlp = nn.LayerNorm(width), MLP(width)
        self.conv = nn.Sequential(nn.Conv2d(width, widths[-1], 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return a map of the shape of the last of `maps`."""
        small = [F.avg_pool2d(x, 1 << (len(maps) - 1 - i)) for i, x in enumerate(maps)]
        x = self.patchembedding(torch.cat(small, 1))
        x = x + self.attention(self.norm1(x))
        return self.conv((x + self.mlp(self.norm2(x))).permute(0, 3, 1, 2))


class Skip(nn.Module):
    """Joins the maps of neighbouring scales at one of them: finer (`convl`), the same (`convm`), coarser (`convs`)."""

    def __init__(self, width: int, finer: int | None, same: int | None, coarser: int | None):
        super().__init__()
        # At the ends of the network one scale is missing, and the map itself stands in its place under another's key.
        self.convl = nn.Sequential(nn.Conv2d(finer or same, width, 3, 2 if finer else 1, 1))
        if finer and coarser:
            self.convm = nn.Sequential(nn.Conv2d(same, width, 3, padding=1))
        last = nn.Conv2d(coarser or same, width, 3, padding=1)
        self.convs = nn.Sequential(Doubled(), last) if coarser else nn.Sequential(last)
        joined = (3 if finer and coarser else 2) * width
        self.fuse_conv = nn.Sequential(nn.Conv2d(joined, width, 3, padding=1), nn.BatchNorm2d(width), nn.GELU())

    def forward(self, *maps: Tensor) -> Tensor:
        """Return (N, width, Y, X) for the maps in the order finer, same, coarser, as many as there are."""
        convolutions = [self.convl, self.convm, self.convs] if len(maps) == 3 else [self.convl, self.convs]
        return self.fuse_conv(torch.cat([conv(x) for conv, x in zip(convolutions, maps, strict=True)], 1))


class Doubled(nn.Module):
    """Enlarges a map twice, bilinearly, corners on corners."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, 2 * Y, 2 * X)."""
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


@MODELS.register_module()
class LMNet(nn.Module):
    """LM-Net, light-weight multi-scale network: images (N, C, Y, X) to logits (N, K, Y, X).

    Shape:
        Input (N, in_channels, Y, X), Y and X multiples of 16 from 32 on. Output (N, num_classes, Y, X).

    Args:
        in_channels: C.
        num_classes: K.
        widths: Channels of the five scales, multiples of 12 (the heads of the attention).
        position_bias: The attention to neighbours has a bias by relative position. Checkpoints made with natten up to
            0.15.1 need True, with 0.17 False.
        deploy: Build the form that `switch_to_deploy` leaves, for inference.

    Raises:
        ConfigError: If widths do not fit, or an input is no multiple of 16 or too small.

    Source: Lu et al., LM-Net: A light-weight and multi-scale network for medical image segmentation, Computers in Biology
    and Medicine 168, 2024. State dicts of the authors' code load as they are.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 2,
        widths: Sequence[int] = (12, 24, 48, 96, 192),
        position_bias: bool = True,
        deploy: bool = False,
    ):
        super().__init__()
        widths = list(widths)
        if len(widths) != 5 or any(width < HEADS or width % HEADS for width in widths):
            raise ConfigError(f"LMNet: widths must be five multiples of {HEADS}, found {widths}.")
        self.in_channels, self.num_classes = in_channels, num_classes
        a, b, c, d, _ = widths
        for level in range(1, 5):
            width, middle = widths[level - 1], widths[level]
            before = in_channels if level == 1 else width
            convs = ReparamConv(before, width, middle), ReparamConv(width, width, middle)
            self.add_module(f"conv{level}", nn.Sequential(*convs))
            self.add_module(f"down{level}", nn.Sequential(nn.Conv2d(width, middle, 3, 2, 1)))
            convs = ReparamConv(width, width, middle), ReparamConv(width, width, middle)
            self.add_module(f"dconv{5 - level}", nn.Sequential(*convs))
            self.add_module(f"up{5 - level}", nn.Sequential(Doubled(), nn.Conv2d(middle, width, 3, padding=1)))
            self.add_module(f"natt{5 - level}", LocalTransformer(width, position_bias))
        self.gft = GlobalTransformer(widths)
        self.skip1, self.skip2 = Skip(d, c, d, None), Skip(c, b, c, d)
        self.skip3, self.skip4 = Skip(b, a, b, c), Skip(a, None, a, b)
        self.output_layer = nn.Conv2d(a, num_classes, 1)
        if deploy:
            self.switch_to_deploy()

    def switch_to_deploy(self) -> LMNet:
        """Fold every `ReparamConv` for inference, see there; return this network."""
        for module in [module for module in self.modules() if isinstance(module, ReparamConv)]:
            module.switch_to_deploy()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (N, K, Y, X).

        Args:
            inputs: (N, C, Y, X).
        """
        check_image("LMNet", inputs, self.in_channels, divisor=DIVISOR)
        if min(inputs.shape[2:]) < LEAST_VOX:
            raise ConfigError(f"LMNet takes images of at least {LEAST_VOX} pixels, found {tuple(inputs.shape[2:])}.")
        c1 = self.conv1(inputs)
        c2 = self.conv2(self.down1(c1))
        c3 = self.conv3(self.down2(c2))
        c4 = self.conv4(self.down3(c3))
        x = self.gft([c1, c2, c3, c4, self.down4(c4)])
        x = self.dconv1(self.up1(x) + self.natt1(self.skip1(c3, c4)))
        x = self.dconv2(self.up2(x) + self.natt2(self.skip2(c2, c3, c4)))
        x = self.dconv3(self.up3(x) + self.natt3(self.skip3(c1, c2, c3)))
        x = self.dconv4(self.up4(x) + self.natt4(self.skip4(c1, c2)))
        return self.output_layer(x)


CARD = NetworkCard(
    name="LMNet",
    factory="itkit.models.lm_net:LMNet",
    title="LM-Net",
    paper="Lu et al., Computers in Biology and Medicine 168, 2024",
    licence="none stated (Asunatan); ours is code of its own",
    dims=(2,),
    configurations={
        "LM_Net_natten014_rpb": Configuration({"in_channels": 3, "num_classes": 2}, 3_966_566, (3, 224, 224), 3.98263),
        "LM_Net_natten017_norpb": Configuration(
            {"in_channels": 3, "num_classes": 2, "position_bias": False}, 3_965_366
        ),
        "LM_Net_small_rpb": Configuration(
            {"in_channels": 3, "num_classes": 3, "widths": (12, 12, 24, 24, 48)}, 434_763
        ),
    },
    small={"in_channels": 1, "num_classes": 2, "widths": (12, 12, 24, 24, 48)},
    small_size=(32, 48),
    divisor=DIVISOR,
    notes=(
        "The abstract states 5.4 M parameters; the authors' code has 3.97 M, and so has this.",
        "switch_to_deploy folds the depthwise kernels for inference.",
    ),
)
