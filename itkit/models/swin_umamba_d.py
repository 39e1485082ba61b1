"""Swin-UMamba-D: a U-shaped network for images that scans in the encoder and in the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from itkit.errors import ConfigError
from itkit.models.zoo import Configuration, NetworkCard
from itkit.ops.image_size import check_image
from itkit.ops.visual_state_space import VSSEncoder, VSSStage
from itkit.registry import MODELS


class PatchExpanding(nn.Module):
    """Enlarge a map: a linear layer makes the channels of the new pixels, which a norm follows.

    Args:
        width: Channels of the input.
        expanded: Channels that the linear layer makes.
        factor: The size is multiplied by it.
    """

    def __init__(self, width: int, expanded: int, factor: int):
        super().__init__()
        self.factor = factor
        self.expand, self.norm = nn.Linear(width, expanded, bias=False), nn.LayerNorm(expanded // factor**2)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, Y * factor, X * factor, expanded / factor**2) for `x` (N, Y, X, width)."""
        x = self.expand(x).unflatten(-1, (self.factor, self.factor, -1))
        return self.norm(x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2))


class VSSDecoder(nn.Module):
    """The decoder of Swin-UMamba-D: expansion, skip, two blocks, from stage to stage; then a fourfold expansion.

    Args:
        num_classes: K.
        widths: Channels of the encoder's stages, the finest first.
        patch: Pixels of a token along each axis.
        d_state: Numbers that the state of a channel has.
        drop_path: Probability of skipping a coarsest block in training; it falls evenly to 0 at the finest.
        deep_supervision: Every stage gives logits.
    """

    DEPTH = 2

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int],
        patch: int,
        d_state: int,
        drop_path: float,
        deep_supervision: bool,
    ):
        super().__init__()
        self.deep_supervision = deep_supervision
        upwards = list(widths)[::-1]
        rates = iter(torch.linspace(drop_path, 0, self.DEPTH * len(upwards[1:]), device="cpu").tolist())
        self.stages = nn.ModuleList(
            VSSStage(width, d_state, [next(rates) for _ in range(self.DEPTH)]) for width in upwards[1:]
        )
        expansions = [PatchExpanding(width, 2 * width, 2) for width in upwards[:-1]]
        expansions.append(PatchExpanding(upwards[-1], patch**2 * upwards[-1], patch))
        self.expand_layers = nn.ModuleList(expansions)
        self.concat_back_dim = nn.ModuleList(nn.Linear(2 * width, width) for width in upwards[1:])
        self.seg_layers = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for width in [*upwards[1:], upwards[-1]])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return logits, the full size first, for maps (N, Y_i, X_i, C_i), the finest first."""
        x, skips, outputs = maps[-1], maps[-2::-1], []
        last = len(skips)
        for i, expand in enumerate(self.expand_layers):
            x = expand(x)
            if i < last:
                x = self.stages[i](self.concat_back_dim[i](torch.cat([x, skips[i]], -1)))
            if self.deep_supervision or i == last:
                outputs.insert(0, self.seg_layers[i](x.permute(0, 3, 1, 2)))
        return outputs


@MODELS.register_module()
class SwinUMambaD(nn.Module):
    """Swin-UMamba-D: (N, C, Y, X) to logits (N, K, Y, X), with scans in encoder and decoder alike.

    Checkpoints of the authors load without renaming.

    Shape:
        - Input: (N, in_channels, Y, X), multiples of ``patch_size * 2**(stages - 1)``, 32 as published.
        - Output: (N, num_classes, Y, X); with `deep_supervision` a list: full size, 1/4, 1/8 and 1/16, in evaluation
          too.

    Args:
        in_channels: C.
        num_classes: K.
        dims: Channels of the first stage, doubled from stage to stage.
        depths: Blocks of the encoder's stages; the decoder's have two each.
        patch_size: Pixels of a token along each axis.
        d_state: Numbers that the state of a channel has.
        drop_path: Probability of skipping a block of the coarsest stages in training; it grows evenly from 0 at the finest.
        deep_supervision: Return the logits of every stage.

    Raises:
        ConfigError: If arguments do not fit together, or an input has another number of axes or channels, or a size that
            does not divide.

    Source: Liu et al., Swin-UMamba: Mamba-based UNet with ImageNet-based pretraining, MICCAI 2024, arXiv 2402.03302.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        dims: int = 96,
        depths: Sequence[int] = (2, 2, 9, 2),
        patch_size: int = 4,
        d_state: int = 16,
        drop_path: float = 0.2,
        deep_supervision: bool = False,
    ):
        super().__init__()
        least = dict(
            in_channels=in_channels, num_classes=num_classes, dims=dims, patch_size=patch_size, d_state=d_state
        )
        for name, value in least.items():
            if value < 1:
                raise ConfigError(f"SwinUMambaD: {name} must be at least 1, found {value}.")
        if len(depths) < 2 or min(depths) < 1:
            raise ConfigError(
                f"SwinUMambaD: depths needs two or more positive numbers, one for each stage, found {list(depths)}."
            )
        widths = [dims * 2**i for i in range(len(depths))]
        self.in_channels, self.num_classes, self.deep_supervision = in_channels, num_classes, deep_supervision
        self.divisor = patch_size * 2 ** (len(widths) - 1)
        self.vssm_encoder = VSSEncoder(in_channels, patch_size, depths, widths, d_state, drop_path)
        self.decoder = VSSDecoder(num_classes, widths, patch_size, d_state, drop_path, deep_supervision)

    def forward(self, inputs: Tensor) -> Tensor | list[Tensor]:
        """Return logits (N, K, Y, X); with deep supervision a list, the full size first.

        Args:
            inputs: (N, C, Y, X).
        """
        check_image("SwinUMambaD", inputs, self.in_channels, divisor=self.divisor)
        outputs = self.decoder(self.vssm_encoder(inputs))
        return outputs if self.deep_supervision else outputs[0]


_SMALL: dict[str, Any] = dict(in_channels=1, num_classes=2, dims=16, depths=(1, 1, 1, 1), d_state=4, drop_path=0.0)

CARD = NetworkCard(
    name="SwinUMambaD",
    factory="itkit.models.swin_umamba_d:SwinUMambaD",
    title="Swin-UMamba-D",
    paper="Liu et al., MICCAI 2024, arXiv 2402.03302",
    licence="see the original's repository (JiarunLiu/Swin-UMamba); ours is code of its own",
    dims=(2,),
    configurations={
        "SwinUMambaD_in1_c14_ds": Configuration(
            dict(in_channels=1, num_classes=14, deep_supervision=True), 27_497_720, (1, 320, 320), 12.3534, 6.45857
        ),
        "SwinUMambaD_small": Configuration({**_SMALL, "deep_supervision": True}, 394_312),
    },
    small={**_SMALL, "deep_supervision": True},
    small_size=(32, 64),
    divisor=32,
    outputs=4,
    notes=("With deep supervision the list (full size, 1/4, 1/8, 1/16) comes in evaluation too, as in the original.",),
)
