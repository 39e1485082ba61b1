"""A residual U-Net that never convolves at full resolution, and so is several times cheaper on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError
from itkit.registry import MODELS

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.01),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
NORMS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "group": lambda dims, width, groups: nn.GroupNorm(min(groups, width), width),
    "instance": lambda dims, width, groups: {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims](width, affine=True),
    "batch": lambda dims, width, groups: {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](width),
}


def space_to_depth(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Fold blocks of `stride` cells into channels, losing nothing.

    Args:
        x: (N, C, S_1, ..., S_d), each S_i a multiple of ``stride[i]``.
        stride: Edge lengths of a block, one for each spatial axis.

    Returns:
        (N, C * prod(stride), S_1 / stride[0], ...). The place in the block varies faster than the channel.
    """
    n, c, *size = x.shape
    dims = len(size)
    split = [part for s, r in zip(size, stride, strict=True) for part in (s // r, r)]
    order = [0, 1, *(3 + 2 * i for i in range(dims)), *(2 + 2 * i for i in range(dims))]
    return x.reshape(n, c, *split).permute(order).flatten(1, 1 + dims)


def depth_to_space(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Undo `space_to_depth`: (N, C * prod(stride), s_1, ...) to (N, C, s_1 * stride[0], ...)."""
    n, c, *size = x.shape
    dims = len(size)
    for r in stride:
        c //= r
    order = [0, 1, *(axis for i in range(dims) for axis in (2 + dims + i, 2 + i))]
    full = [s * r for s, r in zip(size, stride, strict=True)]
    return x.reshape(n, c, *stride, *size).permute(order).reshape(n, c, *full)


class ResidualBlock(nn.Module):
    """Pre-activation residual block: ``skip(x) + conv(act(norm(conv(act(norm(x))))))``.

    Args:
        dims: 2 or 3.
        in_width: Channels of the input.
        out_width: Channels of the output. A 1-wide convolution adapts the skip where the two differ.
        norm: Makes a normalisation from a number of channels.
        activation: Makes an activation.
        drop_path: Probability that a sample skips the residual branch in training.

    Source: He et al., Identity Mappings in Deep Residual Networks, 2016; Huang et al., Stochastic Depth, 2016.
    """

    def __init__(
        self,
        dims: int,
        in_width: int,
        out_width: int,
        norm: Callable[[int], nn.Module],
        activation: Callable[[], nn.Module],
        drop_path: float = 0.0,
    ):
        super().__init__()
        conv = CONVOLUTIONS[dims]
        self.norm1, self.conv1 = norm(in_width), conv(in_width, out_width, 3, padding=1, bias=False)
        self.norm2, self.conv2 = norm(out_width), conv(out_width, out_width, 3, padding=1, bias=False)
        self.skip = nn.Identity() if in_width == out_width else conv(in_width, out_width, 1, bias=False)
        self.activation = activation()
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_width, ...) for `x` (N, in_width, ...)."""
        y = self.conv1(self.activation(self.norm1(x)))
        y = self.conv2(self.activation(self.norm2(y)))
        if self.training and self.drop_path > 0:
            keep = torch.rand([x.shape[0]] + [1] * (x.ndim - 1), device=x.device) >= self.drop_path
            y = y * keep / (1 - self.drop_path)
        return self.skip(x) + y


@MODELS.register_module()
class SubvoxelUNet(nn.Module):
    """Residual U-Net on a folded grid: (N, C, ...) to logits (N, K, ...) of the same size.

    The image is folded without loss (space to depth) by `stem_stride`, the U-Net works on the folded grid, and its head
    gives for every folded cell the logits of all voxels in it, which are unfolded (depth to space). With `stem_stride`
    1 it is an ordinary residual U-Net.

    Inputs of any size: a size that is not a multiple of `divisor` is padded by repeating the edge (half of it at each
    side), and the logits are cropped back.

    Args:
        spatial_dims: 2 or 3.
        in_channels: C.
        num_classes: K, the number of output channels.
        widths: Channels of each resolution level, finest first.
        blocks: Residual blocks of each level on the way down; one number for all.
        decoder_blocks: Residual blocks of each level but the coarsest on the way up, finest first; one number for all.
        stem_stride: 1 or 2 (or more), for all axes or one number an axis in the order (Z, Y, X).
        strides: Step from each level to the next coarser one; an entry is a number or one an axis. None: 2 everywhere.
        norm: ``"group"``, ``"instance"`` or ``"batch"``.
        groups: Groups of ``norm="group"``.
        activation: ``"leaky"`` (slope 0.01), ``"relu"``, ``"silu"`` or ``"gelu"``.
        upsample: ``"nearest"`` repeats cells, ``"shuffle"`` predicts them by depth to space.
        merge: Skips are joined by concatenation (``"cat"``) or addition (``"add"``).
        drop_path: Probability of skipping a residual branch, see `ResidualBlock`.
        dropout: Dropout probability in front of the head.
        deep_supervision: Number of extra heads on the coarser decoder levels. In training the output is then a list:
            the logits at full size, then at 1/stride of the first level's step, and so on. True means one.
        channels_last: Keep the weights channels last, which some CPUs and GPUs convolve faster.

    Raises:
        ConfigError: If arguments do not fit together; or an input has another number of axes or channels, or needs
            padding in training with deep supervision.

    Source: the space-to-depth stem and head follow Shi et al., Real-Time Single Image and Video Super-Resolution
    (sub-pixel convolution), 2016; the rest Ronneberger et al., U-Net, 2015.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        num_classes: int = 2,
        widths: Sequence[int] = (32, 64, 128),
        blocks: int | Sequence[int] = 1,
        decoder_blocks: int | Sequence[int] = 1,
        stem_stride: int | Sequence[int] = 2,
        strides: Sequence[int | Sequence[int]] | None = None,
        norm: str = "group",
        groups: int = 8,
        activation: str = "leaky",
        upsample: str = "nearest",
        merge: str = "cat",
        drop_path: float = 0.0,
        dropout: float = 0.0,
        deep_supervision: int = 0,
        channels_last: bool = False,
    ):
        super().__init__()
        _choice("spatial_dims", spatial_dims, CONVOLUTIONS)
        _choice("norm", norm, NORMS)
        _choice("activation", activation, ACTIVATIONS)
        _choice("upsample", upsample, ("nearest", "shuffle"))
        _choice("merge", merge, ("cat", "add"))
        widths = list(widths)
        steps = len(widths) - 1
        if steps < 1:
            raise ConfigError(f"SubvoxelUNet needs widths of at least two levels, found {widths}.")
        if norm == "group" and any(w % min(groups, w) for w in widths):
            raise ConfigError(f"SubvoxelUNet: every width must be a multiple of groups={groups}, found {widths}.")
        if not 0 <= deep_supervision <= steps:
            raise ConfigError(
                f"SubvoxelUNet with {len(widths)} levels has room for 0 to {steps} deep-supervision heads, found "
                f"{int(deep_supervision)}."
            )
        blocks = _each("blocks", blocks, len(widths))
        decoder_blocks = _each("decoder_blocks", decoder_blocks, steps)
        self.spatial_dims, self.in_channels, self.num_classes = spatial_dims, in_channels, num_classes
        self.upsample, self.merge = upsample, merge
        self.stem_stride = _per_axis("stem_stride", stem_stride, spatial_dims)
        if strides is None:
            strides = [2] * steps
        elif len(strides) != steps:
            raise ConfigError(f"SubvoxelUNet: strides needs {steps} entries (one a step down), found {len(strides)}.")
        self.strides = [_per_axis("strides", s, spatial_dims) for s in strides]

        conv = CONVOLUTIONS[spatial_dims]
        cell = _product(self.stem_stride)

        def make_norm(width: int) -> nn.Module:
            return NORMS[norm](spatial_dims, width, groups)

        def make_block(in_width: int, out_width: int) -> nn.Module:
            return ResidualBlock(spatial_dims, in_width, out_width, make_norm, ACTIVATIONS[activation], drop_path)

        self.stem = conv(in_channels * cell, widths[0], 3, padding=1, bias=False)
        self.encoders, self.downs, self.ups, self.decoders = (nn.ModuleList() for _ in range(4))
        for level, width in enumerate(widths):
            self.encoders.append(nn.Sequential(*[make_block(width, width) for _ in range(blocks[level])]))
            if level < steps:
                s = self.strides[level]
                self.downs.append(conv(width, widths[level + 1], s, stride=s, bias=False))
        for level, width in enumerate(widths[:-1]):
            up_width = width * _product(self.strides[level]) if upsample == "shuffle" else width
            self.ups.append(conv(widths[level + 1], up_width, 1, bias=False))
            joined = 2 * width if merge == "cat" else width
            self.decoders.append(
                nn.Sequential(*[make_block(joined if i == 0 else width, width) for i in range(decoder_blocks[level])])
            )
            if merge == "cat" and decoder_blocks[level] == 0:
                raise ConfigError("SubvoxelUNet: merge='cat' needs at least one decoder block at every level.")
        self.norm = make_norm(widths[0])
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        self.head = conv(widths[0], num_classes * cell, 1)
        self.aux_heads = nn.ModuleList(
            conv(widths[level], num_classes * cell, 1) for level in range(1, 1 + int(deep_supervision))
        )
        self._initialise()
        if channels_last:
            self.to(memory_format=torch.channels_last if spatial_dims == 2 else torch.channels_last_3d)

    @property
    def divisor(self) -> tuple[int, ...]:
        """Sizes that need no padding are multiples of this, one number for each spatial axis in the order (Z, Y, X)."""
        return tuple(_product(axis) for axis in zip(self.stem_stride, *self.strides, strict=True))

    @torch.no_grad()
    def _initialise(self) -> None:
        """He initialisation; residual branches and the head begin small, so that the first steps are stable."""
        for module in self.modules():
            if isinstance(module, CONVOLUTIONS[self.spatial_dims]):
                nn.init.kaiming_normal_(module.weight, a=0.01, mode="fan_in")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                module.conv2.weight.mul_(0.3)
        self.head.weight.mul_(0.3)

    def forward(self, inputs: Tensor) -> Tensor | list[Tensor]:
        """Return logits (N, K, ...) of the size of `inputs`; in training with deep supervision a list of them.

        Args:
            inputs: (N, C, Z, Y, X), or (N, C, Y, X) for ``spatial_dims=2``.
        """
        if inputs.ndim != self.spatial_dims + 2 or inputs.shape[1] != self.in_channels:
            raise ConfigError(
                f"SubvoxelUNet takes (N, {self.in_channels}, {'Z, ' * (self.spatial_dims == 3)}Y, X), found "
                f"{tuple(inputs.shape)}. Check spatial_dims, in_channels and the pipeline."
            )
        size = inputs.shape[2:]
        missing = [-n % d for n, d in zip(size, self.divisor, strict=True)]
        before = [m // 2 for m in missing]
        padded = any(missing)
        if padded and self.training and len(self.aux_heads):
            raise ConfigError(
                f"SubvoxelUNet: with deep supervision the training size must be a multiple of {self.divisor}, found "
                f"{tuple(size)}. Choose such a patch size."
            )
        if padded:
            edges = [edge for b, m in zip(before[::-1], missing[::-1], strict=True) for edge in (b, m - b)]
            inputs = F.pad(inputs, edges, mode="replicate")
        x = self.stem(space_to_depth(inputs, self.stem_stride))
        skips = []
        for level, encoder in enumerate(self.encoders):
            x = encoder(x)
            if level < len(self.downs):
                skips.append(x)
                x = self.downs[level](x)
        coarse: list[Tensor] = []
        for level in range(len(self.ups) - 1, -1, -1):
            if self.training and level < len(self.aux_heads):
                coarse.insert(0, depth_to_space(self.aux_heads[level](x), self.stem_stride))
            x = self._join(skips[level], self.ups[level](x), level)
            x = self.decoders[level](x)
        logits = depth_to_space(self.head(self.dropout(self.activation(self.norm(x)))), self.stem_stride)
        if padded:
            logits = logits[(..., *[slice(b, b + n) for b, n in zip(before, size, strict=True)])]
        return [logits, *coarse] if coarse else logits

    def _join(self, skip: Tensor, x: Tensor, level: int) -> Tensor:
        if self.upsample == "shuffle":
            x = depth_to_space(x, self.strides[level])
        else:
            x = F.interpolate(x, size=skip.shape[2:], mode="nearest")
        return torch.cat([skip, x], 1) if self.merge == "cat" else skip + x


def _product(numbers: Sequence[int]) -> int:
    result = 1
    for n in numbers:
        result *= n
    return result


def _choice(name: str, value: object, allowed: Sequence | dict) -> None:
    if value not in allowed:
        hint = did_you_mean(value, allowed) if isinstance(value, str) else ""
        raise ConfigError(f"SubvoxelUNet: {name} must be one of {', '.join(map(str, allowed))}, found {value!r}.{hint}")


def _each(name: str, value: int | Sequence[int], count: int) -> list[int]:
    values = [value] * count if isinstance(value, int) else list(value)
    if len(values) != count:
        raise ConfigError(f"SubvoxelUNet: {name} needs {count} numbers (or one for all), found {values}.")
    return values


def _per_axis(name: str, value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    values = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(values) != dims or any(not isinstance(v, int) or v < 1 for v in values):
        raise ConfigError(f"SubvoxelUNet: {name} must be a positive number or {dims} of them, found {value!r}.")
    return values
