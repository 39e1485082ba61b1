"""Swin-UMamba: a U-shaped network for images, whose encoder scans and whose decoder convolves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn

from itkit.errors import ConfigError
from itkit.models.zoo import Configuration, NetworkCard
from itkit.ops.image_size import check_image
from itkit.ops.visual_state_space import VSSEncoder
from itkit.registry import MODELS


@MODELS.register_module()
class SwinUMamba(nn.Module):
    """Swin-UMamba: (N, C, Y, X) to logits (N, K, Y, X), an encoder of scans and a decoder of convolutions.

    Checkpoints of the authors load without renaming. Weights of VMamba's first version, trained on ImageNet, fit into
    `vssm_encoder` where `feature_size` is the usual one, but for the patch embedding.

    Shape:
        - Input: (N, in_channels, Y, X), multiples of 32.
        - Output: (N, num_classes, Y, X); with `deep_supervision` a list of four: full size, 1/2, 1/4 and 1/8, in
          evaluation too.

    Args:
        in_channels: C.
        num_classes: K.
        feature_size: Channels at full size, 1/2, 1/4, 1/8 and 1/16; the encoder's stages have the last four, so each is
            double the one before.
        hidden_size: Channels at 1/32: the last of `feature_size`.
        depths: Blocks of the encoder's four stages.
        d_state: Numbers that the state of a channel has.
        drop_path: Probability of skipping the last block in training; it grows evenly from 0 in the first.
        deep_supervision: Return logits at four sizes.

    Raises:
        ConfigError: If arguments do not fit together, or an input has another number of axes or channels, or a size that
            is not a multiple of 32.

    Source: Liu et al., Swin-UMamba: Mamba-based UNet with ImageNet-based pretraining, MICCAI 2024, arXiv 2402.03302.
    """

    divisor = 32

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        feature_size: Sequence[int] = (48, 96, 192, 384, 768),
        hidden_size: int | None = None,
        depths: Sequence[int] = (2, 2, 9, 2),
        d_state: int = 16,
        drop_path: float = 0.0,
        deep_supervision: bool = False,
    ):
        super().__init__()
        sizes = list(feature_size)
        hidden_size = sizes[-1] if hidden_size is None else hidden_size
        if len(sizes) != 5 or any(b != 2 * a for a, b in zip(sizes[1:], sizes[2:], strict=False)):
            raise ConfigError(
                "SwinUMamba: feature_size needs five widths, each from the third on double the one before, found "
                f"{sizes}."
            )
        if hidden_size != sizes[-1]:
            raise ConfigError(
                f"SwinUMamba: hidden_size is the width of the encoder's last map, {sizes[-1]}; found {hidden_size}."
            )
        if min(in_channels, num_classes, d_state) < 1:
            raise ConfigError(
                "SwinUMamba: in_channels, num_classes and d_state must be at least 1, found "
                f"{in_channels}, {num_classes} and {d_state}."
            )
        if len(depths) != 4 or min(depths) < 1:
            raise ConfigError(f"SwinUMamba: depths needs four positive numbers, found {list(depths)}.")
        self.in_channels, self.num_classes, self.deep_supervision = in_channels, num_classes, deep_supervision
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, sizes[0], 7, 2, 3), nn.InstanceNorm2d(sizes[0], eps=1e-5, affine=True)
        )
        self.vssm_encoder = VSSEncoder(sizes[0], 2, depths, sizes[1:], d_state, drop_path)
        conv: dict[str, Any] = dict(spatial_dims=2, kernel_size=3, norm_name="instance")
        for i, (before, width) in enumerate(zip([in_channels, *sizes], sizes, strict=False), 1):
            self.add_module(f"encoder{i}", UnetrBasicBlock(2, before, width, 3, 1, "instance", res_block=True))
        for i, (width, before) in enumerate(zip(sizes, [*sizes[1:], hidden_size], strict=True), 2):
            up = UnetrUpBlock(in_channels=before, out_channels=width, upsample_kernel_size=2, res_block=True, **conv)
            self.add_module(f"decoder{i}", up)
        self.decoder1 = UnetrBasicBlock(2, sizes[0], sizes[0], 3, 1, "instance", res_block=True)
        heads = sizes[:4] if deep_supervision else sizes[:1]
        self.out_layers = nn.ModuleList(UnetOutBlock(2, width, num_classes) for width in heads)

    def forward(self, inputs: Tensor) -> Tensor | list[Tensor]:
        """Return logits (N, K, Y, X); with deep supervision a list, the full size first.

        Args:
            inputs: (N, C, Y, X).
        """
        check_image("SwinUMamba", inputs, self.in_channels, divisor=self.divisor)
        x = self.stem(inputs)
        maps = [inputs, x, *(one.permute(0, 3, 1, 2) for one in self.vssm_encoder(x))]
        decoded = [maps.pop()]
        for i in range(5, 0, -1):
            skip = self.get_submodule(f"encoder{i}")(maps[i - 1])
            decoded.append(self.get_submodule(f"decoder{i + 1}")(decoded[-1], skip))
        decoded[-1] = self.decoder1(decoded[-1])
        outputs = [head(x) for head, x in zip(self.out_layers, reversed(decoded), strict=False)]
        return outputs if self.deep_supervision else outputs[0]


CARD = NetworkCard(
    name="SwinUMamba",
    factory="itkit.models.swin_umamba:SwinUMamba",
    title="Swin-UMamba",
    paper="Liu et al., MICCAI 2024, arXiv 2402.03302",
    licence="see the original's repository (JiarunLiu/Swin-UMamba); ours is code of its own",
    dims=(2,),
    configurations={
        "SwinUMamba_in1_c14_ds": Configuration(
            dict(in_channels=1, num_classes=14, deep_supervision=True), 59_889_368, (1, 320, 320), 63.7446, 3.94691
        ),
    },
    small=dict(
        in_channels=1,
        num_classes=2,
        feature_size=(8, 16, 32, 64, 128),
        depths=(1, 1, 1, 1),
        d_state=4,
        deep_supervision=True,
    ),
    small_size=(32, 64),
    divisor=SwinUMamba.divisor,
    outputs=4,
    notes=("With deep supervision the list (full size, 1/2, 1/4, 1/8) comes in evaluation too, as in the original.",),
)
