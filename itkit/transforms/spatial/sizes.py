"""Sizes as users give them: one number for all axes, or one per axis of which some may be left open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from itkit.errors import ConfigError, DataError

Size = int | Sequence[int | None]


def checked_size(value: Size, owner: Any) -> int | tuple[int | None, ...]:
    """Return `value` if every entry is a positive integer or None.

    Raises:
        ConfigError: If it is not, or has neither two nor three entries.
    """
    entries = (value,) if isinstance(value, int) else tuple(value)
    good = all(entry is None or (isinstance(entry, int) and entry > 0) for entry in entries)
    if not good or (not isinstance(value, int) and len(entries) not in (2, 3)):
        raise ConfigError(
            f"{type(owner).__name__}: size must be a positive integer, or two (2D) or three (3D) of them with "
            f"None for an axis that stays; found {value!r}."
        )
    return value if isinstance(value, int) else entries


def size_for(value: int | tuple[int | None, ...], shape: tuple[int, ...], owner: str) -> tuple[int, ...]:
    """Return one number for each axis of `shape`; axes that `value` leaves open keep their length.

    Raises:
        DataError: If `value` has another number of axes than `shape`.
    """
    entries = (value,) * len(shape) if isinstance(value, int) else value
    if len(entries) != len(shape):
        raise DataError(f"{owner} has a size of {len(entries)} axes {entries}, the image has {len(shape)} {shape}.")
    return tuple(n if entry is None else entry for entry, n in zip(entries, shape, strict=True))
