"""SegMamba: a U-shaped network for volumes whose encoder scans all voxels as one sequence, in three orders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn

from itkit.errors import ConfigError
from itkit.models.zoo import Configuration, NetworkCard
from itkit.ops.causal_convolution import causal_convolution
from itkit.ops.image_size import check_image
from itkit.ops.scan_parameters import initial_decays, initial_step_biases, initial_step_weights
from itkit.ops.selective_scan import selective_scan
from itkit.registry import MODELS

STAGES = 4
DIVISOR = 16
"""The first map has half the size of the volume, and each of the three steps after it halves again."""
ORDERS = ("", "_b", "_s")
"""How checkpoints mark the parameters of the three orders: forth, back, and across slices."""


class TriOrientedMamba(nn.Module):
    """Mamba on a sequence in three orders: forth, back, and from slice to slice at one place after the other.

    Args:
        width: Channels of a token.
        d_state: Numbers that the state of a channel has.
        d_conv: Tokens that the causal convolution in front of a scan sees.
        expand: Channels of the scans, as a multiple of `width`.
        slices: Pieces of the sequence that the third order goes across; they divide its length.
    """

    def __init__(self, width: int, d_state: int, d_conv: int, expand: int, slices: int):
        super().__init__()
        inner, self.rank, self.d_state, self.slices = int(expand * width), math.ceil(width / 16), d_state, slices
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        for order in ORDERS:
            self.add_module(f"conv1d{order}", nn.Conv1d(inner, inner, d_conv, groups=inner))
            self.add_module(f"x_proj{order}", nn.Linear(inner, self.rank + 2 * d_state, bias=False))
            steps = nn.Linear(self.rank, inner)
            steps.weight, steps.bias = (
                nn.Parameter(value) for value in (initial_step_weights(inner, self.rank), initial_step_biases(inner))
            )
            self.add_module(f"dt_proj{order}", steps)
            self.register_parameter(f"A{order}_log", nn.Parameter(initial_decays(inner, d_state)))
            self.register_parameter(f"D{order}", nn.Parameter(torch.ones(inner)))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (N, L, width) for `tokens` of that shape."""
        x, gate = self.in_proj(tokens).transpose(1, 2).chunk(2, 1)
        y = self._scan("", x, gate)
        y = y + self._scan("_b", x.flip(-1), gate.flip(-1)).flip(-1)
        y = y + self._along(self._scan("_s", self._across(x), self._across(gate)))
        return self.out_proj(y.transpose(1, 2))

    def _scan(self, order: str, x: Tensor, gate: Tensor) -> Tensor:
        conv, steps = self.get_submodule(f"conv1d{order}"), self.get_submodule(f"dt_proj{order}")
        x = causal_convolution(x, conv.weight.squeeze(1), conv.bias, silu=True)
        projected = self.get_submodule(f"x_proj{order}")(x.transpose(1, 2))
        low, B, C = projected.split([self.rank, self.d_state, self.d_state], -1)
        A_log = self.get_parameter(f"A{order}_log")
        return selective_scan(
            x,
            F.linear(low, steps.weight).transpose(1, 2),
            -A_log.to(torch.promote_types(A_log.dtype, torch.float32)).exp(),
            B.transpose(1, 2),
            C.transpose(1, 2),
            self.get_parameter(f"D{order}"),
            gate,
            steps.bias,
            delta_softplus=True,
        )

    def _across(self, x: Tensor) -> Tensor:
        """Return the sequence (N, C, L) with the first tokens of all slices first, then the second ones, and so on."""
        return x.unflatten(-1, (self.slices, -1)).transpose(-2, -1).flatten(-2)

    def _along(self, x: Tensor) -> Tensor:
        """Undo `_across`."""
        return x.unflatten(-1, (-1, self.slices)).transpose(-2, -1).flatten(-2)


class MambaLayer(nn.Module):
    """``x + mamba(norm(x))`` over all voxels.

    Args:
        width: Channels.
        mamba: The mixing of tokens.
    """

    def __init__(self, width: int, mamba: nn.Module):
        super().__init__()
        self.norm, self.mamba = nn.LayerNorm(width), mamba

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, Z, Y, X) for `x` of that shape."""
        tokens = self.mamba(self.norm(x.flatten(2).transpose(1, 2)))
        return x + tokens.transpose(1, 2).unflatten(-1, x.shape[2:])


class GatedSpatialConvolution(nn.Module):
    """Two paths of convolutions, 3-wide twice and 1-wide once, whose sum goes through a 1-wide one to the residual.

    Args:
        width: Channels.
    """

    def __init__(self, width: int):
        super().__init__()
        self.proj, self.proj2 = (nn.Conv3d(width, width, 3, padding=1) for _ in range(2))
        self.proj3, self.proj4 = (nn.Conv3d(width, width, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, Z, Y, X) for `x` of that shape."""
        wide = _normalised(self.proj2(_normalised(self.proj(x))))
        return x + _normalised(self.proj4(wide + _normalised(self.proj3(x))))


class VoxelMLP(nn.Module):
    """Two 1-wide convolutions with a GELU in between.

    Args:
        width: Channels of the input and the output; twice as many in between.
    """

    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv3d(width, 2 * width, 1), nn.Conv3d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, Z, Y, X) for `x` of that shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class MambaEncoder(nn.Module):
    """Four stages: a step to half the size, a gated spatial convolution, and scans of all voxels.

    Args:
        in_channels: Channels of the volume.
        depths: Scanning layers of each stage.
        widths: Channels of each stage.
        slices: Pieces that the third order of a stage goes across.
        d_state: Numbers that the state of a channel has.
        d_conv: Tokens that a causal convolution sees.
        expand: Channels of the scans, as a multiple of the stage's.
    """

    def __init__(
        self,
        in_channels: int,
        depths: Sequence[int],
        widths: Sequence[int],
        slices: Sequence[int],
        d_state: int,
        d_conv: int,
        expand: int,
    ):
        super().__init__()
        first = nn.Sequential(nn.Conv3d(in_channels, widths[0], 7, 2, 3))
        steps = [
            nn.Sequential(nn.InstanceNorm3d(width), nn.Conv3d(width, wider, 2, 2))
            for width, wider in zip(widths, widths[1:], strict=False)
        ]
        self.downsample_layers = nn.ModuleList([first, *steps])
        self.gscs = nn.ModuleList(GatedSpatialConvolution(width) for width in widths)
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(MambaLayer(width, TriOrientedMamba(width, d_state, d_conv, expand, pieces)) for _ in range(depth))
            )
            for depth, width, pieces in zip(depths, widths, slices, strict=True)
        )
        self.mlps = nn.ModuleList(VoxelMLP(width) for width in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return maps (N, widths[i], ...) at 1/2, 1/4, 1/8 and 1/16 of the size of `x` (N, C, Z, Y, X)."""
        maps = []
        for step, gate, stage, mlp in zip(self.downsample_layers, self.gscs, self.stages, self.mlps, strict=True):
            x = stage(gate(step(x)))
            maps.append(mlp(F.instance_norm(x)))
        return maps


@MODELS.register_module()
class SegMamba(nn.Module):
    """SegMamba: (N, C, Z, Y, X) to logits (N, K, Z, Y, X).

    Checkpoints of the authors load without renaming.

    Shape:
        - Input: (N, in_channels, Z, Y, X), multiples of 16; the voxels of stage i, ``Z * Y * X / 8**(1 + i)``, must be a
          multiple of ``slices[i]``, and the last stage needs more than one for a normalisation to have a meaning.
        - Output: (N, num_classes, Z, Y, X).

    Args:
        in_channels: C.
        num_classes: K.
        depths: Scanning layers of the four stages.
        feature_size: Channels of the four stages, and of the decoder's levels.
        hidden_size: Channels between the encoder's last map and the decoder.
        slices: Pieces of the sequence that the third order of each stage goes across; the authors' are the number of
            slices along the first axis of a 128-voxel cube.
        d_state: Numbers that the state of a channel has.
        d_conv: Tokens that the causal convolutions in front of the scans see.
        expand: Channels of the scans, as a multiple of the stage's.

    Raises:
        ConfigError: If arguments do not fit together, or an input has another number of axes or channels, or a size that
            does not divide.

    Source: Xing et al., SegMamba: Long-range Sequential Modeling Mamba For 3D Medical Image Segmentation, MICCAI 2024,
    arXiv 2401.13560.
    """

    divisor = DIVISOR

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        depths: Sequence[int] = (2, 2, 2, 2),
        feature_size: Sequence[int] = (48, 96, 192, 384),
        hidden_size: int = 768,
        slices: Sequence[int] = (64, 32, 16, 8),
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
    ):
        super().__init__()
        for name, values in dict(depths=depths, feature_size=feature_size, slices=slices).items():
            if len(values) != STAGES or min(values) < 1:
                raise ConfigError(f"SegMamba has four stages: {name} needs 4 positive numbers, found {list(values)}.")
        least = dict(in_channels=in_channels, num_classes=num_classes, hidden_size=hidden_size)
        least.update(d_state=d_state, d_conv=d_conv, expand=expand)
        for name, value in least.items():
            if value < 1:
                raise ConfigError(f"SegMamba: {name} must be at least 1, found {value}.")
        self.in_channels, self.num_classes, self.slices = in_channels, num_classes, tuple(slices)
        widths = list(feature_size)
        self.vit = MambaEncoder(in_channels, depths, widths, slices, d_state, d_conv, expand)
        wide: dict[str, Any] = dict(spatial_dims=3, kernel_size=3, norm_name="instance", res_block=True)
        outputs = [*widths, hidden_size]
        for i, (before, width) in enumerate(zip([in_channels, *widths], outputs, strict=True), 1):
            block = UnetrBasicBlock(in_channels=before, out_channels=width, stride=1, **wide)
            self.add_module(f"encoder{i}", block)
        for i in range(STAGES, 0, -1):
            up = UnetrUpBlock(in_channels=outputs[i], out_channels=outputs[i - 1], upsample_kernel_size=2, **wide)
            self.add_module(f"decoder{i + 1}", up)
        self.decoder1 = UnetrBasicBlock(in_channels=widths[0], out_channels=widths[0], stride=1, **wide)
        self.out = UnetOutBlock(3, widths[0], num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (N, K, Z, Y, X).

        Args:
            inputs: (N, C, Z, Y, X).
        """
        self._check(inputs)
        maps = [inputs, *self.vit(inputs)]
        skips = [self.get_submodule(f"encoder{i + 1}")(x) for i, x in enumerate(maps)]
        x = skips.pop()
        for i in range(STAGES, 0, -1):
            x = self.get_submodule(f"decoder{i + 1}")(x, skips.pop())
        return self.out(self.decoder1(x))

    def _check(self, inputs: Tensor) -> None:
        check_image("SegMamba", inputs, self.in_channels, dims=3, divisor=DIVISOR)
        for stage, pieces in enumerate(self.slices):
            size = tuple(count >> (stage + 1) for count in inputs.shape[2:])
            if math.prod(size) % pieces:
                raise ConfigError(
                    f"SegMamba: stage {stage} of an input {tuple(inputs.shape[2:])} (Z, Y, X) has {math.prod(size)} "
                    f"voxels {size}, which {pieces} slices do not divide. Choose another size, or slices that divide."
                )
        if math.prod(size) == 1:
            raise ConfigError(
                f"SegMamba: size {tuple(inputs.shape[2:])} (Z, Y, X) leaves one voxel in the last stage, which cannot be "
                f"normalised. Make one axis at least {2 * DIVISOR}."
            )


def _normalised(x: Tensor) -> Tensor:
    return F.relu(F.instance_norm(x))


CARD = NetworkCard(
    name="SegMamba",
    factory="itkit.models.segmamba:SegMamba",
    title="SegMamba",
    paper="Xing et al., MICCAI 2024, arXiv 2401.13560",
    licence="original: no licence file",
    dims=(3,),
    configurations={
        "SegMamba_brats": Configuration(
            dict(in_channels=4, num_classes=4), 67_416_196, (4, 128, 128, 128), 1468.69, 29.2789
        ),
        "SegMamba_small": Configuration(
            dict(in_channels=1, num_classes=2, depths=(1, 1, 1, 1), feature_size=(48, 48, 48, 48), hidden_size=64),
            2_354_930,
        ),
    },
    small=dict(
        in_channels=1,
        num_classes=2,
        depths=(1, 1, 1, 1),
        feature_size=(8, 8, 16, 16),
        hidden_size=16,
        slices=(16, 8, 4, 2),
        d_state=4,
    ),
    small_size=(32, 16, 16),
    divisor=DIVISOR,
    notes=("The voxels of a stage must be a multiple of its `slices`; for 128-voxel cubes the usual ones fit.",),
)
