"""Which voxels the statistics of an image are taken from."""

from __future__ import annotations

from typing import Any

import numpy as np

from itkit.errors import ConfigError

MASKS = ("all", "nonzero", "positive")


def checked_mask(name: str, owner: Any) -> str:
    """Return `name` if it is one of `MASKS`.

    Raises:
        ConfigError: If it is not.
    """
    if name not in MASKS:
        raise ConfigError(f"{type(owner).__name__}: mask must be one of {', '.join(MASKS)}; found {name!r}.")
    return name


def statistics_mask(channel: np.ndarray, name: str) -> np.ndarray | None:
    """Return the boolean mask of one channel, or None where all voxels count."""
    if name == "all":
        return None
    return channel != 0 if name == "nonzero" else channel > 0
