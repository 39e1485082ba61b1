"""SegFormer: a hierarchical transformer without position codes, and a head of linear layers; for images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError
from itkit.models.zoo import Configuration, NetworkCard
from itkit.ops.attention import attend
from itkit.registry import MODELS

VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "B0": ((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "B1": ((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "B2": ((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "B3": ((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "B4": ((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "B5": ((64, 128, 320, 512), (3, 6, 40, 3), 768),
}
"""Widths and numbers of blocks of the four stages, and the width of the head."""


class OverlapPatchEmbed(nn.Module):
    """Tokens from overlapping patches: a strided convolution, then a norm over channels.

    Args:
        in_channels: Channels of the input.
        width: Channels of a token.
        patch: Odd edge length of a patch, in cells.
        stride: Cells between patches.
    """

    def __init__(self, in_channels: int, width: int, patch: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch, stride, patch // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return tokens (N, Y * X, width) and their grid (Y, X) for `x` (N, C, Y_in, X_in)."""
        x = self.proj(x)
        size = (x.shape[2], x.shape[3])
        return self.norm(x.flatten(2).transpose(1, 2)), size


class ReducedAttention(nn.Module):
    """Self-attention whose keys and values come from a grid that is `ratio` times coarser.

    Args:
        width: Channels of a token.
        heads: Attention heads; they divide `width`.
        ratio: Edge length of the blocks of tokens that become one key. 1: every token is a key.
    """

    def __init__(self, width: int, heads: int, ratio: int):
        super().__init__()
        self.heads, self.ratio = heads, ratio
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if ratio > 1:
            self.sr = nn.Conv2d(width, width, ratio, ratio)
            self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return (N, Y * X, width) for tokens `x` of that shape on the grid `size` (Y, X)."""
        n, _, width = x.shape
        query = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        if self.ratio > 1:
            x = self.sr(x.transpose(1, 2).reshape(n, width, *size))
            x = self.norm(x.flatten(2).transpose(1, 2))
        key, value = self.kv(x).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attend(query, key, value).transpose(1, 2).flatten(2))


class DepthwiseConvolution(nn.Module):
    """3 x 3 convolution of every channel by itself, on tokens; it is what tells the network where a token is.

    Args:
        width: Channels of a token.
    """

    def __init__(self, width: int):
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return (N, Y * X, width) for tokens `x` of that shape on the grid `size` (Y, X)."""
        n, _, width = x.shape
        return self.dwconv(x.transpose(1, 2).reshape(n, width, *size)).flatten(2).transpose(1, 2)


class MixFeedForward(nn.Module):
    """Feed-forward layer with a depthwise convolution in front of the activation.

    Args:
        width: Channels of a token.
        hidden: Channels in between.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = DepthwiseConvolution(hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return (N, Y * X, width) for tokens `x` of that shape on the grid `size` (Y, X)."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), size)))


class MixBlock(nn.Module):
    """Pre-norm transformer block: ``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``.

    Args:
        width: Channels of a token.
        heads: Attention heads.
        ratio: Reduction of the attention's keys, see `ReducedAttention`.
        mlp_ratio: Hidden channels of the feed-forward layer, as a multiple of `width`.
        drop_path: Probability that a sample skips a branch in training.
    """

    def __init__(self, width: int, heads: int, ratio: int, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = ReducedAttention(width, heads, ratio)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MixFeedForward(width, int(width * mlp_ratio))
        self.drop_path = drop_path

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return (N, Y * X, width) for tokens `x` of that shape on the grid `size` (Y, X)."""
        x = x + self._kept(self.attn(self.norm1(x), size))
        return x + self._kept(self.mlp(self.norm2(x), size))

    def _kept(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return x
        keep = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.drop_path
        return x * keep / (1 - self.drop_path)


class MixVisionTransformer(nn.Module):
    """Encoder of SegFormer: (N, C, Y, X) to four maps at 1/4, 1/8, 1/16 and 1/32 of the size.

    Args:
        in_channels: C.
        embed_dims: Channels of the four stages.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage.
        sr_ratios: Reduction of the attention's keys in each stage.
        mlp_ratios: Width of the feed-forward layers as a multiple of the stage's.
        drop_path: Probability of skipping a branch in the last block; it grows evenly from 0 in the first.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        sr_ratios: Sequence[int],
        mlp_ratios: Sequence[float],
        drop_path: float,
    ):
        super().__init__()
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        self.sr_ratios = tuple(sr_ratios)
        before = in_channels
        for i, width in enumerate(embed_dims):
            blocks = (MixBlock(width, num_heads[i], sr_ratios[i], mlp_ratios[i], next(rates)) for _ in range(depths[i]))
            self.add_module(f"patch_embed{i + 1}", OverlapPatchEmbed(before, width, *((3, 2) if i else (7, 4))))
            self.add_module(f"block{i + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{i + 1}", nn.LayerNorm(width, eps=1e-6))
            before = width

    @property
    def least_size(self) -> int:
        """Smallest size along an axis: every stage needs one key at least."""
        return max(4 * 2**i * (ratio - 1) + 1 for i, ratio in enumerate(self.sr_ratios))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps (N, C_i, Y_i, X_i), the finest first, for `x` (N, C, Y, X)."""
        maps = []
        for i in range(1, 5):
            tokens, size = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                tokens = block(tokens, size)
            tokens = getattr(self, f"norm{i}")(tokens)
            x = tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *size)
            maps.append(x)
        return maps


class TokenProjection(nn.Module):
    """Linear layer over the channels of a map.

    Args:
        in_channels: Channels of the map.
        width: Channels of the answer.
    """

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.proj = nn.Linear(in_channels, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Y, X) for `x` (N, C, Y, X)."""
        return self.proj(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


class FusingConvolution(nn.Module):
    """1 x 1 convolution, batch norm, ReLU.

    Args:
        in_channels: Channels of the input.
        width: Channels of the answer.
    """

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Y, X) for `x` (N, C, Y, X)."""
        return F.relu(self.bn(self.conv(x)))


class SegFormerHead(nn.Module):
    """Logits at 1/4 from the four maps: each is projected, enlarged to the finest, and all are fused by 1 x 1 layers.

    Args:
        embed_dims: Channels of the four maps.
        width: Channels that each is projected to.
        num_classes: K.
        dropout: Probability of dropping a channel in front of the last layer.
        unused_channels: Width of `conv_seg`, a layer that released checkpoints hold and nothing uses.
    """

    def __init__(self, embed_dims: Sequence[int], width: int, num_classes: int, dropout: float, unused_channels: int):
        super().__init__()
        self.conv_seg = nn.Conv2d(unused_channels, num_classes, 1)
        for i, channels in enumerate(embed_dims, 1):
            self.add_module(f"linear_c{i}", TokenProjection(channels, width))
        self.linear_fuse = FusingConvolution(4 * width, width)
        self.dropout = nn.Dropout2d(dropout)
        self.linear_pred = nn.Conv2d(width, num_classes, 1)
        nn.init.kaiming_normal_(self.linear_fuse.conv.weight, mode="fan_out")
        nn.init.normal_(self.linear_pred.weight, std=0.01)
        nn.init.zeros_(self.linear_pred.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (N, K, Y_1, X_1) for the encoder's maps, the finest first."""
        finest = maps[0].shape[2:]
        parts = []
        for i in range(4, 0, -1):
            x = getattr(self, f"linear_c{i}")(maps[i - 1])
            parts.append(x if i == 1 else F.interpolate(x, finest, mode="bilinear", align_corners=False))
        return self.linear_pred(self.dropout(self.linear_fuse(torch.cat(parts, 1))))


@MODELS.register_module()
class SegFormer(nn.Module):
    """SegFormer for images: (N, C, Y, X) to logits (N, K, Y, X) of the same size, any size from 29 voxels on.

    Checkpoints of the authors load without renaming. Their files of the encoder alone, trained on ImageNet, load into
    `backbone` with ``strict=False``, which leaves out their classifier.

    Shape:
        - Input: (N, in_channels, Y, X).
        - Output: (N, num_classes, Y, X), or (N, num_classes, ceil(Y / 4), ceil(X / 4)) with ``full_size=False``.

    Args:
        in_channels: C.
        num_classes: K, the number of output channels.
        variant: ``"B0"`` to ``"B5"``: widths and numbers of blocks where the next three are None.
        embed_dims: Channels of the four stages.
        depths: Blocks of each stage.
        decoder_channels: Width of the head.
        num_heads: Attention heads of each stage; they divide its width.
        sr_ratios: Edge length of the blocks of tokens that share a key, for each stage.
        mlp_ratios: Width of the feed-forward layers as a multiple of the stage's.
        drop_path: Probability of skipping a branch of the last block in training; it grows evenly from 0 in the first.
        dropout: Probability of dropping a channel in front of the last layer.
        full_size: Enlarge the logits to the input's size (bilinear), as the authors do outside of the network. False:
            their network's own output, a quarter of the size.
        unused_channels: Width of `decode_head.conv_seg`, which the checkpoints hold and nothing uses.

    Raises:
        ConfigError: If arguments do not fit together; or an input has another number of axes or channels, or is too
            small.

    Source: Xie et al., SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers, NeurIPS
    2021, arXiv 2105.15203.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 2,
        variant: str = "B0",
        embed_dims: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        decoder_channels: int | None = None,
        num_heads: Sequence[int] = (1, 2, 5, 8),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        drop_path: float = 0.1,
        dropout: float = 0.1,
        full_size: bool = True,
        unused_channels: int = 128,
    ):
        super().__init__()
        if variant not in VARIANTS:
            hint = did_you_mean(str(variant), VARIANTS)
            raise ConfigError(f"SegFormer: variant must be one of {', '.join(VARIANTS)}, found {variant!r}.{hint}")
        usual = VARIANTS[variant]
        embed_dims = tuple(usual[0] if embed_dims is None else embed_dims)
        depths = tuple(usual[1] if depths is None else depths)
        decoder_channels = usual[2] if decoder_channels is None else decoder_channels
        lists = dict(
            embed_dims=embed_dims, depths=depths, num_heads=num_heads, sr_ratios=sr_ratios, mlp_ratios=mlp_ratios
        )
        for name, values in lists.items():
            if len(values) != 4:
                raise ConfigError(f"SegFormer has four stages: {name} needs 4 numbers, found {list(values)}.")
        if any(width % heads for width, heads in zip(embed_dims, num_heads, strict=True)):
            raise ConfigError(
                f"SegFormer: num_heads must divide embed_dims, found {list(num_heads)} for {list(embed_dims)}."
            )
        if in_channels < 1 or num_classes < 1:
            raise ConfigError(
                f"SegFormer: in_channels and num_classes must be at least 1, found {in_channels} and {num_classes}."
            )
        self.in_channels, self.num_classes, self.full_size = in_channels, num_classes, full_size
        self.backbone = MixVisionTransformer(
            in_channels, embed_dims, depths, num_heads, sr_ratios, mlp_ratios, drop_path
        )
        self.decode_head = SegFormerHead(embed_dims, decoder_channels, num_classes, dropout, unused_channels)
        self.backbone.apply(_initialise)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (N, K, Y, X) for `inputs` (N, C, Y, X)."""
        if inputs.ndim != 4 or inputs.shape[1] != self.in_channels:
            raise ConfigError(
                f"SegFormer takes (N, {self.in_channels}, Y, X), found {tuple(inputs.shape)}. Check in_channels and the "
                "pipeline."
            )
        size = inputs.shape[2:]
        if min(size) < self.backbone.least_size:
            raise ConfigError(
                f"SegFormer needs images of at least {self.backbone.least_size} voxels along both axes with sr_ratios "
                f"{self.backbone.sr_ratios}, found {tuple(size)} (Y, X). Pad them, or choose smaller sr_ratios."
            )
        logits = self.decode_head(self.backbone(inputs))
        return F.interpolate(logits, size, mode="bilinear", align_corners=False) if self.full_size else logits


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _published(variant: str, parameters: int, size: int, gmacs: float) -> Configuration:
    arguments: dict[str, Any] = dict(in_channels=3, num_classes=150, variant=variant, full_size=False)
    return Configuration(arguments, parameters, (3, size, size), gmacs)


_SMALL = dict(embed_dims=(8, 16, 40, 64), depths=(1, 1, 1, 1), decoder_channels=32)

CARD = NetworkCard(
    name="SegFormer",
    factory="itkit.models.segformer:SegFormer",
    title="SegFormer B0-B5",
    paper="Xie et al., NeurIPS 2021, arXiv 2105.15203",
    licence="original: NVIDIA Source Code License, non-commercial; its weights too",
    dims=(2,),
    configurations={
        "SegFormer_B0_ade150": _published("B0", 3_772_044, 512, 8.38782),
        "SegFormer_B1_ade150": _published("B1", 13_735_148, 512, 15.8781),
        "SegFormer_B2_ade150": _published("B2", 27_481_324, 512, 62.3378),
        "SegFormer_B3_ade150": _published("B3", 47_357_164, 512, 78.963),
        "SegFormer_B4_ade150": _published("B4", 64_127_724, 512, 95.5675),
        "SegFormer_B5_ade150": _published("B5", 84_728_044, 640, 183.141),
        "SegFormer_small": Configuration(dict(in_channels=3, num_classes=4, full_size=False, **_SMALL), 134_560),
    },
    small=dict(in_channels=1, num_classes=2, drop_path=0.0, dropout=0.0, **_SMALL),
    small_size=(45, 38),
    unused=("decode_head.conv_seg.*",),
    notes=(
        "The original's logits have a quarter of the size; full_size=True, the default, enlarges them to the input's.",
        "decode_head.conv_seg is in released checkpoints and never used.",
        "Images need 29 voxels or more along each axis.",
    ),
)
