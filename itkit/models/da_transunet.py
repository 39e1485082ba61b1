"""DA-TransUNet: a U-Net of a residual network and a transformer, with dual attention on tokens and skips; for images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itkit.errors import ConfigError
from itkit.models.zoo import Configuration, NetworkCard
from itkit.ops.attention import attend
from itkit.registry import MODELS

DIVISOR = 16
TOKEN_WIDTH = 768
"""The dual attention on the tokens is made for this width alone."""
STEM_WIDTH = 64
DECODER_WIDTHS = (256, 128, 64, 16)
SKIP_WIDTHS = (512, 256, 64)
DUAL_ATTENTIONS = {64: "da", 256: "da2", 512: "da3"}
"""The dual attention for a decoder feature of so many channels; every decoder block owns all three."""
DUAL_ATTENTION_EPS = 1e-3
"""Of the batch norms there, as the original's outputs show; all others have PyTorch's 1e-5."""


class StandardisedConvolution(nn.Conv2d):
    """Convolution whose weights are brought to mean 0 and variance 1 for each output channel.

    Source: Qiao et al., Weight Standardization, 2019.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of `x` (N, C, Y, X)."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        return self._conv_forward(x, (self.weight - mean) / torch.sqrt(variance + 1e-5), self.bias)


def _standardised(in_channels: int, width: int, kernel: int, stride: int = 1) -> StandardisedConvolution:
    return StandardisedConvolution(in_channels, width, kernel, stride, kernel // 2, bias=False)


class Bottleneck(nn.Module):
    """Residual block of three standardised convolutions (1, 3, 1 wide) with group norms.

    Args:
        in_channels: Channels of the input.
        width: Channels of the answer; a quarter of them in between.
        stride: Step of the middle convolution. The skip is projected where the shape changes.
    """

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        middle = width // 4
        self.gn1, self.conv1 = nn.GroupNorm(32, middle, eps=1e-6), _standardised(in_channels, middle, 1)
        self.gn2, self.conv2 = nn.GroupNorm(32, middle, eps=1e-6), _standardised(middle, middle, 3, stride)
        self.gn3, self.conv3 = nn.GroupNorm(32, width, eps=1e-6), _standardised(middle, width, 1)
        self.projects = stride != 1 or in_channels != width
        if self.projects:
            self.downsample = _standardised(in_channels, width, 1, stride)
            self.gn_proj = nn.GroupNorm(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Y / stride, X / stride) for `x` (N, C, Y, X)."""
        skip = self.gn_proj(self.downsample(x)) if self.projects else x
        y = F.relu(self.gn1(self.conv1(x)))
        y = F.relu(self.gn2(self.conv2(y)))
        return F.relu(skip + self.gn3(self.conv3(y)))


class ResidualEncoder(nn.Module):
    """Residual network in front of the transformer: maps at 1/2, 1/4, 1/8 as skips, and at 1/16.

    Args:
        in_channels: Channels of the image.
        layers: Bottlenecks of the three stages.
    """

    def __init__(self, in_channels: int, layers: Sequence[int]):
        super().__init__()
        self.root = nn.Sequential()
        self.root.add_module("conv", _standardised(in_channels, STEM_WIDTH, 7, 2))
        self.root.add_module("gn", nn.GroupNorm(32, STEM_WIDTH, eps=1e-6))
        self.root.add_module("relu", nn.ReLU(inplace=True))
        self.body = nn.Sequential()
        before = STEM_WIDTH
        for i, count in enumerate(layers):
            width, stage = STEM_WIDTH * 4 * 2**i, nn.Sequential()
            for unit in range(count):
                stride = 2 if i > 0 and unit == 0 else 1
                stage.add_module(f"unit{unit + 1}", Bottleneck(before if unit == 0 else width, width, stride))
            self.body.add_module(f"block{i + 1}", stage)
            before = width

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the map at 1/16 (1024 channels) and the skips at 1/8, 1/4 and 1/2 (512, 256, 64 channels)."""
        stem = self.root(x)
        skips = [stem]
        x = F.max_pool2d(stem, 3, 2)  # without padding: a row and a column less than a quarter
        for i, stage in enumerate(self.body.children()):
            x = stage(x)
            if i < 2:
                rows, columns = (count // 2 ** (i + 1) for count in stem.shape[2:])
                skips.insert(0, F.pad(x, (0, columns - x.shape[3], 0, rows - x.shape[2])))
        return x, skips


class PositionAttention(nn.Module):
    """Attention of every position to all others, added to the input with a learned weight that begins at 0.

    Args:
        width: Channels; an eighth of them in queries and keys, which may be none: then all positions count the same.
    """

    def __init__(self, width: int):
        super().__init__()
        with warnings.catch_warnings():  # on layers without channels, which the original owns and never calls
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            self.query_conv = nn.Conv2d(width, width // 8, 1)
            self.key_conv = nn.Conv2d(width, width // 8, 1)
        self.value_conv = nn.Conv2d(width, width, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Y, X) for `x` of that shape."""
        query, key, value = (f(x).flatten(2).mT[:, None] for f in (self.query_conv, self.key_conv, self.value_conv))
        return self.gamma * attend(query, key, value, scale=1.0)[:, 0].mT.unflatten(2, x.shape[2:]) + x


class ChannelAttention(nn.Module):
    """Attention of every channel to those least like it, added to the input with a learned weight that begins at 0."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, Y, X) for `x` of that shape."""
        channels = x.flatten(2)
        likeness = channels @ channels.mT
        weights = (likeness.amax(-1, keepdim=True) - likeness).softmax(-1)
        return self.gamma * (weights @ channels).unflatten(2, x.shape[2:]) + x


def _normalised(in_channels: int, width: int, eps: float = 1e-5) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width, eps), nn.ReLU(inplace=True)
    )


class DualAttention(nn.Module):
    """Position and channel attention on a sixteenth of the channels, summed and brought back to all of them.

    `conv6` and `conv7`, the heads of either attention alone, are in checkpoints and never used.

    Args:
        width: Channels of input and answer.

    Source: Fu et al., Dual Attention Network for Scene Segmentation, CVPR 2019.
    """

    def __init__(self, width: int):
        super().__init__()
        inner = width // 16
        self.conv5a, self.conv5c = (_normalised(width, inner, DUAL_ATTENTION_EPS) for _ in range(2))
        self.sa, self.sc = PositionAttention(inner), ChannelAttention()
        self.conv51, self.conv52 = (_normalised(inner, inner, DUAL_ATTENTION_EPS) for _ in range(2))
        for name in ("conv6", "conv7", "conv8"):
            self.add_module(name, nn.Sequential(nn.Dropout2d(0.05), nn.Conv2d(inner, width, 1), nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Y, X) for `x` of that shape."""
        return self.conv8(self.conv51(self.sa(self.conv5a(x))) + self.conv52(self.sc(self.conv5c(x))))


class Embeddings(nn.Module):
    """Tokens of an image: residual network, 1 x 1 patches, dual attention, learned positions.

    Args:
        in_channels: Channels of the image.
        grid: Tokens along (Y, X).
        layers: Bottlenecks of the residual network's stages.
        dropout: Probability of dropping an element.
    """

    def __init__(self, in_channels: int, grid: tuple[int, int], layers: Sequence[int], dropout: float):
        super().__init__()
        self.hybrid_model = ResidualEncoder(in_channels, layers)
        self.patch_embeddings = nn.Conv2d(STEM_WIDTH * 16, TOKEN_WIDTH, 1)
        self.DAblock1 = DualAttention(TOKEN_WIDTH)
        self.position_embeddings = nn.Parameter(torch.zeros(1, grid[0] * grid[1], TOKEN_WIDTH))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return tokens (N, L, 768) and the skips of the residual network for images `x`."""
        x, skips = self.hybrid_model(x)
        x = self.DAblock1(self.patch_embeddings(x))
        return self.dropout(x.flatten(2).mT + self.position_embeddings), skips


class SelfAttention(nn.Module):
    """Multi-head self-attention with separate layers for queries, keys and values.

    Args:
        heads: Attention heads; they divide 768.
    """

    def __init__(self, heads: int):
        super().__init__()
        self.heads = heads
        for name in ("query", "key", "value", "out"):
            self.add_module(name, nn.Linear(TOKEN_WIDTH, TOKEN_WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, L, 768) for tokens `x` of that shape."""
        query, key, value = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return self.out(attend(query, key, value).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with a GELU and dropouts.

    Args:
        hidden: Channels in between.
        dropout: Probability of dropping an element.
    """

    def __init__(self, hidden: int, dropout: float):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(TOKEN_WIDTH, hidden), nn.Linear(hidden, TOKEN_WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, L, 768) for tokens `x` of that shape."""
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class TransformerLayer(nn.Module):
    """Pre-norm transformer block.

    Args:
        heads: Attention heads.
        hidden: Channels of the feed-forward layer.
        dropout: Probability of dropping an element there.
    """

    def __init__(self, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(TOKEN_WIDTH, eps=1e-6)
        self.ffn_norm = nn.LayerNorm(TOKEN_WIDTH, eps=1e-6)
        self.ffn = FeedForward(hidden, dropout)
        self.attn = SelfAttention(heads)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, L, 768) for tokens `x` of that shape."""
        x = x + self.attn(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class TransformerEncoder(nn.Module):
    """Transformer blocks and a norm.

    Args:
        layers: Number of blocks.
        heads: Attention heads.
        hidden: Channels of the feed-forward layers.
        dropout: Probability of dropping an element there.
    """

    def __init__(self, layers: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.layer = nn.ModuleList(TransformerLayer(heads, hidden, dropout) for _ in range(layers))
        self.encoder_norm = nn.LayerNorm(TOKEN_WIDTH, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, L, 768) for tokens `x` of that shape."""
        for layer in self.layer:
            x = layer(x)
        return self.encoder_norm(x)


class DecoderBlock(nn.Module):
    """Enlarge by 2, join the skip (through dual attention where the original does so), two convolutions.

    Args:
        in_channels: Channels of the coarser map.
        skip_channels: Channels of the skip, 0 without one.
        width: Channels of the answer.
    """

    def __init__(self, in_channels: int, skip_channels: int, width: int):
        super().__init__()
        self.joins = skip_channels > 0
        self.attention = DUAL_ATTENTIONS.get(in_channels)  # of the coarser map, so the skip of 64 channels has none
        self.conv1 = _normalised(in_channels + skip_channels, width)
        self.conv2 = _normalised(width, width)
        for channels, name in DUAL_ATTENTIONS.items():
            self.add_module(name, DualAttention(channels))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return (N, width, 2 Y, 2 X) for `x` (N, C, Y, X) and the skip (N, S, 2 Y, 2 X), not used where S is 0."""
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        if self.joins:
            x = torch.cat([x, skip if self.attention is None else getattr(self, self.attention)(skip)], 1)
        return self.conv2(self.conv1(x))


class Decoder(nn.Module):
    """Four blocks from the tokens back to the size of the image.

    Args:
        grid: Tokens along (Y, X).
        skips: Number of skips that are used, the coarsest first.
    """

    def __init__(self, grid: tuple[int, int], skips: int):
        super().__init__()
        self.grid = grid
        self.conv_more = _normalised(TOKEN_WIDTH, 512)
        joined = [*SKIP_WIDTHS[:skips], *[0] * (4 - skips)]
        self.blocks = nn.ModuleList(
            DecoderBlock(before, skip, width)
            for before, skip, width in zip((512, *DECODER_WIDTHS), joined, DECODER_WIDTHS, strict=False)
        )

    def forward(self, tokens: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Return (N, 16, Y, X) for tokens (N, L, 768) and the skips, the coarsest first."""
        x = self.conv_more(tokens.mT.unflatten(2, self.grid))
        for i, block in enumerate(self.blocks):
            x = block(x, skips[min(i, len(skips) - 1)])
        return x


@MODELS.register_module()
class DATransUNet(nn.Module):
    """DA-TransUNet for images of one size: (N, C, Y, X) to logits (N, K, Y, X).

    Checkpoints of the authors load without renaming. As in the original, parameters for dual attention are there at every
    decoder block, and used where the decoder feature has as many channels as the skip: at the two coarsest.

    Shape:
        - Input: (N, in_channels, Y, X), where (Y, X) is `image_size`.
        - Output: (N, num_classes, Y, X).

    Args:
        in_channels: C. A single channel is repeated to three, so that checkpoints fit.
        num_classes: K, the number of output channels.
        image_size: Size of the images (Y, X), or one number for both; multiples of 16. The learned positions belong to it.
        num_layers: Transformer blocks.
        num_heads: Their attention heads; they divide 768.
        mlp_dim: Channels of their feed-forward layers.
        resnet_layers: Residual blocks of the three stages in front.
        skips: Skips that are used, the coarsest first; 0 to 3.
        dropout: Probability of dropping an element of tokens and feed-forward layers.

    Raises:
        ConfigError: If arguments do not fit together; or an input has another number of axes or channels, or another
            size.

    Source: Sun et al., DA-TransUNet: Integrating Spatial and Channel Dual Attention with Transformer U-Net for Medical
    Image Segmentation, Frontiers in Bioengineering and Biotechnology 2024, arXiv 2310.12570.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 2,
        image_size: int | Sequence[int] = 224,
        num_layers: int = 12,
        num_heads: int = 12,
        mlp_dim: int = 3072,
        resnet_layers: Sequence[int] = (3, 4, 9),
        skips: int = 3,
        dropout: float = 0.1,
    ):
        super().__init__()
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(size) != 2 or any(count < DIVISOR or count % DIVISOR for count in size):
            raise ConfigError(
                f"DATransUNet: image_size must be one or two multiples of {DIVISOR} (Y, X), found {image_size!r}."
            )
        if num_heads < 1 or TOKEN_WIDTH % num_heads:
            raise ConfigError(f"DATransUNet: num_heads must divide {TOKEN_WIDTH}, found {num_heads}.")
        if len(resnet_layers) != 3 or min(resnet_layers) < 1:
            raise ConfigError(f"DATransUNet: resnet_layers needs three numbers from 1 on, found {list(resnet_layers)}.")
        if not 0 <= skips <= 3:
            raise ConfigError(f"DATransUNet has 0 to 3 skips, found {skips}.")
        if in_channels < 1 or num_classes < 1:
            raise ConfigError(
                f"DATransUNet: in_channels and num_classes must be at least 1, found {in_channels} and {num_classes}."
            )
        self.in_channels, self.num_classes, self.image_size = in_channels, num_classes, size
        grid = (size[0] // DIVISOR, size[1] // DIVISOR)
        self.transformer = nn.Module()
        self.transformer.embeddings = Embeddings(3 if in_channels == 1 else in_channels, grid, resnet_layers, dropout)
        self.transformer.encoder = TransformerEncoder(num_layers, num_heads, mlp_dim, dropout)
        self.decoder = Decoder(grid, skips)
        self.segmentation_head = nn.Sequential(nn.Conv2d(DECODER_WIDTHS[-1], num_classes, 3, padding=1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (N, K, Y, X) for `inputs` (N, C, Y, X)."""
        if inputs.ndim != 4 or inputs.shape[1] != self.in_channels:
            raise ConfigError(
                f"DATransUNet takes (N, {self.in_channels}, Y, X), found {tuple(inputs.shape)}. Check in_channels and "
                "the pipeline."
            )
        if (inputs.shape[2], inputs.shape[3]) != self.image_size:
            raise ConfigError(
                f"DATransUNet was built for image_size={self.image_size} (Y, X), found {tuple(inputs.shape[2:])}. Crop or "
                f"resize the images, or build it with their size, multiples of {DIVISOR}."
            )
        x = inputs.expand(-1, 3, -1, -1) if self.in_channels == 1 else inputs
        tokens, skips = self.transformer.embeddings(x)
        return self.segmentation_head(self.decoder(self.transformer.encoder(tokens), skips))


_SMALL: dict[str, Any] = dict(mlp_dim=128, num_layers=1, resnet_layers=(1, 1, 1))

CARD = NetworkCard(
    name="DATransUNet",
    factory="itkit.models.da_transunet:DATransUNet",
    title="DA-TransUNet",
    paper="Sun et al., Frontiers in Bioengineering and Biotechnology 2024, arXiv 2310.12570",
    licence="original: see the LICENSE file of its repository (SUN-1024/DA-TransUnet)",
    dims=(2,),
    configurations={
        "DA_TransUNet_R50-ViT-B_16_224_c9": Configuration(dict(num_classes=9), 107_951_855, (3, 224, 224), 30.1619),
        "DA_TransUNet_small_64_c3": Configuration(dict(num_classes=3, image_size=64, **_SMALL), 15_402_761),
    },
    small=dict(in_channels=1, num_classes=2, image_size=(48, 64), **_SMALL),
    small_size=(48, 64),
    divisor=DIVISOR,
    unused=(
        "*.conv6.*",
        "*.conv7.*",
        "decoder.blocks.?.da.*",
        "decoder.blocks.[023].da2.*",
        "decoder.blocks.[123].da3.*",
    ),
    notes=(
        "Works for images of image_size alone: positions are learned.",
        "Every decoder block owns three dual attentions; da3 of the first and da2 of the second are used, as in the "
        "original, where 272 tensors (1,513,816 parameters) never get a gradient.",
        "One input channel is repeated to three.",
    ),
)
