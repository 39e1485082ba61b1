"""Cut a box out of a volume, or put a margin around it; every voxel stays at its place in space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from itkit.errors import UsageError
from itkit.io.volumes import Volume


def crop(volume: Volume, start_zyx: Sequence[int], size_zyx: Sequence[int]) -> Volume:
    """Return the box of `size_zyx` voxels whose first voxel is `start_zyx`.

    Args:
        volume: Not modified.
        start_zyx: Index of the first voxel, (Z, Y, X).
        size_zyx: Voxels of the box, (Z, Y, X).

    Returns:
        A volume with a copy of the voxels; its origin is where the box's first voxel lies, in any direction.

    Raises:
        UsageError: If the box does not lie inside the volume.
    """
    inside = all(
        start >= 0 and size >= 1 and start + size <= count
        for start, size, count in zip(start_zyx, size_zyx, volume.size_zyx, strict=True)
    )
    if not inside:
        raise UsageError(
            f"a box of {tuple(size_zyx)} voxels at {tuple(start_zyx)} (Z, Y, X) does not lie inside a volume of "
            f"{tuple(volume.size_zyx)}."
        )
    box = tuple(slice(start, start + size) for start, size in zip(start_zyx, size_zyx, strict=True))
    return Volume(
        np.ascontiguousarray(volume.array[(..., *box)]).copy(), volume.spacing_zyx, place_of(volume, start_zyx),
        volume.direction_xyz,
    )  # fmt: skip


def pad(volume: Volume, before_zyx: Sequence[int], after_zyx: Sequence[int], value: float) -> Volume:
    """Return `volume` with a margin of `value` in front of and behind each axis.

    Args:
        volume: Not modified.
        before_zyx: Voxels to put in front of each axis, (Z, Y, X), 0 or more.
        after_zyx: Voxels to put behind it.
        value: What the margin holds.

    Raises:
        UsageError: If the volume's number type cannot hold `value`.
    """
    kind = volume.array.dtype
    limits = np.iinfo(kind) if kind.kind in "iu" else None
    if limits is not None and not (float(value).is_integer() and limits.min <= value <= limits.max):
        raise UsageError(f"{value:g} is no value of {kind} voxels; choose another one to pad with.")
    channels = [(0, 0)] * (volume.array.ndim - 3)
    array = np.pad(
        volume.array, [*channels, *zip(before_zyx, after_zyx, strict=True)], constant_values=kind.type(value)
    )
    origin = place_of(volume, [-count for count in before_zyx])
    return Volume(array, volume.spacing_zyx, origin, volume.direction_xyz)


def place_of(volume: Volume, index_zyx: Sequence[float]) -> tuple[float, float, float]:
    """Return where voxel `index_zyx` (which may lie outside) has its centre: mm, (X, Y, Z)."""
    steps_xyz = np.array(index_zyx[::-1], float) * np.array(volume.spacing_zyx[::-1], float)
    moved = np.array(volume.origin_xyz) + np.reshape(volume.direction_xyz, (3, 3)) @ steps_xyz
    return tuple(float(value) for value in moved)
