"""How transforms read and write the sample dictionary: which keys are label maps, what shape and spacing there is.

Arrays in a sample may be shared with a cache. A transform never writes into an array that it did not make itself; it
puts a new array under the key.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from itkit.errors import DataError

Sample = dict[str, Any]


def label_keys(results: Sample) -> list[str]:
    """Return the keys of the label maps that the sample holds, in the order of ``seg_fields``."""
    return [key for key in results.get("seg_fields", ["gt_sem_seg"]) if results.get(key) is not None]


def spatial_shape(results: Sample) -> tuple[int, ...]:
    """Return the size of the image in voxels, (Z, Y, X) or (Y, X).

    Raises:
        DataError: If the sample has no image, or its shape is neither (C, Z, Y, X) nor (C, Y, X).
    """
    image = results.get("img")
    if image is None:
        raise DataError("the sample has no image yet ('img'); put a loading transform first.", results.get("img_path"))
    if image.ndim not in (3, 4):
        raise DataError(f"'img' must be (C, Z, Y, X) or (C, Y, X); found shape {image.shape}.", results.get("img_path"))
    return tuple(image.shape[1:])


def axis_spacing(results: Sample) -> tuple[float, ...]:
    """Return the voxel spacing in mm along the axes of the image as it is now, (Z, Y, X) or (Y, X).

    A slice keeps its volume's three spacings; the one along ``slice_axis`` (0 if it is not told) is left out. A sample
    without a spacing counts as isotropic.
    """
    axes = len(spatial_shape(results))
    spacing = tuple(float(value) for value in results.get("spacing_zyx", (1.0,) * axes))
    if len(spacing) == axes + 1:
        cut = int(results.get("slice_axis", 0))
        spacing = spacing[:cut] + spacing[cut + 1 :]
    return spacing


def put_image(results: Sample, image: np.ndarray) -> None:
    """Store `image` (C, *spatial), contiguous, and its size as ``img_shape``."""
    results["img"] = np.ascontiguousarray(image)
    results["img_shape"] = tuple(image.shape[1:])


def float_image(results: Sample) -> np.ndarray:
    """Return the image as float32: the sample's own array if it is that already, so not to be written into."""
    spatial_shape(results)
    return results["img"].astype(np.float32, copy=False)


def move_origin(results: Sample, first_voxel: tuple[float, ...]) -> None:
    """Let ``origin_xyz`` follow when the first voxel of a volume becomes the one at index `first_voxel` (Z, Y, X).

    Slices keep their volume's origin, and a sample without a place in space stays without.
    """
    if len(first_voxel) != 3 or not {"origin_xyz", "direction_xyz", "spacing_zyx"} <= results.keys():
        return
    step_xyz = [index * spacing for index, spacing in zip(first_voxel, results["spacing_zyx"], strict=True)][::-1]
    direction = np.reshape(results["direction_xyz"], (3, 3))
    results["origin_xyz"] = tuple(float(v) for v in np.asarray(results["origin_xyz"]) + direction @ step_xyz)


def child_generators(rng: np.random.Generator, count: int) -> list[np.random.Generator]:
    """Return `count` independent generators that depend on the state of `rng` alone, which moves on."""
    return [np.random.default_rng(seed) for seed in rng.integers(2**63, size=(count, 2)).tolist()]
