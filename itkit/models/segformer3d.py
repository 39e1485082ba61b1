"""SegFormer3D: the hierarchical transformer and the linear head of SegFormer, for volumes."""

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
from itkit.ops.image_size import check_image
from itkit.registry import MODELS

SCALES = ("head_dim", "num_heads")
Size = tuple[int, int, int]


class PatchEmbedding(nn.Module):
    """Tokens from overlapping patches: a strided convolution, then a norm over channels.

    Args:
        in_channels: Channels of the input.
        width: Channels of a token.
        patch: Edge length of a patch, in cells.
        stride: Cells between patches.
        padding: Zeros at each side.
    """

    def __init__(self, in_channels: int, width: int, patch: int, stride: int, padding: int):
        super().__init__()
        self.patch_embeddings = nn.Conv3d(in_channels, width, patch, stride, padding)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> tuple[Tensor, Size]:
        """Return tokens (N, Z * Y * X, width) and their grid (Z, Y, X) for `x` (N, C, Z_in, Y_in, X_in)."""
        x = self.patch_embeddings(x)
        size = (x.shape[2], x.shape[3], x.shape[4])
        return self.norm(x.flatten(2).transpose(1, 2)), size


class ReducedAttention(nn.Module):
    """Self-attention whose keys and values come from a grid that is `ratio` times coarser.

    Args:
        width: Channels of a token.
        heads: Attention heads; they divide `width`.
        ratio: Edge length of the blocks of tokens that become one key. 1: every token is a key.
        scale: Factor of the scores.
    """

    def __init__(self, width: int, heads: int, ratio: int, scale: float):
        super().__init__()
        self.heads, self.ratio, self.scale = heads, ratio, scale
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if ratio > 1:
            self.sr = nn.Conv3d(width, width, ratio, ratio)
            self.sr_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Return (N, Z * Y * X, width) for tokens `x` of that shape on the grid `size` (Z, Y, X)."""
        n, _, width = x.shape
        query = self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        if self.ratio > 1:
            x = self.sr(x.transpose(1, 2).reshape(n, width, *size))
            x = self.sr_norm(x.flatten(2).transpose(1, 2))
        key, value = self.key_value(x).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attend(query, key, value, self.scale).transpose(1, 2).flatten(2))


class DepthwiseConvolution(nn.Module):
    """3 x 3 x 3 convolution of every channel by itself and batch norm, on tokens.

    Args:
        width: Channels of a token.
    """

    def __init__(self, width: int):
        super().__init__()
        self.dwconv = nn.Conv3d(width, width, 3, padding=1, groups=width)
        self.bn = nn.BatchNorm3d(width)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Return (N, Z * Y * X, width) for tokens `x` of that shape on the grid `size` (Z, Y, X)."""
        n, _, width = x.shape
        x = self.dwconv(x.transpose(1, 2).reshape(n, width, *size))
        return self.bn(x).flatten(2).transpose(1, 2)


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

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Return (N, Z * Y * X, width) for tokens `x` of that shape on the grid `size` (Z, Y, X)."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), size)))


class MixBlock(nn.Module):
    """Pre-norm transformer block: ``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``.

    Args:
        width: Channels of a token.
        heads: Attention heads.
        ratio: Reduction of the attention's keys, see `ReducedAttention`.
        mlp_ratio: Hidden channels of the feed-forward layer, as a multiple of `width`.
        scale: Factor of the attention's scores.
    """

    def __init__(self, width: int, heads: int, ratio: int, mlp_ratio: float, scale: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = ReducedAttention(width, heads, ratio, scale)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MixFeedForward(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Return (N, Z * Y * X, width) for tokens `x` of that shape on the grid `size` (Z, Y, X)."""
        x = x + self.attention(self.norm1(x), size)
        return x + self.mlp(self.norm2(x), size)


class MixVisionTransformer3D(nn.Module):
    """Encoder of SegFormer3D: (N, C, Z, Y, X) to four maps at 1/4, 1/8, 1/16 and 1/32 of the size.

    Args:
        in_channels: C.
        embed_dims: Channels of the four stages.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage.
        sr_ratios: Reduction of the attention's keys in each stage.
        mlp_ratios: Width of the feed-forward layers as a multiple of the stage's.
        patch_sizes: Edge lengths of the patches of each stage.
        patch_strides: Steps between them.
        patch_paddings: Zeros at each side.
        attention_scale: See `SegFormer3D`.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        sr_ratios: Sequence[int],
        mlp_ratios: Sequence[float],
        patch_sizes: Sequence[int],
        patch_strides: Sequence[int],
        patch_paddings: Sequence[int],
        attention_scale: str,
    ):
        super().__init__()
        self.patches = tuple(zip(patch_sizes, patch_strides, patch_paddings, strict=True))
        self.sr_ratios = tuple(sr_ratios)
        before = in_channels
        for i, width in enumerate(embed_dims):
            heads = num_heads[i]
            scale = (heads if attention_scale == "num_heads" else width // heads) ** -0.5
            blocks = (MixBlock(width, heads, sr_ratios[i], mlp_ratios[i], scale) for _ in range(depths[i]))
            self.add_module(f"embed_{i + 1}", PatchEmbedding(before, width, *self.patches[i]))
            self.add_module(f"tf_block{i + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{i + 1}", nn.LayerNorm(width))
            before = width

    @property
    def least_size(self) -> int:
        """Smallest size along an axis: every stage needs one key at least."""
        least = 1
        for (patch, stride, padding), ratio in zip(reversed(self.patches), reversed(self.sr_ratios), strict=True):
            least = max(1, (max(least, ratio) - 1) * stride + patch - 2 * padding)
        return least

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps (N, C_i, Z_i, Y_i, X_i), the finest first, for `x` (N, C, Z, Y, X)."""
        maps = []
        for i in range(1, 5):
            tokens, size = getattr(self, f"embed_{i}")(x)
            if self.training and tokens.shape[0] * tokens.shape[1] == 1:
                raise ConfigError(
                    f"SegFormer3D: stage {i} has one token in the whole batch, which batch norm cannot train on. Take "
                    "more samples a batch, or larger patches (more than 32 voxels along an axis)."
                )
            for block in getattr(self, f"tf_block{i}"):
                tokens = block(tokens, size)
            tokens = getattr(self, f"norm{i}")(tokens)
            x = tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *size)
            maps.append(x)
        return maps


class TokenProjection(nn.Module):
    """Linear layer and layer norm over the channels of a map.

    Args:
        in_channels: Channels of the map.
        width: Channels of the answer.
    """

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.proj = nn.Linear(in_channels, width)
        self.bn = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Z, Y, X) for `x` (N, C, Z, Y, X)."""
        return self.bn(self.proj(x.flatten(2).transpose(1, 2))).transpose(1, 2).unflatten(2, x.shape[2:])


class SegFormerHead3D(nn.Module):
    """Logits at the finest map's size: each map is projected and enlarged to it, and all are fused by 1-wide layers.

    Args:
        embed_dims: Channels of the four maps.
        width: Channels that each is projected to.
        num_classes: K.
        dropout: Probability of dropping an element in front of the last layer.
    """

    def __init__(self, embed_dims: Sequence[int], width: int, num_classes: int, dropout: float):
        super().__init__()
        for i, channels in enumerate(embed_dims, 1):
            self.add_module(f"linear_c{i}", TokenProjection(channels, width))
        self.linear_fuse = nn.Sequential(
            nn.Conv3d(4 * width, width, 1, bias=False), nn.BatchNorm3d(width), nn.ReLU(inplace=True)
        )
        self.dropout = nn.Dropout(dropout)
        self.linear_pred = nn.Conv3d(width, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (N, K, Z_1, Y_1, X_1) for the encoder's maps, the finest first."""
        finest = maps[0].shape[2:]
        parts = []
        for i in range(4, 0, -1):
            x = getattr(self, f"linear_c{i}")(maps[i - 1])
            parts.append(x if i == 1 else F.interpolate(x, finest, mode="trilinear", align_corners=False))
        return self.linear_pred(self.dropout(self.linear_fuse(torch.cat(parts, 1))))


@MODELS.register_module()
class SegFormer3D(nn.Module):
    """SegFormer for volumes: (N, C, Z, Y, X) to logits (N, K, Z, Y, X) of the same size, any size from 13 voxels on.

    The original takes cubes alone; this one any box. Weights of the authors load without renaming, but two versions of
    their code have the same keys and other numbers: see `attention_scale`.

    Shape:
        - Input: (N, in_channels, Z, Y, X).
        - Output: (N, num_classes, Z, Y, X).

    Args:
        in_channels: C.
        num_classes: K, the number of output channels.
        embed_dims: Channels of the four stages.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage; they divide its width.
        sr_ratios: Edge length of the blocks of tokens that share a key, for each stage.
        mlp_ratios: Width of the feed-forward layers as a multiple of the stage's.
        patch_sizes: Edge lengths of the patches of each stage, in cells.
        patch_strides: Cells between patches.
        patch_paddings: Zeros at each side of the cells.
        decoder_channels: Width of the head.
        decoder_dropout: Probability of dropping an element in front of the last layer.
        attention_scale: Scores are divided by the root of ``"head_dim"``, the channels of a head, as usual and in the
            authors' code since November 2025; or of ``"num_heads"``, as in the code of the paper. Weights trained with
            the one are useless with the other.

    Raises:
        ConfigError: If arguments do not fit together; or an input has another number of axes or channels, or is too
            small; or in training the whole batch has one token at the coarsest stage.

    Source: Perera et al., SegFormer3D: an Efficient Transformer for 3D Medical Image Segmentation, CVPR workshops 2024,
    arXiv 2404.10156.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        embed_dims: Sequence[int] = (32, 64, 160, 256),
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        sr_ratios: Sequence[int] = (4, 2, 1, 1),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        patch_sizes: Sequence[int] = (7, 3, 3, 3),
        patch_strides: Sequence[int] = (4, 2, 2, 2),
        patch_paddings: Sequence[int] = (3, 1, 1, 1),
        decoder_channels: int = 256,
        decoder_dropout: float = 0.0,
        attention_scale: str = "head_dim",
    ):
        super().__init__()
        lists = dict(
            embed_dims=embed_dims,
            depths=depths,
            num_heads=num_heads,
            sr_ratios=sr_ratios,
            mlp_ratios=mlp_ratios,
            patch_sizes=patch_sizes,
            patch_strides=patch_strides,
            patch_paddings=patch_paddings,
        )
        for name, values in lists.items():
            if len(values) != 4:
                raise ConfigError(f"SegFormer3D has four stages: {name} needs 4 numbers, found {list(values)}.")
        if any(width % heads for width, heads in zip(embed_dims, num_heads, strict=True)):
            raise ConfigError(
                f"SegFormer3D: num_heads must divide embed_dims, found {list(num_heads)} for {list(embed_dims)}."
            )
        if in_channels < 1 or num_classes < 1:
            raise ConfigError(
                f"SegFormer3D: in_channels and num_classes must be at least 1, found {in_channels} and {num_classes}."
            )
        if attention_scale not in SCALES:
            raise ConfigError(
                f"SegFormer3D: attention_scale must be {' or '.join(SCALES)}, found {attention_scale!r}."
                f"{did_you_mean(str(attention_scale), SCALES)}"
            )
        self.in_channels, self.num_classes = in_channels, num_classes
        self.segformer_encoder = MixVisionTransformer3D(
            in_channels,
            embed_dims,
            depths,
            num_heads,
            sr_ratios,
            mlp_ratios,
            patch_sizes,
            patch_strides,
            patch_paddings,
            attention_scale,
        )
        self.segformer_decoder = SegFormerHead3D(embed_dims, decoder_channels, num_classes, decoder_dropout)
        self.apply(_initialise)
        nn.init.normal_(self.segformer_decoder.linear_pred.weight, std=0.01)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (N, K, Z, Y, X) for `inputs` (N, C, Z, Y, X)."""
        check_image("SegFormer3D", inputs, self.in_channels, dims=3)
        size, least = inputs.shape[2:], self.segformer_encoder.least_size
        if min(size) < least:
            raise ConfigError(
                f"SegFormer3D needs volumes of at least {least} voxels along each axis with sr_ratios "
                f"{self.segformer_encoder.sr_ratios}, found {tuple(size)} (Z, Y, X). Pad them, or choose smaller "
                "sr_ratios."
            )
        logits = self.segformer_decoder(self.segformer_encoder(inputs))
        return F.interpolate(logits, size, mode="trilinear", align_corners=False)


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv3d):
        cells = module.kernel_size[0] * module.kernel_size[1] * module.kernel_size[2]
        nn.init.normal_(module.weight, std=(2 * module.groups / (cells * module.out_channels)) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_BRATS: dict[str, Any] = dict(in_channels=4, num_classes=3)
_SMALL: dict[str, Any] = dict(
    in_channels=1, num_classes=2, embed_dims=(8, 16, 40, 64), depths=(1, 1, 1, 1), decoder_channels=32
)
_PAPER: dict[str, Any] = dict(attention_scale="num_heads")

CARD = NetworkCard(
    name="SegFormer3D",
    factory="itkit.models.segformer3d:SegFormer3D",
    title="SegFormer3D",
    paper="Perera et al., CVPR workshops 2024, arXiv 2404.10156",
    licence="original: none named in its README (OSUPCVLab/SegFormer3D)",
    dims=(3,),
    configurations={
        "SegFormer3D_brats": Configuration(_BRATS, 4_525_251, (4, 128, 128, 128), 15.547),
        "SegFormer3D_brats_2024code": Configuration({**_BRATS, **_PAPER}, 4_525_251),
        "SegFormer3D_small_2024code": Configuration({**_SMALL, **_PAPER}, 197_378),
        "SegFormer3D_small": Configuration(_SMALL, 197_378),
    },
    small=_SMALL,
    small_size=(26, 33, 21),
    notes=(
        'attention_scale="num_heads" for weights of the code that the paper came with (2024); the keys do not tell.',
        "The original takes cubes alone; this one any size from 13 voxels on.",
    ),
)
