"""UNETR: a vision transformer as encoder, and a convolutional decoder that takes skips from its layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError
from itkit.models.zoo import Configuration, NetworkCard
from itkit.registry import MODELS

PATCH_VOX = 16
"""Edge of a token's patch."""
SKIPS = (3, 6, 9)
"""Layers of the transformer whose output goes to the decoder, finest skip first; 0 is the first layer."""
LAYERS = 12
PATCH_EMBEDDINGS = ("perceptron", "conv")
NORMS = ("instance", "batch")


class UnusedConvolution(nn.Module):
    """Weights that the original owns and never uses, so that its checkpoints load strictly; returns its input.

    Args:
        dims: 2 or 3.
        width: Channels in and out.
    """

    def __init__(self, dims: int, width: int):
        super().__init__()
        self.conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims](width, width, 1, bias=False).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x


@MODELS.register_module()
class UNETR(nn.Module):
    """UNETR: (N, C, ...) to logits (N, K, ...) of the same size, put together from MONAI's transformer and blocks.

    Official checkpoints load strictly. Weights of the original that nothing uses (``vit.patch_embedding.cls_token`` and
    some ``conv3``) are here too, frozen.

    Args:
        spatial_dims: 2 or 3.
        in_channels: C.
        num_classes: K.
        image_size: Size of all inputs, one number or one an axis in the order (Z, Y, X), multiples of 16: there is one
            position embedding for each patch of 16 voxels an axis.
        feature_size: Channels of the decoder at full size, doubled at each coarser level.
        hidden_size: Length of a token, a multiple of `num_heads`.
        mlp_dim: Width of the layers between attention.
        num_heads: Heads of attention.
        patch_embedding: Patches become tokens by a linear layer on their voxels (``"perceptron"``, as published) or by a
            strided convolution (``"conv"``, the same in other keys).
        norm: ``"instance"`` or ``"batch"`` in the decoder.
        conv_block: Convolutions after each upsampling of a skip.
        res_block: Convolutions of decoder and skips are residual blocks.
        dropout: Dropout probability in the transformer.

    Shape:
        Input (N, C, Z, Y, X), or (N, C, Y, X) for ``spatial_dims=2``, of the size `image_size`.

    Raises:
        ConfigError: If arguments do not fit together, or an input has another number of axes or channels, or another size.

    Source: Hatamizadeh et al., UNETR: Transformers for 3D Medical Image Segmentation, WACV 2022,
    https://arxiv.org/abs/2103.10504. The original code is Apache-2.0.
    """

    divisor = PATCH_VOX

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        num_classes: int = 2,
        image_size: int | Sequence[int] = 96,
        feature_size: int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_heads: int = 12,
        patch_embedding: str = "perceptron",
        norm: str = "instance",
        conv_block: bool = True,
        res_block: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        _choice("spatial_dims", spatial_dims, (2, 3))
        _choice("patch_embedding", patch_embedding, PATCH_EMBEDDINGS)
        _choice("norm", norm, NORMS)
        widths = {"in_channels": in_channels, "num_classes": num_classes, "feature_size": feature_size}
        widths |= {"hidden_size": hidden_size, "mlp_dim": mlp_dim, "num_heads": num_heads}
        for name, value in widths.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"UNETR: {name} must be at least 1, found {value!r}.")
        if hidden_size % num_heads:
            raise ConfigError(f"UNETR: hidden_size must be a multiple of num_heads={num_heads}, found {hidden_size}.")
        if not 0 <= dropout < 1:
            raise ConfigError(f"UNETR: dropout is a probability from 0 to below 1, found {dropout!r}.")
        self.image_size = _sizes(image_size, spatial_dims)
        self.spatial_dims, self.in_channels, self.num_classes = spatial_dims, in_channels, num_classes
        self.grid = tuple(size // PATCH_VOX for size in self.image_size)

        from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
        from monai.networks.nets import ViT

        self.vit = ViT(
            in_channels=in_channels,
            img_size=self.image_size,
            patch_size=(PATCH_VOX,) * spatial_dims,
            hidden_size=hidden_size,
            mlp_dim=mlp_dim,
            num_layers=LAYERS,
            num_heads=num_heads,
            proj_type=patch_embedding,
            dropout_rate=dropout,
            spatial_dims=spatial_dims,
        )
        common = {"spatial_dims": spatial_dims, "kernel_size": 3, "norm_name": norm, "res_block": res_block}
        self.encoder1 = UnetrBasicBlock(in_channels=in_channels, out_channels=feature_size, stride=1, **common)
        for level in (1, 2, 3):
            skip = UnetrPrUpBlock(
                in_channels=hidden_size,
                out_channels=feature_size * 2**level,
                num_layer=3 - level,
                stride=1,
                upsample_kernel_size=2,
                conv_block=conv_block,
                **common,
            )
            self.add_module(f"encoder{level + 1}", skip)
        for level in (3, 2, 1, 0):
            wide = hidden_size if level == 3 else feature_size * 2 ** (level + 1)
            up = UnetrUpBlock(in_channels=wide, out_channels=feature_size * 2**level, upsample_kernel_size=2, **common)
            self.add_module(f"decoder{level + 2}", up)
        self.out = UnetOutBlock(spatial_dims=spatial_dims, in_channels=feature_size, out_channels=num_classes)
        self._have_the_keys_of_the_original(hidden_size)

    def _have_the_keys_of_the_original(self, hidden_size: int) -> None:
        """Drop the parameters that newer MONAI has and does not use here, and add those the original has and never uses."""
        from monai.networks.blocks.dynunet_block import UnetResBlock

        for block in self.vit.blocks:
            block.norm_cross_attn = nn.Identity()
        self.vit.patch_embedding.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size), requires_grad=False)
        for module in list(self.modules()):
            if isinstance(module, UnetResBlock) and not hasattr(module, "conv3"):
                module.conv3 = UnusedConvolution(self.spatial_dims, module.conv2.out_channels)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (N, K, ...) of the size of `inputs`.

        Args:
            inputs: (N, C, Z, Y, X), or (N, C, Y, X) for ``spatial_dims=2``, of the size `image_size`.
        """
        self._check(inputs)
        tokens, layers = self.vit(inputs)
        skips = [self.get_submodule(f"encoder{i + 2}")(self._map(layers[layer])) for i, layer in enumerate(SKIPS)]
        x = self._map(tokens)
        for level, skip in ((5, skips[2]), (4, skips[1]), (3, skips[0]), (2, self.encoder1(inputs))):
            x = self.get_submodule(f"decoder{level}")(x, skip)
        return self.out(x)

    def _map(self, tokens: Tensor) -> Tensor:
        """Return tokens (N, L, D) as a map of features (N, D, ...) on the grid of patches."""
        return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *self.grid).contiguous()

    def _check(self, inputs: Tensor) -> None:
        if inputs.ndim != self.spatial_dims + 2 or inputs.shape[1] != self.in_channels:
            raise ConfigError(
                f"UNETR takes (N, {self.in_channels}, {'Z, ' * (self.spatial_dims == 3)}Y, X), found "
                f"{tuple(inputs.shape)}. Check spatial_dims, in_channels and the pipeline."
            )
        if tuple(inputs.shape[2:]) != self.image_size:
            raise ConfigError(
                f"UNETR has position embeddings for the size {self.image_size} alone, found {tuple(inputs.shape[2:])}. "
                f"Set image_size (a multiple of {PATCH_VOX} an axis) to the patch size of training and inference_config."
            )


def _choice(name: str, value: object, allowed: Sequence) -> None:
    if value not in allowed:
        hint = did_you_mean(value, allowed) if isinstance(value, str) else ""
        raise ConfigError(f"UNETR: {name} must be one of {', '.join(map(str, allowed))}, found {value!r}.{hint}")


def _sizes(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    sizes = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(sizes) != dims or any(not isinstance(n, int) or n < 1 or n % PATCH_VOX for n in sizes):
        raise ConfigError(
            f"UNETR: image_size must be a positive multiple of {PATCH_VOX}, one number or {dims} of them, found {value!r}."
        )
    return sizes


SMALL = {"in_channels": 1, "num_classes": 2, "image_size": 32, "feature_size": 8}
SMALL |= {"hidden_size": 48, "mlp_dim": 96, "num_heads": 4}
BTCV = {"in_channels": 1, "num_classes": 14, "image_size": 96}
CARD = NetworkCard(
    name="UNETR",
    factory="itkit.models.unetr:UNETR",
    title="UNETR",
    paper="Hatamizadeh et al., WACV 2022, https://arxiv.org/abs/2103.10504",
    licence="original: Apache-2.0; built here from MONAI's blocks (Apache-2.0)",
    dims=(2, 3),
    configurations={
        "UNETR_btcv": Configuration(BTCV, 92_790_958, (1, 96, 96, 96), 73.2243),
        "UNETR_btcv_noconvblock": Configuration({**BTCV, "conv_block": False}, 92_453_038),
        "UNETR_small": Configuration(SMALL, 1_062_322),
    },
    small={**SMALL, "image_size": (16, 32, 48)},
    small_size=(16, 32, 48),
    divisor=UNETR.divisor,
    notes=(
        "Inputs have the size `image_size` and no other.",
        "Weights of the original that nothing uses are kept and frozen.",
        "Weights of MONAI's own UNETR load with `strict=False` (for `patch_embedding='perceptron'` all that is used).",
    ),
)
