"""Residual networks that end in one vector an image: MONAI's, whose names of weights are those of the common 2D files."""

from __future__ import annotations

from monai.networks.nets import ResNet
from torch import nn

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError

RESIDUAL_DEPTHS: dict[str, tuple[str, tuple[int, ...]]] = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
"""Kind of block and number of blocks in the four stages."""


def residual_encoder(name: str, in_channels: int, dims: int, features: int, width: int = 64) -> ResNet:
    """Return a residual network from images (N, C, ...) to vectors (N, features); its last layer is `fc`.

    Args:
        name: One of `RESIDUAL_DEPTHS`.
        in_channels: C.
        dims: Spatial axes, 2 or 3.
        features: Length of the vectors.
        width: Channels of the first stage; 64 as published.

    Raises:
        ConfigError: If `name` or `dims` is none of those.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
    """
    if name not in RESIDUAL_DEPTHS:
        raise ConfigError(
            f"no residual encoder is called {name!r}; choose one of {', '.join(RESIDUAL_DEPTHS)}."
            f"{did_you_mean(str(name), RESIDUAL_DEPTHS)}"
        )
    if dims not in (2, 3):
        raise ConfigError(f"{name}: dims must be 2 or 3, found {dims!r}.")
    block, depths = RESIDUAL_DEPTHS[name]
    return ResNet(
        block,
        list(depths),
        [width, 2 * width, 4 * width, 8 * width],
        spatial_dims=dims,
        n_input_channels=in_channels,
        conv1_t_size=7,
        conv1_t_stride=2,
        num_classes=features,
        bias_downsample=False,
    )


def feature_count(encoder: ResNet) -> int:
    """Return the length of the vector in front of the last layer `fc`."""
    last = encoder.fc
    return next(layer.in_features for layer in last.modules() if isinstance(layer, nn.Linear))
