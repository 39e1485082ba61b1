"""Where a random crop lies: anywhere, or around a voxel of a random class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from itkit.transforms.sample import Sample, label_keys, spatial_shape


def draw_crop_start(
    results: Sample,
    size: Sequence[int],
    rng: np.random.Generator,
    *,
    foreground_ratio: float = 0.0,
    classes: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """Return the first voxel of a random crop.

    Args:
        results: The sample; its first label map tells the foreground.
        size: Voxels of the crop, one number per axis.
        rng: Source of chance.
        foreground_ratio: Chance that the crop is laid around a foreground voxel: first a class is drawn among those
            that the sample contains, each equally likely, then one of its voxels; the crop is shifted inside where it
            would reach beyond the border. A sample without foreground is cropped anywhere.
        classes: Label values that count as foreground. ``None``: all above 0.

    Returns:
        One index per axis, so that the crop lies inside. Along an axis shorter than the crop, the crop is centred on the
        volume and the index is negative or 0.
    """
    shape = spatial_shape(results)
    spare = [n - t for t, n in zip(size, shape, strict=True)]
    start = [int(rng.integers(0, free + 1)) if free > 0 else -((-free) // 2) for free in spare]
    keys = label_keys(results)
    if rng.random() < foreground_ratio and keys:
        voxel = draw_foreground_voxel(results[keys[0]], rng, classes=classes, num_classes=results.get("num_classes"))
        if voxel is not None:
            start = [
                min(max(v - t // 2, 0), free) if free > 0 else old
                for v, t, free, old in zip(voxel, size, spare, start, strict=True)
            ]
    return tuple(start)


def draw_foreground_voxel(
    label: np.ndarray,
    rng: np.random.Generator,
    *,
    classes: Sequence[int] | None = None,
    num_classes: int | None = None,
) -> tuple[int, ...] | None:
    """Return the index of a voxel of a random class, or None if none of the classes occurs.

    Args:
        label: Integer label map.
        rng: Source of chance.
        classes: Classes to choose from. ``None``: 1 .. `num_classes` - 1, or up to the largest value where that is None.
        num_classes: Classes with background.
    """
    if classes is None:
        top = int(label.max()) if num_classes is None else num_classes - 1
        classes = range(1, top + 1)
    for value in rng.permutation(np.asarray(classes, dtype=np.int64)).tolist():
        places = np.flatnonzero(label == value)
        if places.size:
            return tuple(int(i) for i in np.unravel_index(places[rng.integers(places.size)], label.shape))
    return None
