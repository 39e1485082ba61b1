"""Which voxels the statistics of an image are taken from."""

from __future__ import annotations

from typing import Any

from itkit.errors import ConfigError
from itkit.io.preprocessing import MASKS


def checked_mask(name: str, owner: Any) -> str:
    """Return `name` if it is one of `MASKS`.

    Raises:
        ConfigError: If it is not.
    """
    if name not in MASKS:
        raise ConfigError(f"{type(owner).__name__}: mask must be one of {', '.join(MASKS)}; found {name!r}.")
    return name
