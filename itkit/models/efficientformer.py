"""EfficientFormer L1, L3, L7: convolutions and pooling on fine grids, attention on the coarsest alone; for images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError
from itkit.models.feature_maps import checked_indices, leave_out_on_load
from itkit.models.zoo import Configuration, NetworkCard
from itkit.ops.attention import attend
from itkit.ops.image_size import check_image
from itkit.ops.offset_bias import OffsetBiasedAttention
from itkit.ops.stochastic_depth import SkippedBranch
from itkit.registry import MODELS

VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "L1": ((48, 96, 224, 448), (3, 2, 6, 4), 1),
    "L3": ((64, 128, 320, 512), (4, 4, 12, 6), 4),
    "L7": ((96, 192, 384, 768), (6, 6, 18, 8), 8),
}
"""Widths and numbers of blocks of the four stages; how many of the last blocks are transformers."""
STAGES = 4
COARSEST = 32
"""Voxels of the image along an axis for one token of the last stage."""
HEADS, KEY_CHANNELS, VALUE_CHANNELS = 8, 32, 128


class TokenAttention(OffsetBiasedAttention):
    """Self-attention of all tokens, with a learnt bias for each head and offset.

    Args:
        width: Channels of a token.
        grid: Largest grid of tokens (Y, X).
    """

    def __init__(self, width: int, grid: Sequence[int]):
        super().__init__(HEADS, grid)
        self.qkv = nn.Linear(width, HEADS * (2 * KEY_CHANNELS + VALUE_CHANNELS))
        self.proj = nn.Linear(HEADS * VALUE_CHANNELS, width)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return (N, Y * X, width) for tokens `x` of that shape on the grid (Y, X)."""
        per_head = self.qkv(x).unflatten(2, (HEADS, -1)).transpose(1, 2)
        query, key, value = per_head.split([KEY_CHANNELS, KEY_CHANNELS, VALUE_CHANNELS], -1)
        return self.proj(attend(query, key, value, bias=self.biases(grid)).transpose(1, 2).flatten(2))


class ConvolutionalMLP(nn.Module):
    """1 x 1 convolution, norm, GELU, 1 x 1 convolution, norm.

    Args:
        width: Channels in and out.
        hidden: Channels in between.
        dropout: Probability of dropping a value behind the activation and at the end.
    """

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.fc1, self.norm1 = nn.Conv2d(width, hidden, 1), nn.BatchNorm2d(hidden)
        self.fc2, self.norm2 = nn.Conv2d(hidden, width, 1), nn.BatchNorm2d(width)
        self.act, self.drop = nn.GELU(), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Y, X) for `x` of that shape."""
        x = self.drop(self.act(self.norm1(self.fc1(x))))
        return self.drop(self.norm2(self.fc2(x)))


class TokenMLP(nn.Module):
    """Linear layer, GELU, linear layer.

    Args:
        width: Channels in and out.
        hidden: Channels in between.
        dropout: Probability of dropping a value behind each layer.
    """

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.act, self.drop = nn.GELU(), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, L, width) for tokens `x` of that shape."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class PoolingBlock(nn.Module):
    """Block on a map: what a cell's neighbourhood has on average more than itself, then an MLP, both scaled and added.

    Args:
        width: Channels.
        mlp_ratio: Hidden channels of the MLP, as a multiple of `width`.
        dropout: See `ConvolutionalMLP`.
        drop_path: Probability that a sample skips a branch in training.
        layer_scale: First value of the branches' scales.
    """

    def __init__(self, width: int, mlp_ratio: float, dropout: float, drop_path: float, layer_scale: float):
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.mlp = ConvolutionalMLP(width, int(width * mlp_ratio), dropout)
        self.layer_scale_1 = nn.Parameter(torch.full((width,), layer_scale))
        self.layer_scale_2 = nn.Parameter(torch.full((width,), layer_scale))
        self.drop_path = SkippedBranch(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Y, X) for `x` of that shape."""
        x = x + self.drop_path(self.layer_scale_1[:, None, None] * (self.pool(x) - x))
        return x + self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(x))


class TransformerBlock(nn.Module):
    """Block on tokens: attention and MLP, each behind a norm, scaled and added.

    Args:
        width: Channels of a token.
        grid: Largest grid of tokens (Y, X).
        mlp_ratio: Hidden channels of the MLP, as a multiple of `width`.
        dropout: See `TokenMLP`.
        drop_path: Probability that a sample skips a branch in training.
        layer_scale: First value of the branches' scales.
    """

    def __init__(
        self,
        width: int,
        grid: Sequence[int],
        mlp_ratio: float,
        dropout: float,
        drop_path: float,
        layer_scale: float,
    ):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.token_mixer = TokenAttention(width, grid)
        self.mlp = TokenMLP(width, int(width * mlp_ratio), dropout)
        self.layer_scale_1 = nn.Parameter(torch.full((width,), layer_scale))
        self.layer_scale_2 = nn.Parameter(torch.full((width,), layer_scale))
        self.drop_path = SkippedBranch(drop_path)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return (N, Y * X, width) for tokens `x` of that shape on the grid (Y, X)."""
        x = x + self.drop_path(self.layer_scale_1 * self.token_mixer(self.norm1(x), grid))
        return x + self.drop_path(self.layer_scale_2 * self.mlp(self.norm2(x)))


class Downsampling(nn.Module):
    """3 x 3 convolution of stride 2 and a norm.

    Args:
        in_channels: Channels of the input.
        width: Channels of the output.
    """

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(in_channels, width, 3, 2, 1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, ceil(Y / 2), ceil(X / 2)) for `x` (N, in_channels, Y, X)."""
        return self.norm(self.proj(x))


class Tokens(nn.Module):
    """(N, C, Y, X) to tokens (N, Y * X, C): where the last stage goes over from maps to tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens of `x`."""
        return x.flatten(2).transpose(1, 2)


@MODELS.register_module()
class EfficientFormer(nn.Module):
    """EfficientFormer as a classifier, or as an encoder that gives maps of features; images up to `image_size`.

    Checkpoints of the authors load without renaming; into an encoder too, which leaves out their head. For a larger
    `image_size` than theirs see `itkit.ops.offset_bias.resize_offset_biases`.

    Shape:
        - Input: (N, in_channels, Y, X).
        - Output: (N, num_classes); in training with `distillation` a list of two, the classifier's and that of the head
          that learns from a teacher, in evaluation their mean. With `out_indices`: a list of maps (N,
          feature_channels[i], ceil(Y / 2^(2 + i)), ceil(X / 2^(2 + i))).

    Args:
        in_channels: C.
        num_classes: Classes of the classifier; of no effect in an encoder.
        variant: ``"L1"``, ``"L3"`` or ``"L7"``: the next three where they are None.
        out_indices: Maps to give, rising numbers from 0 (1/4) to 3 (1/32). None: a classifier.
        widths: Channels of the four stages.
        depths: Blocks of each stage.
        transformers: How many of the last stage's blocks are transformers; one at least, they are its last.
        image_size: Largest image, one number or (Y, X): there is one bias for each offset on its coarsest grid. Smaller
            images use a part of them.
        distillation: Whether there is a second head, which is trained to answer as a teacher does.
        mlp_ratio: Width of the MLPs, as a multiple of the stage's.
        dropout: Dropout probability in the MLPs.
        drop_path: Probability of skipping a branch of the last block in training; it grows evenly from 0 in the first.
        layer_scale: First value of the branches' scales.

    Raises:
        ConfigError: If arguments do not fit together; or an input has another number of axes or channels, or is larger
            than `image_size`.

    Source: Li et al., EfficientFormer: Vision Transformers at MobileNet Speed, NeurIPS 2022, arXiv 2206.01191.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1000,
        variant: str = "L1",
        out_indices: Sequence[int] | None = None,
        widths: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        transformers: int | None = None,
        image_size: int | Sequence[int] = 224,
        distillation: bool = True,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float = 1e-5,
    ):
        super().__init__()
        if variant not in VARIANTS:
            hint = did_you_mean(str(variant), VARIANTS)
            raise ConfigError(
                f"EfficientFormer: variant must be one of {', '.join(VARIANTS)}, found {variant!r}.{hint}"
            )
        usual = VARIANTS[variant]
        widths = tuple(usual[0] if widths is None else widths)
        depths = tuple(usual[1] if depths is None else depths)
        transformers = usual[2] if transformers is None else transformers
        for name, values in dict(widths=widths, depths=depths).items():
            if len(values) != STAGES or min(values) < 1:
                raise ConfigError(
                    f"EfficientFormer has four stages: {name} needs 4 positive numbers, found {list(values)}."
                )
        if not 1 <= transformers <= depths[-1]:
            raise ConfigError(
                f"EfficientFormer: of the last stage's {depths[-1]} blocks 1 to {depths[-1]} are transformers, found "
                f"transformers={transformers}."
            )
        if in_channels < 1 or num_classes < 1:
            raise ConfigError(
                "EfficientFormer: in_channels and num_classes must be at least 1, found "
                f"{in_channels} and {num_classes}."
            )
        self.in_channels, self.num_classes, self.distillation = in_channels, num_classes, distillation
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ConfigError(
                f"EfficientFormer: image_size must be a positive number or two of them (Y, X), found {image_size!r}."
            )
        self.out_indices = checked_indices("EfficientFormer", out_indices, STAGES)
        last = STAGES - 1 if self.out_indices is None else self.out_indices[-1]
        grid = [-(-size // COARSEST) for size in self.image_size]
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        self.patch_embed = nn.Sequential(
            nn.Conv2d(in_channels, widths[0] // 2, 3, 2, 1),
            nn.BatchNorm2d(widths[0] // 2),
            nn.ReLU(),
            nn.Conv2d(widths[0] // 2, widths[0], 3, 2, 1),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        self.network = nn.ModuleList()
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if stage > last:
                break
            if stage:
                self.network.append(Downsampling(widths[stage - 1], width))
            pooling = depth if stage < STAGES - 1 else depth - transformers
            blocks: list[nn.Module] = [
                PoolingBlock(width, mlp_ratio, dropout, next(rates), layer_scale) for _ in range(pooling)
            ]
            if pooling < depth:
                blocks += [
                    Tokens(),
                    *(
                        TransformerBlock(width, grid, mlp_ratio, dropout, next(rates), layer_scale)
                        for _ in range(transformers)
                    ),
                ]
            self.network.append(nn.ModuleList(blocks))
        if self.out_indices is None:
            self.norm = nn.LayerNorm(widths[-1])
            self.head = nn.Linear(widths[-1], num_classes)
            if distillation:
                self.dist_head = nn.Linear(widths[-1], num_classes)
        else:
            self.feature_channels = tuple(widths[i] for i in self.out_indices)
            unused = (f"network.{i}." for i in range(len(self.network), 2 * STAGES - 1))
            leave_out_on_load(self, "norm.", "head.", "dist_head.", *unused)
        self.apply(_initialise)

    def forward(self, inputs: Tensor) -> Tensor | list[Tensor]:
        """Return scores of the classes (N, num_classes), or the maps that `out_indices` asks for, the finest first.

        Args:
            inputs: (N, C, Y, X), along both axes at most `image_size`.
        """
        check_image("EfficientFormer", inputs, self.in_channels)
        if any(count > most for count, most in zip(inputs.shape[2:], self.image_size, strict=True)):
            raise ConfigError(
                f"EfficientFormer has biases of attention for images up to {self.image_size} (Y, X), found "
                f"{tuple(inputs.shape[2:])}. Set image_size to the largest size."
            )
        x, maps = self.patch_embed(inputs), []
        for i, part in enumerate(self.network):
            if i % 2:
                x = part(x)
                continue
            grid = (x.shape[2], x.shape[3])
            for block in part:
                x = block(x, grid) if isinstance(block, TransformerBlock) else block(x)
            if self.out_indices is not None and i // 2 in self.out_indices:
                maps.append(x if x.ndim == 4 else x.transpose(1, 2).unflatten(2, grid))
        if self.out_indices is not None:
            return maps
        x = self.norm(x).mean(1)
        if not self.distillation:
            return self.head(x)
        answers = [self.head(x), self.dist_head(x)]
        return answers if self.training else (answers[0] + answers[1]) / 2


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _published(variant: str, parameters: int, gmacs: float) -> Configuration:
    return Configuration(dict(variant=variant), parameters, (3, 224, 224), gmacs)


CARD = NetworkCard(
    name="EfficientFormer",
    factory="itkit.models.efficientformer:EfficientFormer",
    title="EfficientFormer L1, L3, L7",
    paper="Li et al., NeurIPS 2022, arXiv 2206.01191",
    licence="original: see LICENSE in snap-research/EfficientFormer",
    dims=(2,),
    configurations={
        "EfficientFormer_L1": _published("L1", 12_289_928, 1.29128),
        "EfficientFormer_L3": _published("L3", 31_406_000, 3.90657),
        "EfficientFormer_L7": _published("L7", 82_229_328, 10.1193),
    },
    small=dict(
        in_channels=1, num_classes=2, widths=(8, 12, 16, 24), depths=(1, 1, 1, 2), transformers=1, image_size=(96, 64)
    ),
    small_size=(70, 45),
    outputs=2,
    segments=False,
    notes=(
        "In training the answers of both heads come, in evaluation their mean.",
        "Images up to image_size: there is a bias of attention for each offset on its coarsest grid.",
        "With out_indices it is an encoder, and checkpoints of the classifier load into it strictly.",
    ),
)
