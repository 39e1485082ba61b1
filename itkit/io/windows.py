"""Where the windows lie: the starts of patches that cover an axis (no arrays, no torch)."""

from __future__ import annotations

from itkit.errors import ConfigError


def window_starts(size: int, patch: int, stride: int) -> list[int]:
    """Return the first index of each window along one axis.

    Every index of the axis lies in at least one window, every window lies inside the axis, and no fewer windows at this
    stride would do. Windows are `stride` apart; the last one is shifted back until it ends with the axis.

    Args:
        size: Voxels of the axis, at least `patch`.
        patch: Voxels of a window.
        stride: Voxels from one window to the next, 1 to `patch`.

    Returns:
        Strictly increasing starts, from 0 to ``size - patch``.

    Raises:
        ConfigError: If a number is not positive, the stride leaves gaps, or the axis is shorter than the window.
    """
    if min(size, patch, stride) < 1:
        raise ConfigError(f"size {size}, patch {patch} and stride {stride} of a sliding window must be at least 1.")
    if stride > patch:
        raise ConfigError(
            f"stride {stride} is larger than the patch of {patch}: voxels between windows would be left "
            f"out. Choose a stride of at most {patch}."
        )
    if size < patch:
        raise ConfigError(f"an axis of {size} voxels holds no window of {patch}; pad it first.")
    last = size - patch
    return [*range(0, last, stride), last]


def axis_triple(name: str, value: int | tuple[int, ...] | list[int], axes: int) -> tuple[int, ...]:
    """Return `value` as one positive integer for each of `axes` spatial axes; a single number stands for all axes.

    Raises:
        ConfigError: If the count is wrong or an entry is not a positive integer. The message calls the value `name`.
    """
    values = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(values) != axes:
        raise ConfigError(f"{name} {values} has {len(values)} entries for {axes} spatial axes; give one per axis.")
    if not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values):
        raise ConfigError(f"{name} {values} must consist of positive integers.")
    return values
