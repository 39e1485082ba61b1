"""Rotate, scale, shift and bend a sample in one interpolation; the two special cases below are parts of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from itkit.errors import ConfigError
from itkit.io.warp import rotation_matrix
from itkit.ops.warp import Warp
from itkit.registry import TRANSFORMS
from itkit.transforms.base import RandomTransform, probability, value_range
from itkit.transforms.sample import Sample, axis_spacing, label_keys, put_image, spatial_shape
from itkit.transforms.spatial.crop import crop_sample
from itkit.transforms.spatial.crop_place import draw_crop_start
from itkit.transforms.spatial.sizes import Size, checked_size, size_for

LEAST_CONTROLS = 4


@TRANSFORMS.register_module()
class RandomWarp(RandomTransform):
    """Rotate, scale, shift and bend image and labels together, interpolating once.

    Angles and lengths are physical: a rotation is one in space also where the voxels are not cubes. The image is
    interpolated linearly and becomes float32; labels take the nearest voxel and keep their type. With `size` the result is
    a patch of that size, cut out in the same step, and only what the patch can see is read. The geometry of the sample
    (spacing, origin) stays what it was in the file.

    Args:
        degrees: Largest angle either way: one number for all axes, or three for turns about Z, Y and X. In 2D the first
            counts. A positive angle turns as ``np.rot90`` does, about Z from Y to X.
        scale: (low, high), or a number d for ``1 - d .. 1 + d``; above 1 enlarges. Its logarithm is drawn evenly.
        translate_mm: Largest shift either way in mm: one number, or three for Z, Y and X.
        elastic_mm: Standard deviation of the random displacements in mm, (low, high), or a number for ``0 .. number``. They
            are control values of a cubic B-spline; the bend itself has about a third of it.
        elastic_grid_mm: Distance of the control values in mm: large values bend softly.
        size: Size of the patch in voxels. ``None``: the size stays.
        foreground_ratio: Share of patches laid around a foreground voxel, as in `RandomCrop`. Needs `size`.
        per_axis_scale: Draw one factor for each axis.
        rotate_prob: Chance of a rotation, given that the transform is applied.
        scale_prob: Chance of a scaling.
        translate_prob: Chance of a shift.
        elastic_prob: Chance of a bend.
        fill: What lies outside the volume: ``"edge"`` repeats its border for image and label; a number is the intensity, and
            labels are 0 there.
        smooth_labels: Interpolate each class linearly and take the largest share, instead of the nearest voxel.
        prob: Chance that the sample is warped at all. A patch is cut out in any case.

    Raises:
        ConfigError: If a range, chance or size is impossible.
    """

    def __init__(
        self,
        degrees: float | Sequence[float] = 0.0,
        scale: float | Sequence[float] = 0.0,
        translate_mm: float | Sequence[float] = 0.0,
        elastic_mm: float | Sequence[float] = 0.0,
        *,
        elastic_grid_mm: float = 24.0,
        size: Size | None = None,
        foreground_ratio: float = 0.0,
        per_axis_scale: bool = False,
        rotate_prob: float = 1.0,
        scale_prob: float = 1.0,
        translate_prob: float = 1.0,
        elastic_prob: float = 1.0,
        fill: str | float = "edge",
        smooth_labels: bool = False,
        prob: float = 1.0,
    ):
        super().__init__(prob)
        self.degrees = _three("degrees", degrees, self)
        self.scale = value_range("scale", scale, self, around=1.0)
        if self.scale[0] <= 0:
            raise ConfigError(f"{type(self).__name__}: scale must stay above 0; found {scale!r}.")
        self.translate_mm = _three("translate_mm", translate_mm, self)
        elastic_mm = (0.0, elastic_mm) if isinstance(elastic_mm, (int, float)) else elastic_mm
        self.elastic_mm = value_range("elastic_mm", elastic_mm, self, least=0.0)
        if not elastic_grid_mm > 0:
            raise ConfigError(f"{type(self).__name__}: elastic_grid_mm must be above 0; found {elastic_grid_mm!r}.")
        self.elastic_grid_mm = float(elastic_grid_mm)
        self.size = None if size is None else checked_size(size, self)
        self.foreground_ratio = probability("foreground_ratio", foreground_ratio, self)
        if self.foreground_ratio and size is None:
            raise ConfigError(f"{type(self).__name__}: foreground_ratio chooses where a patch lies; give its size too.")
        self.per_axis_scale = per_axis_scale
        self.rotate_prob = probability("rotate_prob", rotate_prob, self)
        self.scale_prob = probability("scale_prob", scale_prob, self)
        self.translate_prob = probability("translate_prob", translate_prob, self)
        self.elastic_prob = probability("elastic_prob", elastic_prob, self)
        if isinstance(fill, str) and fill != "edge":
            raise ConfigError(f"{type(self).__name__}: fill must be 'edge' or a number; found {fill!r}.")
        self.fill = fill
        self.smooth_labels = smooth_labels

    def draw(self, results: Sample, rng: np.random.Generator) -> dict[str, Any] | None:
        """Draw place, angles, factors, shifts and displacements."""
        shape = spatial_shape(results)
        axes = len(shape)
        params: dict[str, Any] = {"fill": self.fill, "smooth_labels": self.smooth_labels}
        size = shape if self.size is None else size_for(self.size, shape, type(self).__name__)
        if self.size is not None:
            start = draw_crop_start(results, size, rng, foreground_ratio=self.foreground_ratio)
            params.update(size=size, start=start)
        if self.happens(rng):
            if any(self.degrees) and rng.random() < self.rotate_prob:
                limits = np.asarray(self.degrees[:1] if axes == 2 else self.degrees)
                params["degrees"] = rng.uniform(-limits, limits).tolist()
            if self.scale != (1.0, 1.0) and rng.random() < self.scale_prob:
                factors = rng.uniform(*np.log(self.scale), size=axes if self.per_axis_scale else 1)
                params["scale"] = np.broadcast_to(np.exp(factors), axes).tolist()
            if any(self.translate_mm) and rng.random() < self.translate_prob:
                limits = np.asarray(self.translate_mm[-axes:])
                params["translate_mm"] = rng.uniform(-limits, limits).tolist()
            if self.elastic_mm[1] > 0 and rng.random() < self.elastic_prob:
                extent = (np.asarray(size) - 1) * axis_spacing(results)
                controls = np.maximum(LEAST_CONTROLS, np.ceil(extent / self.elastic_grid_mm).astype(int) + 3)
                values = rng.standard_normal((*controls.tolist(), axes)) * rng.uniform(*self.elastic_mm)
                params["control_mm"] = values.astype(np.float32)
        changed = {"size", "degrees", "scale", "translate_mm", "control_mm"} & params.keys()
        return params if changed else None

    @staticmethod
    def apply(results: Sample, params: dict[str, Any]) -> Sample:
        """Interpolate once, or only cut where nothing is warped."""
        shape = spatial_shape(results)
        axes, spacing = len(shape), np.asarray(axis_spacing(results))
        size, start = params.get("size", shape), params.get("start", (0,) * len(shape))
        still = not {"degrees", "scale", "translate_mm", "control_mm"} & params.keys()
        if still and all(a >= 0 and a + t <= n for a, t, n in zip(start, size, shape, strict=True)):
            results["img"] = results["img"].astype(np.float32, copy=False)
            return crop_sample(results, start, size)
        turn = rotation_matrix(params.get("degrees", (0.0,) * 3), axes)
        back = np.diag(1 / np.asarray(params.get("scale", (1.0,) * axes))) @ turn.T
        matrix = back * spacing[None, :] / spacing[:, None]
        shift = np.asarray(params.get("translate_mm", (0.0,) * axes)) / spacing
        centre = np.asarray(start) + (np.asarray(size) - 1) / 2 - matrix @ shift
        control = params.get("control_mm")
        warp = Warp(
            shape,
            size,
            matrix,
            centre=centre,
            control=None if control is None else control / spacing,
            fill=params["fill"],
        )
        put_image(results, warp.image(results["img"]))
        for key in label_keys(results):
            results[key] = warp.label(results[key], smooth=params["smooth_labels"])
        return results


def _three(name: str, value: float | Sequence[float], owner: RandomTransform) -> tuple[float, float, float]:
    """Return three limits that are not negative, from one number or three.

    Raises:
        ConfigError: If it is neither.
    """
    values = (value,) * 3 if isinstance(value, (int, float)) else tuple(value)
    if len(values) != 3 or not all(np.isfinite(v) and v >= 0 for v in values):
        raise ConfigError(
            f"{type(owner).__name__}: {name} must be one number or three (Z, Y, X), none negative; found {value!r}."
        )
    return tuple(float(v) for v in values)
