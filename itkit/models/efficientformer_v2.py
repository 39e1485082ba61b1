"""EfficientFormerV2 S0, S1, S2, L: feed-forward blocks with a depthwise convolution, attention on the two coarsest grids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError
from itkit.models.feature_maps import checked_indices, leave_out_on_load
from itkit.models.zoo import Configuration, NetworkCard
from itkit.ops.image_size import check_image
from itkit.ops.offset_bias import OffsetBiasedAttention
from itkit.ops.stochastic_depth import SkippedBranch
from itkit.registry import MODELS

Ratios = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]
VARIANTS: dict[str, tuple[tuple[int, ...], Ratios, int]] = {
    "S0": (
        (32, 48, 96, 176),
        ((4, 4), (4, 4), (4, 3, 3, 3, 4, 4), (4, 3, 3, 4)),
        2,
    ),
    "S1": (
        (32, 48, 120, 224),
        ((4, 4, 4), (4, 4, 4), (4, 4, 3, 3, 3, 3, 4, 4, 4), (4, 4, 3, 3, 4, 4)),
        2,
    ),
    "S2": (
        (32, 64, 144, 288),
        ((4, 4, 4, 4), (4, 4, 4, 4), (4, 4, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4), (4, 4, 3, 3, 3, 3, 4, 4)),
        4,
    ),
    "L": (
        (40, 80, 192, 384),
        (
            (4, 4, 4, 4, 4),
            (4, 4, 4, 4, 4),
            (4, 4, 4, 4, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4),
            (4, 4, 4, 3, 3, 3, 3, 4, 4, 4),
        ),
        6,
    ),
}
"""Widths of the four stages, expansion of every block, how many of the last blocks of stages 3 and 4 have attention."""
STAGES = 4
ATTENDING = (2, 3)
"""Stages with attention; it works on the last one's grid in both."""
HEADS, KEY_CHANNELS, VALUE_CHANNELS = 8, 32, 128
STEP_KEY_CHANNELS, STEP_VALUE_CHANNELS = 16, 64
"""Channels of a head in the attention that leads from one stage to the next."""


def _normed(in_channels: int, width: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, width, kernel, stride, kernel // 2, groups=groups), nn.BatchNorm2d(width)
    )


def _per_head(x: Tensor) -> Tensor:
    """Return a map (N, heads * D, Y, X) as tokens (N, heads, Y * X, D)."""
    return x.flatten(2).unflatten(1, (HEADS, -1)).transpose(2, 3)


class MixingAttention(OffsetBiasedAttention):
    """Attention whose heads talk to each other before and after the softmax, besides a depthwise convolution of values.

    Args:
        width: Channels.
        grid: Largest grid (Y, X) that attention works on.
        stride: 2 attends on a grid half as fine, and enlarges the answer (bilinear). 1: on the grid as it is.
    """

    def __init__(self, width: int, grid: Sequence[int], stride: int):
        super().__init__(HEADS, grid)
        values = HEADS * VALUE_CHANNELS
        self.stride_conv = _normed(width, width, 3, stride, width) if stride > 1 else None
        self.q = _normed(width, HEADS * KEY_CHANNELS)
        self.k = _normed(width, HEADS * KEY_CHANNELS)
        self.v = _normed(width, values)
        self.v_local = _normed(values, values, 3, groups=values)
        self.talking_head1, self.talking_head2 = nn.Conv2d(HEADS, HEADS, 1), nn.Conv2d(HEADS, HEADS, 1)
        self.proj = nn.Sequential(nn.GELU(), *_normed(values, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Y, X) for `x` of that shape."""
        size = x.shape[2:]
        if self.stride_conv is not None:
            x = self.stride_conv(x)
        grid = x.shape[2:]
        query, key, values = _per_head(self.q(x)), _per_head(self.k(x)), self.v(x)
        scores = query @ key.transpose(2, 3) * KEY_CHANNELS**-0.5 + self.biases(grid)
        weights = self.talking_head2(self.talking_head1(scores).softmax(-1))
        mixed = (weights @ _per_head(values)).transpose(2, 3).flatten(1, 2).unflatten(2, grid)
        mixed = mixed + self.v_local(values)
        if self.stride_conv is not None:
            mixed = F.interpolate(mixed, size, mode="bilinear", align_corners=False)
        return self.proj(mixed)


class QueryOfEverySecondCell(nn.Module):
    """Queries on every second cell: the cell itself and what a depthwise convolution sees around it.

    Args:
        width: Channels of the input.
        out_channels: Channels of the queries.
    """

    def __init__(self, width: int, out_channels: int):
        super().__init__()
        self.local = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1, groups=width))
        self.proj = _normed(width, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, ceil(Y / 2), ceil(X / 2)) for `x` (N, width, Y, X)."""
        return self.proj(self.local(x) + x[:, :, ::2, ::2])


class DownsamplingAttention(OffsetBiasedAttention):
    """Attention of every second cell to all of them, besides a depthwise convolution of the values.

    Args:
        in_channels: Channels of the input.
        width: Channels of the output.
        grid: Largest grid (Y, X) of the input.
    """

    def __init__(self, in_channels: int, width: int, grid: Sequence[int]):
        super().__init__(HEADS, grid, 2)
        values = HEADS * STEP_VALUE_CHANNELS
        self.q = QueryOfEverySecondCell(in_channels, HEADS * STEP_KEY_CHANNELS)
        self.k = _normed(in_channels, HEADS * STEP_KEY_CHANNELS)
        self.v = _normed(in_channels, values)
        self.v_local = _normed(values, values, 3, 2, values)
        self.proj = nn.Sequential(nn.GELU(), *_normed(values, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, ceil(Y / 2), ceil(X / 2)) for `x` (N, in_channels, Y, X)."""
        query, key, values = self.q(x), _per_head(self.k(x)), self.v(x)
        scores = _per_head(query) @ key.transpose(2, 3) * STEP_KEY_CHANNELS**-0.5 + self.biases(x.shape[2:])
        mixed = (scores.softmax(-1) @ _per_head(values)).transpose(2, 3).flatten(1, 2).unflatten(2, query.shape[2:])
        return self.proj(mixed + self.v_local(values))


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


class AttendedDownsampling(nn.Module):
    """The sum of `DownsamplingAttention` and a normed 3 x 3 convolution of stride 2.

    Args:
        in_channels: Channels of the input.
        width: Channels of the output.
        grid: Largest grid (Y, X) of the input.
    """

    def __init__(self, in_channels: int, width: int, grid: Sequence[int]):
        super().__init__()
        self.attn = DownsamplingAttention(in_channels, width, grid)
        self.conv, self.bn = nn.Conv2d(in_channels, width, 3, 2, 1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, ceil(Y / 2), ceil(X / 2)) for `x` (N, in_channels, Y, X)."""
        return self.attn(x) + self.bn(self.conv(x))


class DepthwiseMLP(nn.Module):
    """1 x 1, depthwise 3 x 3 and 1 x 1 convolution, each with a norm; GELU behind the first two.

    Args:
        width: Channels in and out.
        hidden: Channels in between.
        dropout: Probability of dropping a value behind the depthwise convolution and at the end.
    """

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.fc1, self.norm1 = nn.Conv2d(width, hidden, 1), nn.BatchNorm2d(hidden)
        self.mid, self.mid_norm = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden), nn.BatchNorm2d(hidden)
        self.fc2, self.norm2 = nn.Conv2d(hidden, width, 1), nn.BatchNorm2d(width)
        self.act, self.drop = nn.GELU(), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Y, X) for `x` of that shape."""
        x = self.act(self.norm1(self.fc1(x)))
        x = self.drop(self.act(self.mid_norm(self.mid(x))))
        return self.drop(self.norm2(self.fc2(x)))


class Block(nn.Module):
    """Attention where the block has it, then an MLP; each scaled and added.

    Args:
        width: Channels.
        expansion: Hidden channels of the MLP, as a multiple of `width`.
        attention: The attention of this block, None where it has none.
        dropout: See `DepthwiseMLP`.
        drop_path: Probability that a sample skips a branch in training.
        layer_scale: First value of the branches' scales.
    """

    def __init__(
        self,
        width: int,
        expansion: float,
        attention: MixingAttention | None,
        dropout: float,
        drop_path: float,
        layer_scale: float,
    ):
        super().__init__()
        self.token_mixer = attention
        if attention is not None:
            self.layer_scale_1 = nn.Parameter(torch.full((width, 1, 1), layer_scale))
        self.mlp = DepthwiseMLP(width, int(width * expansion), dropout)
        self.layer_scale_2 = nn.Parameter(torch.full((width, 1, 1), layer_scale))
        self.drop_path = SkippedBranch(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Y, X) for `x` of that shape."""
        if self.token_mixer is not None:
            x = x + self.drop_path(self.layer_scale_1 * self.token_mixer(x))
        return x + self.drop_path(self.layer_scale_2 * self.mlp(x))


@MODELS.register_module()
class EfficientFormerV2(nn.Module):
    """EfficientFormerV2 as a classifier, or as an encoder that gives maps of features; images up to `image_size`.

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
        variant: ``"S0"``, ``"S1"``, ``"S2"`` or ``"L"``: the next three where they are None.
        out_indices: Maps to give, rising numbers from 0 (1/4) to 3 (1/32). None: a classifier.
        widths: Channels of the four stages.
        expansions: For each stage the width of every block's MLP, as a multiple of the stage's; so many blocks it has.
        attentions: How many of the last blocks of the third and of the fourth stage have attention.
        image_size: Largest image, one number or (Y, X): there is one bias for each offset on the two coarsest grids.
            Smaller images use a part of them.
        distillation: Whether there is a second head, which is trained to answer as a teacher does.
        dropout: Dropout probability in the MLPs.
        drop_path: Probability of skipping a branch of the last block in training; it grows evenly from 0 in the first.
        layer_scale: First value of the branches' scales.

    Raises:
        ConfigError: If arguments do not fit together; or an input has another number of axes or channels, or is larger
            than `image_size`.

    Source: Li et al., Rethinking Vision Transformers for MobileNet Size and Speed, ICCV 2023, arXiv 2212.08059.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1000,
        variant: str = "S0",
        out_indices: Sequence[int] | None = None,
        widths: Sequence[int] | None = None,
        expansions: Sequence[Sequence[float]] | None = None,
        attentions: int | None = None,
        image_size: int | Sequence[int] = 224,
        distillation: bool = True,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float = 1e-5,
    ):
        super().__init__()
        if variant not in VARIANTS:
            hint = did_you_mean(str(variant), VARIANTS)
            raise ConfigError(
                f"EfficientFormerV2: variant must be one of {', '.join(VARIANTS)}, found {variant!r}.{hint}"
            )
        usual = VARIANTS[variant]
        widths = tuple(usual[0] if widths is None else widths)
        expansions = tuple(tuple(stage) for stage in (usual[1] if expansions is None else expansions))
        attentions = usual[2] if attentions is None else attentions
        if len(widths) != STAGES or min(widths) < 1:
            raise ConfigError(
                f"EfficientFormerV2 has four stages: widths needs 4 positive numbers, found {list(widths)}."
            )
        if len(expansions) != STAGES or not all(stage and min(stage) > 0 for stage in expansions):
            raise ConfigError(
                "EfficientFormerV2 has four stages: expansions needs 4 lists, with a positive number for every block, "
                f"found {[list(stage) for stage in expansions]}."
            )
        most = min(len(expansions[stage]) for stage in ATTENDING)
        if not 0 <= attentions <= most:
            raise ConfigError(
                f"EfficientFormerV2: with these numbers of blocks 0 to {most} can have attention, found "
                f"attentions={attentions}."
            )
        if in_channels < 1 or num_classes < 1:
            raise ConfigError(
                "EfficientFormerV2: in_channels and num_classes must be at least 1, found "
                f"{in_channels} and {num_classes}."
            )
        self.in_channels, self.num_classes, self.distillation = in_channels, num_classes, distillation
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ConfigError(
                f"EfficientFormerV2: image_size must be a positive number or two of them (Y, X), found {image_size!r}."
            )
        self.out_indices = checked_indices("EfficientFormerV2", out_indices, STAGES)
        last = STAGES - 1 if self.out_indices is None else self.out_indices[-1]
        rates = iter(torch.linspace(0, drop_path, sum(map(len, expansions)), device="cpu").tolist())
        self.patch_embed = nn.Sequential(
            *_normed(in_channels, widths[0] // 2, 3, 2), nn.GELU(), *_normed(widths[0] // 2, widths[0], 3, 2), nn.GELU()
        )
        self.network = nn.ModuleList()
        for stage in range(last + 1):
            width, ratios = widths[stage], expansions[stage]
            if stage:
                attended = stage == STAGES - 1
                before = (widths[stage - 1], width)
                self.network.append(
                    AttendedDownsampling(*before, self._grid(stage - 1)) if attended else Downsampling(*before)
                )
            first = len(ratios) - attentions if stage in ATTENDING else len(ratios)
            blocks = nn.Sequential()
            for i, ratio in enumerate(ratios):
                stride = 2 ** (STAGES - 1 - stage)
                mixer = MixingAttention(width, self._grid(STAGES - 1), stride) if i >= first else None
                blocks.append(Block(width, ratio, mixer, dropout, next(rates), layer_scale))
            self.network.append(blocks)
        if self.out_indices is None:
            self.norm = nn.BatchNorm2d(widths[-1])
            self.head = nn.Linear(widths[-1], num_classes)
            if distillation:
                self.dist_head = nn.Linear(widths[-1], num_classes)
        else:
            self.feature_channels = tuple(widths[i] for i in self.out_indices)
            unused = (f"network.{i}." for i in range(len(self.network), 2 * STAGES - 1))
            leave_out_on_load(self, "norm.", "head.", "dist_head.", *unused)
        self.apply(_initialise)

    def _grid(self, stage: int) -> tuple[int, ...]:
        """Return the cells (Y, X) of a stage's map for the largest image."""
        return tuple(-(-size // 2 ** (2 + stage)) for size in self.image_size)

    def forward(self, inputs: Tensor) -> Tensor | list[Tensor]:
        """Return scores of the classes (N, num_classes), or the maps that `out_indices` asks for, the finest first.

        Args:
            inputs: (N, C, Y, X), along both axes at most `image_size`.
        """
        check_image("EfficientFormerV2", inputs, self.in_channels)
        if any(count > most for count, most in zip(inputs.shape[2:], self.image_size, strict=True)):
            raise ConfigError(
                f"EfficientFormerV2 has biases of attention for images up to {self.image_size} (Y, X), found "
                f"{tuple(inputs.shape[2:])}. Set image_size to the largest size."
            )
        x, maps = self.patch_embed(inputs), []
        for i, part in enumerate(self.network):
            x = part(x)
            if self.out_indices is not None and i % 2 == 0 and i // 2 in self.out_indices:
                maps.append(x)
        if self.out_indices is not None:
            return maps
        x = self.norm(x).mean((2, 3))
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
    name="EfficientFormerV2",
    factory="itkit.models.efficientformer_v2:EfficientFormerV2",
    title="EfficientFormerV2 S0, S1, S2, L",
    paper="Li et al., ICCV 2023, arXiv 2212.08059",
    licence="original: see LICENSE in snap-research/EfficientFormer",
    dims=(2,),
    configurations={
        "EfficientFormerV2_S0": _published("S0", 3_600_256, 0.395893),
        "EfficientFormerV2_S1": _published("S1", 6_185_560, 0.65197),
        "EfficientFormerV2_S2": _published("S2", 12_710_112, 1.24686),
        "EfficientFormerV2_L": _published("L", 26_322_288, 2.55255),
    },
    small=dict(
        in_channels=1,
        num_classes=2,
        widths=(8, 8, 16, 24),
        expansions=((2,), (2,), (2, 2), (2, 2)),
        attentions=1,
        image_size=(96, 64),
    ),
    small_size=(70, 45),
    outputs=2,
    segments=False,
    notes=(
        "In training the answers of both heads come, in evaluation their mean.",
        "Images up to image_size: there is a bias of attention for each offset on the two coarsest grids.",
        "With out_indices it is an encoder, and checkpoints of the classifier load into it strictly.",
    ),
)
