"""MedNeXt: a U-shaped network of inverted-bottleneck blocks with large depthwise kernels, in 2D and 3D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError
from itkit.models.zoo import Configuration, NetworkCard
from itkit.registry import MODELS

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
LEVELS = 4
"""Steps down (and up); a size is divided by 2 at each."""
VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "S": ((2,) * 9, (2,) * 9),
    "B": ((2,) * 9, (2, 3, 4, 4, 4, 4, 4, 3, 2)),
    "M": ((3, 4, 4, 4, 4, 4, 4, 4, 3), (2, 3, 4, 4, 4, 4, 4, 3, 2)),
    "L": ((3, 4, 8, 8, 8, 8, 8, 4, 3), (3, 4, 8, 8, 8, 8, 8, 4, 3)),
}
"""Blocks and expansion ratios of the nine stages: encoder 0 to 3, bottleneck, decoder 3 to 0."""


class ChannelLayerNorm(nn.Module):
    """Layer normalisation over the channels of (N, C, ...), with a scale and a shift for each.

    Args:
        width: C.
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, ...), normalised at each place by itself."""
        return F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, 1e-5).movedim(-1, 1)


class MedNeXtBlock(nn.Module):
    """Depthwise convolution, normalisation, expansion, GELU, compression, and the input added where asked.

    Args:
        dims: 2 or 3.
        in_width: Channels of the input.
        out_width: Channels of the output.
        expansion: Channels between expansion and compression, as a multiple of `in_width`.
        kernel_size: Of the depthwise convolution, odd.
        residual: Add the input; a resampling block adds its input resampled by a 1-wide strided convolution.
        norm: ``"group"``, one group for each channel, or ``"layer"``, over the channels.
        grn: Global response normalisation between GELU and compression.
        step: ``"same"`` keeps the size, ``"down"`` halves it, ``"up"`` doubles it.
    """

    def __init__(
        self,
        dims: int,
        in_width: int,
        out_width: int,
        expansion: int,
        kernel_size: int,
        residual: bool = True,
        norm: str = "group",
        grn: bool = False,
        step: str = "same",
    ):
        super().__init__()
        conv, stride = CONVOLUTIONS[dims], 1 if step == "same" else 2
        resampling = TRANSPOSED[dims] if step == "up" else conv
        wide = expansion * in_width
        self.residual, self.step = residual, step
        self.conv1 = resampling(in_width, in_width, kernel_size, stride, kernel_size // 2, groups=in_width)
        self.norm = nn.GroupNorm(in_width, in_width) if norm == "group" else ChannelLayerNorm(in_width)
        self.conv2, self.conv3 = conv(in_width, wide, 1), conv(wide, out_width, 1)
        if residual and step != "same":
            self.res_conv = resampling(in_width, out_width, 1, stride)
        self.grn = grn
        if grn:
            self.grn_beta = nn.Parameter(torch.zeros(1, wide, *[1] * dims))
            self.grn_gamma = nn.Parameter(torch.zeros(1, wide, *[1] * dims))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_width, ...) for `x` (N, in_width, ...)."""
        y = F.gelu(self.conv2(self.norm(self._depthwise(x))))
        if self.grn:
            y = self._respond(y)
        y = self.conv3(y)
        if self.residual:
            y = y + (x if self.step == "same" else self.res_conv(x))
        # A transposed convolution of stride 2 gives 2n - 1 cells; the missing one goes before the first, as zeros.
        return F.pad(y, (1, 0) * (x.ndim - 2)) if self.step == "up" else y

    def _depthwise(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.ndim == 5 and self.step != "up" and torch.is_grad_enabled():
            # PyTorch's gradient of a depthwise 3D convolution takes two thirds of the time where channels lie together.
            return self.conv1(x.contiguous(memory_format=torch.channels_last_3d)).contiguous()
        return self.conv1(x)

    def _respond(self, x: Tensor) -> Tensor:
        """Return `x` with every channel scaled by its norm over space against the mean norm of all channels.

        Source: Woo et al., ConvNeXt V2, 2023.
        """
        norm = torch.linalg.vector_norm(x, dim=tuple(range(2, x.ndim)), keepdim=True)
        relative = norm / (norm.mean(dim=1, keepdim=True) + 1e-6)
        return torch.addcmul(self.grn_beta, x, torch.addcmul(torch.ones_like(relative), self.grn_gamma, relative))


class OutputHead(nn.Module):
    """A 1-wide transposed convolution from features to logits.

    Args:
        dims: 2 or 3.
        in_width: Channels of the features.
        num_classes: Channels of the logits.
    """

    def __init__(self, dims: int, in_width: int, num_classes: int):
        super().__init__()
        self.conv_out = TRANSPOSED[dims](in_width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes, ...) for features (N, in_width, ...)."""
        return self.conv_out(x)


@MODELS.register_module()
class MedNeXt(nn.Module):
    """MedNeXt S, B, M or L: (N, C, ...) to logits (N, K, ...) of the same size.

    Official checkpoints load strictly. Their parameter ``dummy_tensor``, which takes no part in anything, is here too,
    frozen.

    Args:
        spatial_dims: 2 or 3.
        in_channels: C.
        num_classes: K.
        variant: ``"S"``, ``"B"``, ``"M"`` or ``"L"``: `blocks` and `expansion` where they are not given.
        kernel_size: Of the depthwise convolutions of the encoder and bottleneck, 3 or 5 in the paper; odd.
        decoder_kernel_size: Of those of the decoder. None: `kernel_size`.
        width: Channels of the finest level, doubled at each coarser one.
        blocks: Blocks of the nine stages: encoder 0 to 3, bottleneck, decoder 3 to 0. None: the variant's.
        expansion: Expansion ratio, one for all or one for each of the nine stages. A block that steps down has the ratio
            of the stage after it, and so has one that steps up. None: the variant's.
        residual: Blocks add their input.
        residual_resampling: Blocks that step down or up add their resampled input.
        norm: ``"group"`` (one group for each channel, as published) or ``"layer"`` (over the channels).
        grn: Global response normalisation in every block but the first step down, as the original has it.
        deep_supervision: Return a list: logits at full size, 1/2, 1/4, 1/8, 1/16; in training and in evaluation.
        checkpointing: In training, keep only the inputs of blocks and compute the rest again in the backward pass: less
            memory, about a third more time.

    Shape:
        Input (N, C, Z, Y, X), or (N, C, Y, X) for ``spatial_dims=2``; sizes are multiples of 16, one of them at least
        32 for a batch of one with ``norm="group"``.

    Raises:
        ConfigError: If arguments do not fit together, or an input has another number of axes or channels, or a size that
            is not a multiple of 16.

    Source: Roy et al., MedNeXt: Transformer-driven Scaling of ConvNets for Medical Image Segmentation, MICCAI 2023,
    https://arxiv.org/abs/2303.09975. The original code is Apache-2.0.
    """

    divisor = 2**LEVELS

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        num_classes: int = 2,
        variant: str = "S",
        kernel_size: int = 3,
        decoder_kernel_size: int | None = None,
        width: int = 32,
        blocks: Sequence[int] | None = None,
        expansion: int | Sequence[int] | None = None,
        residual: bool = True,
        residual_resampling: bool = True,
        norm: str = "group",
        grn: bool = False,
        deep_supervision: bool = False,
        checkpointing: bool = False,
    ):
        super().__init__()
        _choice("spatial_dims", spatial_dims, CONVOLUTIONS)
        _choice("variant", variant, VARIANTS)
        _choice("norm", norm, ("group", "layer"))
        if min(in_channels, num_classes, width) < 1:
            raise ConfigError(
                "MedNeXt: in_channels, num_classes and width must be at least 1, found "
                f"{in_channels}, {num_classes} and {width}."
            )
        if decoder_kernel_size is None:
            decoder_kernel_size = kernel_size
        for name, size in (("kernel_size", kernel_size), ("decoder_kernel_size", decoder_kernel_size)):
            if not isinstance(size, int) or size < 1 or size % 2 == 0:
                raise ConfigError(f"MedNeXt: {name} must be a positive odd number, found {size!r}.")
        blocks = _nine("blocks", VARIANTS[variant][0] if blocks is None else blocks)
        ratios = _nine("expansion", VARIANTS[variant][1] if expansion is None else expansion)
        self.spatial_dims, self.in_channels, self.num_classes = spatial_dims, in_channels, num_classes
        self.norm, self.deep_supervision, self.checkpointing = norm, deep_supervision, checkpointing

        def stage(index: int, level: int, kernel: int) -> nn.Sequential:
            at = width * 2**level
            return nn.Sequential(
                *[
                    MedNeXtBlock(spatial_dims, at, at, ratios[index], kernel, residual, norm, grn)
                    for _ in range(blocks[index])
                ]
            )

        def resampling(index: int, level: int, to: int, kernel: int, step: str, grn: bool) -> MedNeXtBlock:
            widths = width * 2**level, width * 2**to
            return MedNeXtBlock(spatial_dims, *widths, ratios[index], kernel, residual_resampling, norm, grn, step)

        self.stem = CONVOLUTIONS[spatial_dims](in_channels, width, 1)
        for level in range(LEVELS):
            self.add_module(f"enc_block_{level}", stage(level, level, kernel_size))
            down = resampling(level + 1, level, level + 1, kernel_size, "down", grn and level > 0)
            self.add_module(f"down_{level}", down)
        self.bottleneck = stage(LEVELS, LEVELS, kernel_size)
        for level in reversed(range(LEVELS)):
            index = 2 * LEVELS - level
            self.add_module(f"up_{level}", resampling(index, level + 1, level, decoder_kernel_size, "up", grn))
            self.add_module(f"dec_block_{level}", stage(index, level, decoder_kernel_size))
        for level in range(LEVELS + 1 if deep_supervision else 1):
            self.add_module(f"out_{level}", OutputHead(spatial_dims, width * 2**level, num_classes))
        self.dummy_tensor = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor | list[Tensor]:
        """Return logits (N, K, ...) of the size of `inputs`; with deep supervision a list, the full size first.

        Args:
            inputs: (N, C, Z, Y, X), or (N, C, Y, X) for ``spatial_dims=2``.
        """
        self._check(inputs)
        x, skips = self.stem(inputs), []
        for level in range(LEVELS):
            x = self._stage(f"enc_block_{level}", x)
            skips.append(x)
            x = self._run(self.get_submodule(f"down_{level}"), x)
        x = self._stage("bottleneck", x)
        outputs = [self.out_4(x)] if self.deep_supervision else []
        for level in reversed(range(LEVELS)):
            x = skips.pop() + self._run(self.get_submodule(f"up_{level}"), x)
            x = self._stage(f"dec_block_{level}", x)
            if level == 0 or self.deep_supervision:
                outputs.insert(0, self.get_submodule(f"out_{level}")(x))
        return outputs if self.deep_supervision else outputs[0]

    def _stage(self, name: str, x: Tensor) -> Tensor:
        for block in self.get_submodule(name):
            x = self._run(block, x)
        return x

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def _check(self, inputs: Tensor) -> None:
        size = tuple(inputs.shape[2:])
        if inputs.ndim != self.spatial_dims + 2 or inputs.shape[1] != self.in_channels:
            raise ConfigError(
                f"MedNeXt takes (N, {self.in_channels}, {'Z, ' * (self.spatial_dims == 3)}Y, X), found "
                f"{tuple(inputs.shape)}. Check spatial_dims, in_channels and the pipeline."
            )
        if any(n % self.divisor for n in size):
            raise ConfigError(
                f"MedNeXt: every size must be a multiple of {self.divisor}, found {size}. Choose such a patch size."
            )
        if inputs.shape[0] == 1 and max(size) == self.divisor and self.norm == "group":
            raise ConfigError(
                f"MedNeXt: size {size} leaves one cell at the bottleneck, which cannot be normalised in a batch of one. "
                f"Make one axis at least {2 * self.divisor}, or the batch larger."
            )


def upsample_kernels(state: Mapping[str, Tensor], network: MedNeXt) -> dict[str, Tensor]:
    """Return weights for `network` from those of a MedNeXt with smaller depthwise kernels (UpKern).

    Kernels are resampled linearly to the larger size; all other weights are taken as they are.

    Args:
        state: Weights of the trained network, e.g. with kernel size 3. Not modified.
        network: The same network but for its kernel size, e.g. 5. Not modified; load the result into it.

    Raises:
        ConfigError: If the two networks differ in more than the size of their kernels.

    Source: Roy et al., MedNeXt, 2023, section 2.3.
    """
    wanted = network.state_dict()
    differing = [key for key in (*wanted, *state) if key not in state or key not in wanted]
    differing += [key for key in wanted if key in state and state[key].shape[:2] != wanted[key].shape[:2]]
    if differing:
        raise ConfigError(
            f"upsample_kernels: the networks differ in more than their kernels, first in {differing[0]}. Build both with "
            "the same arguments but kernel_size and decoder_kernel_size."
        )
    mode = "bilinear" if network.spatial_dims == 2 else "trilinear"
    return {
        key: state[key].clone()
        if state[key].shape == value.shape
        else F.interpolate(state[key], value.shape[2:], mode=mode, align_corners=False)
        for key, value in wanted.items()
    }


def _choice(name: str, value: object, allowed: Sequence | Mapping) -> None:
    if value not in allowed:
        hint = did_you_mean(value, allowed) if isinstance(value, str) else ""
        raise ConfigError(f"MedNeXt: {name} must be one of {', '.join(map(str, allowed))}, found {value!r}.{hint}")


def _nine(name: str, value: int | Sequence[int]) -> list[int]:
    values = [value] * 9 if isinstance(value, int) else list(value)
    if len(values) != 9 or any(not isinstance(v, int) or v < 1 for v in values):
        raise ConfigError(f"MedNeXt: {name} needs nine positive numbers, one for each stage, found {value!r}.")
    return values


def _published(variant: str, kernel_size: int, parameters: int, gmacs: float | None) -> Configuration:
    arguments = {"variant": variant, "kernel_size": kernel_size, "in_channels": 1, "num_classes": 14}
    supervised = {"deep_supervision": True} if gmacs else {}
    return Configuration({**arguments, **supervised}, parameters, (1, 128, 128, 128) if gmacs else None, gmacs)


SMALL = {"in_channels": 1, "num_classes": 2, "width": 8, "blocks": (1,) * 9, "expansion": 2, "deep_supervision": True}
CARD = NetworkCard(
    name="MedNeXt",
    factory="itkit.models.mednext:MedNeXt",
    title="MedNeXt",
    paper="Roy et al., MICCAI 2023, https://arxiv.org/abs/2303.09975",
    licence="original: Apache-2.0",
    dims=(2, 3),
    configurations={
        "MedNeXt_S_k3_in1_c14_ds": _published("S", 3, 5_564_807, 128.365),
        "MedNeXt_S_k5_in1_c14_ds": _published("S", 5, 5_994_439, 166.630),
        "MedNeXt_B_k3_in1_c14_ds": _published("B", 3, 10_540_199, 167.784),
        "MedNeXt_B_k5_in1_c14_ds": _published("B", 5, 10_969_831, 206.050),
        "MedNeXt_M_k3_in1_c14_ds": _published("M", 3, 17_562_855, 244.668),
        "MedNeXt_M_k5_in1_c14_ds": _published("M", 5, 18_274_727, 304.770),
        "MedNeXt_L_k3_in1_c14_ds": _published("L", 3, 61_793_159, 495.659),
        "MedNeXt_L_k5_in1_c14_ds": _published("L", 5, 63_006_791, 559.974),
        "MedNeXt_S_k3_in1_c14": _published("S", 3, 5_551_311, None),
        "MedNeXt_B_k3_in1_c14": _published("B", 3, 10_526_703, None),
        "MedNeXt_M_k3_in1_c14": _published("M", 3, 17_549_359, None),
        "MedNeXt_L_k3_in1_c14": _published("L", 3, 61_779_663, None),
        "MedNeXt_small_3d": Configuration(SMALL, 253_643),
        "MedNeXt_small_2d_grn": Configuration({**SMALL, "spatial_dims": 2, "grn": True}, 243_419),
    },
    small=SMALL,
    small_size=(16, 32, 16),
    divisor=MedNeXt.divisor,
    outputs=5,
    notes=(
        "`dummy_tensor` is the original's and takes no part; it is frozen here.",
        "With deep supervision the list comes in evaluation too, as in the original.",
        "The first step down has no global response normalisation even where `grn` asks for it, as in the original.",
        "`upsample_kernels` starts a network of kernel 5 from one of kernel 3 (UpKern).",
    ),
)
