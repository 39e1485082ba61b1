"""Blocks of the first visual state space models (VMamba): scans over a map whose channels are its last axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itkit.ops.cross_scan import PATHS, cross_selective_scan
from itkit.ops.scan_parameters import initial_decays, initial_step_biases, initial_step_weights

EXPANSION = 2
"""Channels of the scans, as a multiple of the map's."""


class SelectiveScan2D(nn.Module):
    """The mixing of pixels: projection, depthwise convolution, SiLU, four scans, norm, gate, projection.

    Args:
        width: Channels of the input and the output.
        d_state: Numbers that the state of a channel has.
    """

    def __init__(self, width: int, d_state: int):
        super().__init__()
        inner, rank = EXPANSION * width, math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        projections = [nn.Linear(inner, rank + 2 * d_state).weight.detach() for _ in range(PATHS)]
        self.x_proj_weight = nn.Parameter(torch.stack(projections))
        self.dt_projs_weight = nn.Parameter(initial_step_weights(PATHS, inner, rank))
        self.dt_projs_bias = nn.Parameter(initial_step_biases(PATHS, inner))
        self.A_logs = nn.Parameter(initial_decays(PATHS * inner, d_state))
        self.Ds = nn.Parameter(torch.ones(PATHS * inner))
        self.out_norm, self.out_proj = nn.LayerNorm(inner), nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, Y, X, width) for `x` of that shape."""
        x, gate = self.in_proj(x).chunk(2, -1)
        x = F.silu(self.conv2d(x.permute(0, 3, 1, 2)))
        coefficients = self.x_proj_weight, self.dt_projs_weight, self.dt_projs_bias, self.A_logs, self.Ds
        y = cross_selective_scan(x, *coefficients).permute(0, 2, 3, 1)
        return self.out_proj(self.out_norm(y) * F.silu(gate))


class VSSBlock(nn.Module):
    """``x + scan(norm(x))``.

    Args:
        width: Channels.
        d_state: Numbers that the state of a channel has.
        drop_path: Probability that a sample skips the scan in training.
    """

    def __init__(self, width: int, d_state: int, drop_path: float):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = SelectiveScan2D(width, d_state)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, Y, X, width) for `x` of that shape."""
        y = self.self_attention(self.ln_1(x))
        if self.training and self.drop_path > 0:
            keep = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.drop_path
            y = y * keep / (1 - self.drop_path)
        return x + y


class VSSStage(nn.Module):
    """Blocks of the same width.

    Args:
        width: Channels.
        d_state: Numbers that the state of a channel has.
        drop_paths: Probability of skipping, for each block.
    """

    def __init__(self, width: int, d_state: int, drop_paths: Sequence[float]):
        super().__init__()
        self.blocks = nn.ModuleList(VSSBlock(width, d_state, rate) for rate in drop_paths)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, Y, X, width) for `x` of that shape."""
        for block in self.blocks:
            x = block(x)
        return x


class PatchEmbedding(nn.Module):
    """Tokens from patches side by side.

    Args:
        in_channels: Channels of the image.
        width: Channels of a token.
        patch: Edge length of a patch, in pixels.
    """

    def __init__(self, in_channels: int, width: int, patch: int):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(in_channels, width, patch, patch), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, Y / patch, X / patch, width) for `x` (N, C, Y, X)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Halve a map: the pixels of 2 x 2 become channels, which a norm and a linear layer halve.

    Args:
        width: Channels of the input.
    """

    def __init__(self, width: int):
        super().__init__()
        self.reduction, self.norm = nn.Linear(4 * width, 2 * width, bias=False), nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, Y / 2, X / 2, 2 * width) for `x` (N, Y, X, width), even sizes."""
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.reduction(self.norm(x))


class VSSEncoder(nn.Module):
    """Four (or more, or fewer) stages of blocks, with a step to half the size and double the channels between.

    Args:
        in_channels: Channels of the image.
        patch: Pixels of a token along each axis.
        depths: Blocks of each stage.
        widths: Channels of each stage, each double the one before.
        d_state: Numbers that the state of a channel has.
        drop_path: Probability of skipping the last block in training; it grows evenly from 0 in the first.
    """

    def __init__(
        self,
        in_channels: int,
        patch: int,
        depths: Sequence[int],
        widths: Sequence[int],
        d_state: int,
        drop_path: float,
    ):
        super().__init__()
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        self.patch_embed = PatchEmbedding(in_channels, widths[0], patch)
        self.layers = nn.ModuleList(
            VSSStage(width, d_state, [next(rates) for _ in range(depth)])
            for depth, width in zip(depths, widths, strict=True)
        )
        self.downsamples = nn.ModuleList(PatchMerging(width) for width in widths[:-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return maps (N, Y_i, X_i, C_i), the finest first, for `x` (N, C, Y, X)."""
        x, maps = self.patch_embed(x), []
        for i, stage in enumerate(self.layers):
            x = stage(x)
            maps.append(x)
            if i < len(self.downsamples):
                x = self.downsamples[i](x)
        return maps
