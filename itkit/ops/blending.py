"""How much each voxel of a window counts where windows overlap: one profile per axis, their product in the window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from itkit.errors import ConfigError

BLENDINGS = ("constant", "gaussian")
SMALLEST_WEIGHT = 1e-4
"""Floor of the Gaussian profile of one axis, relative to its peak; the product over three axes stays far above zero."""


def gaussian_profile(patch: int, sigma_scale: float = 0.125) -> np.ndarray:
    """Return the blending weights of one axis: a Gaussian about the centre with peak 1, never below `SMALLEST_WEIGHT`.

    Args:
        patch: Voxels of the window.
        sigma_scale: Standard deviation as a part of `patch`.

    Returns:
        (patch,), float64. The weights of a window are the product of one profile per axis.

    Raises:
        ConfigError: If `sigma_scale` is not positive.
    """
    if not sigma_scale > 0:
        raise ConfigError(f"sigma_scale must be positive; found {sigma_scale}.")
    distance = (np.arange(patch) - (patch - 1) / 2) / (sigma_scale * patch)
    return np.maximum(np.exp(-0.5 * distance**2), SMALLEST_WEIGHT)


def blending_profiles(patch: Sequence[int], blending: str, sigma_scale: float) -> list[np.ndarray]:
    """Return the blending weights of each axis of a window.

    Raises:
        ConfigError: If `blending` is none of `BLENDINGS`, or `sigma_scale` is not positive.
    """
    if blending not in BLENDINGS:
        raise ConfigError(f"blending {blending!r} is unknown; choose one of {', '.join(BLENDINGS)}.")
    return [np.ones(size) if blending == "constant" else gaussian_profile(size, sigma_scale) for size in patch]


def outer_product(profiles: Sequence[np.ndarray]) -> np.ndarray:
    """Return the product of one profile per axis, float32."""
    product = np.ones(())
    for profile in profiles:
        product = product[..., None] * profile
    return product.astype(np.float32)
