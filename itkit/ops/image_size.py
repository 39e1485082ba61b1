"""Refuse images that a network cannot take, before a layer deep inside fails on them."""

from __future__ import annotations

from torch import Tensor

from itkit.errors import ConfigError

AXES = {2: "Y, X", 3: "Z, Y, X"}


def check_image(network: str, images: Tensor, in_channels: int, *, dims: int = 2, divisor: int = 1) -> None:
    """Check the axes, the channels and the size of a batch.

    Args:
        network: The name that messages begin with.
        images: (N, C, Y, X) or (N, C, Z, Y, X).
        in_channels: C.
        dims: Number of spatial axes, 2 or 3.
        divisor: Every spatial size must be a multiple of it.

    Raises:
        ConfigError: If something does not fit.
    """
    if images.ndim != dims + 2 or images.shape[1] != in_channels:
        raise ConfigError(
            f"{network} takes (N, {in_channels}, {AXES[dims]}), found {tuple(images.shape)}. Check in_channels and the "
            "pipeline."
        )
    if any(count % divisor for count in images.shape[2:]):
        raise ConfigError(
            f"{network} takes sizes ({AXES[dims]}) that are multiples of {divisor}, found {tuple(images.shape[2:])}. "
            "Crop, pad or choose such a patch_size."
        )
