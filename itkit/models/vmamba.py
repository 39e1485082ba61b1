"""VMamba: an image classifier, and encoder, whose blocks scan the image along four paths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError
from itkit.models.feature_maps import checked_indices, leave_out_on_load
from itkit.models.zoo import Configuration, NetworkCard
from itkit.ops.cross_scan import PATHS, cross_selective_scan
from itkit.ops.image_size import check_image
from itkit.ops.scan_parameters import initial_decays, initial_step_biases, initial_step_weights
from itkit.registry import MODELS

PATCH = 4
"""Pixels that the first map's cells have along each axis; every stage after the first halves the map."""
CURRENT: dict[str, Any] = dict(
    d_state=1, conv_bias=False, mlp_ratio=4.0, gate=False, stacked_projections=False, overlapping=True
)
VANILLA: dict[str, Any] = dict(
    d_state=16,
    ssm_ratio=2.0,
    conv_bias=True,
    mlp_ratio=0.0,
    gate=True,
    stacked_projections=True,
    overlapping=False,
)
VARIANTS: dict[str, dict[str, Any]] = {
    "T": dict(depths=(2, 2, 8, 2), dims=96, ssm_ratio=1.0, drop_path=0.2, **CURRENT),
    "S": dict(depths=(2, 2, 15, 2), dims=96, ssm_ratio=2.0, drop_path=0.3, **CURRENT),
    "B": dict(depths=(2, 2, 15, 2), dims=128, ssm_ratio=2.0, drop_path=0.6, **CURRENT),
    "T_s2l5": dict(depths=(2, 2, 5, 2), dims=96, ssm_ratio=2.0, drop_path=0.2, **CURRENT),
    "S_s1l20": dict(depths=(2, 2, 20, 2), dims=96, ssm_ratio=1.0, drop_path=0.3, **CURRENT),
    "B_s1l20": dict(depths=(2, 2, 20, 2), dims=128, ssm_ratio=1.0, drop_path=0.5, **CURRENT),
    "vanilla_T": dict(depths=(2, 2, 9, 2), dims=96, drop_path=0.2, **VANILLA),
    "vanilla_S": dict(depths=(2, 2, 27, 2), dims=96, drop_path=0.3, **VANILLA),
    "vanilla_B": dict(depths=(2, 2, 27, 2), dims=128, drop_path=0.6, **VANILLA),
}
"""Arguments of the published sizes: T is s1l8, S and B are s2l15 of the second version; vanilla is the first."""


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of (N, C, Y, X)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` normalised at every pixel."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PixelLinear(nn.Linear):
    """Linear layer over the channels of (N, C, Y, X)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_features, Y, X)."""
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


class SelectiveScan2D(nn.Module):
    """The mixing of pixels: projection, depthwise convolution, SiLU, four scans, norm, projection.

    Args:
        width: Channels of the input and the output.
        d_state: Numbers that the state of a channel has.
        ratio: Channels of the scans, as a multiple of `width`.
        dt_rank: Rank of the projection to step sizes. None: a sixteenth of `width`, rounded up.
        kernel: Of the depthwise convolution. 1: no convolution.
        conv_bias: The convolution has a bias.
        gate: A second projection of the input, after a SiLU, multiplies the scans' sum.
        stacked: The projections of the four paths are parameters (4, ...) of this module, not rows of two layers.
    """

    def __init__(
        self,
        width: int,
        d_state: int,
        ratio: float,
        dt_rank: int | None,
        kernel: int,
        conv_bias: bool,
        gate: bool,
        stacked: bool,
    ):
        super().__init__()
        inner, rank = int(ratio * width), math.ceil(width / 16) if dt_rank is None else dt_rank
        self.gate, self.kernel, self.stacked = gate, kernel, stacked
        self.in_proj = PixelLinear(width, 2 * inner if gate else inner, bias=False)
        if kernel > 1:
            self.conv2d = nn.Conv2d(inner, inner, kernel, padding=(kernel - 1) // 2, groups=inner, bias=conv_bias)
        projections = torch.stack([nn.Linear(inner, rank + 2 * d_state).weight.detach() for _ in range(PATHS)])
        steps = initial_step_weights(PATHS, inner, rank)
        if stacked:
            self.x_proj_weight, self.dt_projs_weight = nn.Parameter(projections), nn.Parameter(steps)
        else:
            self.x_proj, self.dt_projs = nn.Module(), nn.Module()
            self.x_proj.weight = nn.Parameter(projections.flatten(0, 1))
            self.dt_projs.weight = nn.Parameter(steps.flatten(0, 1))
        self.dt_projs_bias = nn.Parameter(initial_step_biases(PATHS, inner))
        self.A_logs = nn.Parameter(initial_decays(PATHS * inner, d_state))
        self.Ds = nn.Parameter(torch.ones(PATHS * inner))
        self.out_norm, self.out_proj = ChannelNorm(inner), PixelLinear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Y, X) for `x` of that shape."""
        x = self.in_proj(x)
        if self.gate:
            x, gate = x.chunk(2, 1)
        x = F.silu(self.conv2d(x) if self.kernel > 1 else x)
        if self.stacked:
            projections, steps = self.x_proj_weight, self.dt_projs_weight
        else:
            projections = self.x_proj.weight.unflatten(0, (PATHS, -1))
            steps = self.dt_projs.weight.unflatten(0, (PATHS, -1))
        y = self.out_norm(cross_selective_scan(x, projections, steps, self.dt_projs_bias, self.A_logs, self.Ds))
        return self.out_proj(y * F.silu(gate) if self.gate else y)


class FeedForward(nn.Module):
    """Two linear layers with a GELU in between, for every pixel by itself.

    Args:
        width: Channels of the input and the output.
        hidden: Channels in between.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = PixelLinear(width, hidden), PixelLinear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Y, X) for `x` of that shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class VSSBlock(nn.Module):
    """``x + scan(norm(x))``, then ``x + feed_forward(norm(x))``.

    Args:
        width: Channels.
        scan: The mixing of pixels.
        mlp_ratio: Hidden channels of the feed-forward layer, as a multiple of `width`. 0: there is none.
        drop_path: Probability that a sample skips a branch in training.
    """

    def __init__(self, width: int, scan: nn.Module, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.norm, self.op, self.drop_path = ChannelNorm(width), scan, drop_path
        self.feeds = mlp_ratio > 0
        if self.feeds:
            self.norm2, self.mlp = ChannelNorm(width), FeedForward(width, int(mlp_ratio * width))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, Y, X) for `x` of that shape."""
        x = x + self._kept(self.op(self.norm(x)))
        return x + self._kept(self.mlp(self.norm2(x))) if self.feeds else x

    def _kept(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return x
        keep = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.drop_path
        return x * keep / (1 - self.drop_path)


class PatchGathering(nn.Module):
    """Put the pixels of each block of 2 x 2 into channels; a missing last row or column is zeros."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 4 * C, Y / 2, X / 2), rounded up, for `x` (N, C, Y, X)."""
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        return torch.cat([x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)], 1)


class Stage(nn.Module):
    """Blocks, and what stands between them and the next stage.

    Args:
        blocks: The blocks.
        downsample: Halves the map and sets the next stage's channels. None: the last stage.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = nn.Identity() if downsample is None else downsample


@MODELS.register_module()
class VMamba(nn.Module):
    """VMamba: images (N, C, Y, X) to class scores (N, K), or to the maps of its stages for a decoder.

    Checkpoints of the authors load without renaming (their files keep the weights under ``model``). A classifier's
    weights load into an encoder with ``strict=False``, since the norms of the maps are not among them; its head is left
    out. In a config an encoder is ``dict(type="itkit.VMamba", out_indices=(0, 1, 2, 3))``: the `backbone` of
    `MMSegBackboneHead`, with any decode head of MMSegmentation, or the `encoder` of `EncoderUNet`.

    Shape:
        - Input: (N, in_channels, Y, X) of any size (with ``overlapping=False`` from 4 pixels on).
        - Output: (N, num_classes); with `out_indices` a tuple of maps (N, dims[i], ceil(Y / 2**(2 + i)), ceil(X / 2**(2 +
          i))).

    Args:
        in_channels: C.
        num_classes: K.
        variant: Published size, the values of the arguments that are None: ``"T"``, ``"S"``, ``"B"``, their relatives
            ``"T_s2l5"``, ``"S_s1l20"``, ``"B_s1l20"``, or the first version's ``"vanilla_T"``, ``"vanilla_S"``,
            ``"vanilla_B"``.
        out_indices: Stages, from 0, whose maps are returned, each through a norm of its own. None: class scores.
        depths: Blocks of each stage.
        dims: Channels of each stage; or of the first, doubled from stage to stage.
        d_state: Numbers that the state of a channel has.
        ssm_ratio: Channels of the scans, as a multiple of the stage's.
        dt_rank: Rank of the projection to step sizes. None: a sixteenth of the stage's channels, rounded up.
        conv_kernel: Edge length of the depthwise convolution in front of the scans, odd. 1: none.
        conv_bias: That convolution has a bias.
        mlp_ratio: Hidden channels of the feed-forward layers, as a multiple of the stage's. 0: there are none.
        gate: Scans are multiplied by a gate, as in the first version.
        stacked_projections: The scans' projections are kept under the names that they have in the first version.
        overlapping: Patches and steps between stages are convolutions of 3 x 3 that overlap; False: the first version's
            patches side by side.
        drop_path: Probability of skipping a branch in the last block in training; it grows evenly from 0 in the first.

    Raises:
        ConfigError: If arguments do not fit together, or an input has another number of axes or channels.

    Source: Liu et al., VMamba: Visual State Space Model, NeurIPS 2024, arXiv 2401.10166.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1000,
        variant: str = "T",
        out_indices: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        dims: int | Sequence[int] | None = None,
        d_state: int | None = None,
        ssm_ratio: float | None = None,
        dt_rank: int | None = None,
        conv_kernel: int = 3,
        conv_bias: bool | None = None,
        mlp_ratio: float | None = None,
        gate: bool | None = None,
        stacked_projections: bool | None = None,
        overlapping: bool | None = None,
        drop_path: float | None = None,
    ):
        super().__init__()
        if variant not in VARIANTS:
            hint = did_you_mean(str(variant), VARIANTS)
            raise ConfigError(f"VMamba: variant must be one of {', '.join(VARIANTS)}, found {variant!r}.{hint}")
        given = dict(
            depths=depths, dims=dims, d_state=d_state, ssm_ratio=ssm_ratio, conv_bias=conv_bias, mlp_ratio=mlp_ratio
        )
        given.update(gate=gate, stacked_projections=stacked_projections, overlapping=overlapping, drop_path=drop_path)
        made = {name: VARIANTS[variant][name] if value is None else value for name, value in given.items()}
        depths, widths = _stages(made["depths"], made["dims"])
        _check_arguments(made, conv_kernel, dt_rank, in_channels, num_classes)
        self.in_channels, self.num_classes = in_channels, num_classes
        self.least_size = 1 if made["overlapping"] else PATCH
        self.out_indices = checked_indices("VMamba", out_indices, len(depths))
        rates = iter(torch.linspace(0, made["drop_path"], sum(depths), device="cpu").tolist())
        scan = dict(dt_rank=dt_rank, kernel=conv_kernel, d_state=made["d_state"], ratio=made["ssm_ratio"])
        scan.update(conv_bias=made["conv_bias"], gate=made["gate"], stacked=made["stacked_projections"])
        self.patch_embed = _patches(in_channels, widths[0], made["overlapping"])
        self.layers = nn.ModuleList()
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = [
                VSSBlock(width, SelectiveScan2D(width, **scan), made["mlp_ratio"], next(rates)) for _ in range(depth)
            ]
            step = _step(width, widths[i + 1], made["overlapping"]) if i + 1 < len(widths) else None
            self.layers.append(Stage(blocks, step))
        if self.out_indices is None:
            self.classifier = nn.Module()
            self.classifier.norm = ChannelNorm(widths[-1])
            self.classifier.head = nn.Linear(widths[-1], num_classes)
        else:
            for i in self.out_indices:
                self.add_module(f"outnorm{i}", ChannelNorm(widths[i]))
            self.feature_channels = tuple(widths[i] for i in self.out_indices)
            leave_out_on_load(self, "classifier.")
        self.apply(_initialise)

    def forward(self, inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return class scores (N, K), or with `out_indices` maps (N, C_i, Y_i, X_i), the finest first.

        Args:
            inputs: (N, C, Y, X).
        """
        check_image("VMamba", inputs, self.in_channels)
        if min(inputs.shape[2:]) < self.least_size:
            raise ConfigError(
                f"VMamba: patches side by side need images of at least {PATCH} pixels along both axes, found "
                f"{tuple(inputs.shape[2:])} (Y, X)."
            )
        x, maps = self.patch_embed(inputs), []
        for i, stage in enumerate(self.layers):
            x = stage.blocks(x)
            if self.out_indices is not None and i in self.out_indices:
                maps.append(self.get_submodule(f"outnorm{i}")(x))
            x = stage.downsample(x)
        if self.out_indices is not None:
            return tuple(maps)
        return self.classifier.head(self.classifier.norm(x).mean((2, 3)))


def _patches(in_channels: int, width: int, overlapping: bool) -> nn.Sequential:
    """Return what turns an image into the first map, a quarter of its size; the numbers are those of checkpoints."""
    if not overlapping:
        return _numbered({0: nn.Conv2d(in_channels, width, PATCH, PATCH), 2: ChannelNorm(width)})
    half = width // 2
    return _numbered(
        {
            0: nn.Conv2d(in_channels, half, 3, 2, 1),
            2: ChannelNorm(half),
            4: nn.GELU(),
            5: nn.Conv2d(half, width, 3, 2, 1),
            7: ChannelNorm(width),
        }
    )


def _step(width: int, wider: int, overlapping: bool) -> nn.Sequential:
    """Return what halves a map between two stages."""
    if overlapping:
        return _numbered({1: nn.Conv2d(width, wider, 3, 2, 1), 3: ChannelNorm(wider)})
    return _numbered({0: PatchGathering(), 1: ChannelNorm(4 * width), 2: PixelLinear(4 * width, wider, bias=False)})


def _numbered(parts: Mapping[int, nn.Module]) -> nn.Sequential:
    return nn.Sequential(*(parts.get(i, nn.Identity()) for i in range(max(parts) + 1)))


def _stages(depths: Sequence[int], dims: int | Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the blocks and the channels of every stage."""
    depths = list(depths)
    widths = [dims * 2**i for i in range(len(depths))] if isinstance(dims, int) else list(dims)
    if not depths or len(widths) != len(depths) or min(depths) < 1 or min(widths) < 2:
        raise ConfigError(
            f"VMamba: depths and dims need a number for each stage, found depths {depths} and dims {dims}. Give dims as "
            "one number to have it doubled from stage to stage."
        )
    return depths, widths


def _check_arguments(
    made: Mapping[str, Any], conv_kernel: int, dt_rank: int | None, in_channels: int, num_classes: int
) -> None:
    least = dict(in_channels=in_channels, num_classes=num_classes, d_state=made["d_state"], conv_kernel=conv_kernel)
    if dt_rank is not None:
        least["dt_rank"] = dt_rank
    for name, value in least.items():
        if value < 1:
            raise ConfigError(f"VMamba: {name} must be at least 1, found {value}.")
    if conv_kernel % 2 == 0:
        raise ConfigError(f"VMamba: conv_kernel must be odd, found {conv_kernel}.")
    if made["ssm_ratio"] <= 0 or made["mlp_ratio"] < 0 or not 0 <= made["drop_path"] < 1:
        raise ConfigError(
            "VMamba: ssm_ratio must be positive, mlp_ratio not negative and drop_path within [0, 1), found "
            f"{made['ssm_ratio']}, {made['mlp_ratio']} and {made['drop_path']}."
        )


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _published(variant: str, parameters: int, gmacs: float, scan_gflops: float, **arguments: Any) -> Configuration:
    arguments = dict(in_channels=3, num_classes=1000, variant=variant, **arguments)
    return Configuration(arguments, parameters, (3, 224, 224), gmacs, scan_gflops)


_SMALL: dict[str, Any] = dict(depths=(1, 1, 1, 1), dims=16, ssm_ratio=2.0, drop_path=0.0)

CARD = NetworkCard(
    name="VMamba",
    factory="itkit.models.vmamba:VMamba",
    title="VMamba T, S, B",
    paper="Liu et al., NeurIPS 2024, arXiv 2401.10166",
    licence="original: MIT",
    dims=(2,),
    configurations={
        "VMamba_T_s1l8": _published("T", 30_249_064, 4.81262, 0.0695439),
        "VMamba_S_s2l15": _published("S", 50_147_752, 8.49898, 0.18545),
        "VMamba_B_s2l15": _published("B", 88_557_800, 15.0699, 0.247267),
        "VMamba_T_s2l5": _published("T_s2l5", 30_705_832, 4.71621, 0.119218),
        "VMamba_S_s1l20": _published("S_s1l20", 49_012_840, 8.46955, 0.109283),
        "VMamba_B_s1l20": _published("B_s1l20", 86_614_504, 15.0306, 0.145711),
        "VanillaVMamba_T": _published("vanilla_T", 22_893_448, 3.67696, 1.93398),
        "VMamba_small": Configuration(dict(in_channels=3, num_classes=5, **_SMALL), 399_701),
        "Backbone_VMamba_T_s1l8": Configuration(dict(in_channels=3, variant="T", out_indices=(0, 1, 2, 3)), 29_481_408),
    },
    small=dict(in_channels=1, num_classes=2, **_SMALL),
    small_size=(35, 50),
    segments=False,
    notes=(
        "With out_indices it is an encoder for MMSegBackboneHead: dict(type='itkit.VMamba', out_indices=(0, 1, 2, 3)).",
        "T is s1l8, S and B are s2l15, the authors' choice; vanilla_* are the first version, whose keys differ.",
    ),
)
