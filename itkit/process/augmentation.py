"""Random changes of a volume and its label: drawn first as plain numbers, applied second, so that each can be replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from itkit.errors import DataError, UsageError
from itkit.io.volumes import Volume
from itkit.io.warp import rotation_matrix, spline_basis

LEAST_CONTROLS = 4
TRUNCATE = 3.0
"""The kernel of a blur ends after this many standard deviations."""
SLAB_VOX = 1 << 20
"""Voxels whose positions are computed at a time when a volume is bent."""


@dataclass(frozen=True)
class Ranges:
    """How strongly to change at most; 0 or None changes nothing.

    Attributes:
        rot_deg: Largest angle either way about the volume's own Z, Y and X axes.
        scale: Largest factor minus 1; factors f and 1 / f are equally likely.
        flip: Probability to mirror along Z, Y and X.
        elastic_mm: Largest displacement of a control point, along each axis.
        elastic_grid_mm: Distance of the control points.
        noise: Largest standard deviation of the noise, as a share of the image's own.
        gamma: Largest power minus 1; powers g and 1 / g are equally likely.
        blur_mm: Largest standard deviation of the blur.
    """

    rot_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: float = 0.0
    flip: tuple[float, float, float] = (0.0, 0.0, 0.0)
    elastic_mm: float = 0.0
    elastic_grid_mm: float = 32.0
    noise: float = 0.0
    gamma: float = 0.0
    blur_mm: float = 0.0

    def __post_init__(self):
        numbers = (*self.rot_deg, self.scale, *self.flip, self.elastic_mm, self.noise, self.gamma, self.blur_mm)
        if any(value < 0 for value in numbers) or self.elastic_grid_mm <= 0:
            raise UsageError(
                "ranges of random changes are not negative, and the grid of control points has a distance."
            )
        if max(self.flip) > 1:
            raise UsageError(f"the probabilities to mirror, {self.flip}, lie between 0 and 1.")
        if self.elastic_mm > 0.4 * self.elastic_grid_mm:
            raise UsageError(
                f"control points that move up to {self.elastic_mm:g} mm, {self.elastic_grid_mm:g} mm apart, can fold the image; "
                f"at most {0.4 * self.elastic_grid_mm:g} mm are safe."
            )
        if not any(numbers):
            raise UsageError("no random change is asked for; give at least one --random-... flag.")


def draw(ranges: Ranges, volume: Volume, rng: np.random.Generator) -> dict[str, Any]:
    """Return the parameters of one change, plain numbers; `apply` makes the same of them every time."""
    flips = (rng.random(3) < ranges.flip).tolist()
    controls = [
        max(LEAST_CONTROLS, int(np.ceil((count - 1) * spacing / ranges.elastic_grid_mm)) + 3)
        for count, spacing in zip(volume.size_zyx, volume.spacing_zyx, strict=True)
    ]
    drawn = {
        "flip": [axis for axis, flipped in enumerate(flips) if flipped],
        "rot_deg": rng.uniform(np.negative(ranges.rot_deg), ranges.rot_deg).tolist(),
        "scale": float(np.exp(rng.uniform(-1, 1) * np.log1p(ranges.scale))),
        "elastic_mm": float(rng.uniform(0, ranges.elastic_mm)),
        "controls": controls,
        "elastic_seed": int(rng.integers(2**53)),
        "blur_mm": float(rng.uniform(0, ranges.blur_mm)),
        "noise": float(rng.uniform(0, ranges.noise)),
        "noise_seed": int(rng.integers(2**53)),
        "gamma": float(np.exp(rng.uniform(-1, 1) * np.log1p(ranges.gamma))),
    }
    still = {
        "flip": [],
        "rot_deg": [0.0] * 3,
        "scale": 1.0,
        "elastic_mm": 0.0,
        "blur_mm": 0.0,
        "noise": 0.0,
        "gamma": 1.0,
    }
    kept = {key: value for key, value in drawn.items() if key in still and value != still[key]}
    if "elastic_mm" in kept:
        kept |= {"controls": controls, "elastic_seed": drawn["elastic_seed"]}
    return kept | ({"noise_seed": drawn["noise_seed"]} if "noise" in kept else {})


def border_value(volume: Volume) -> float:
    """Return the median of the outermost voxels: what most probably lies beyond the volume (air in a CT)."""
    array = volume.array.reshape(-1, *volume.size_zyx)
    faces = [np.take(array, index, axis=axis).ravel() for axis in (1, 2, 3) for index in (0, -1)]
    values = np.concatenate(faces)
    values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return float(np.percentile(values, 50, method="lower")) if values.size else 0.0


def apply(params: dict[str, Any], image: Volume, label: Volume | None, *, fill: float) -> tuple[Volume, Volume | None]:
    """Change image and label as `params` say. Grid and number types stay.

    Space is turned and scaled about the centre of the volume and bent, in one interpolation: linear for the image
    (integers are rounded), the nearest voxel for the label. Then the image alone is blurred, gets noise, and its grey
    scale is bent between its own extremes. Values beyond the number type's limits are clipped to them.

    Args:
        params: What `draw` returned.
        image: Not modified.
        label: On the same grid. Not modified.
        fill: Intensity of what was outside; the label is 0 there.
    """
    array = np.flip(image.array, [axis - 3 for axis in params.get("flip", ())])
    labels = None if label is None else np.flip(label.array, [axis - 3 for axis in params.get("flip", ())])
    if {"rot_deg", "scale", "elastic_mm"} & params.keys():
        matrix, offset, control = _placement(params, image)
        array = np.stack([
            _sampled(channel, matrix, offset, control, 1, fill) for channel in array.reshape(-1, *image.size_zyx)
        ]).reshape(image.array.shape)  # fmt: skip
        if labels is not None:
            labels = _sampled(labels, matrix, offset, control, 0, 0)
    array = _intensities(params, array, image)
    return _like(image, array), None if label is None else _like(label, labels)


def _placement(params: dict[str, Any], volume: Volume) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """From output to input voxels: ``matrix @ voxel + offset``, and the control displacements in voxels."""
    spacing = np.asarray(volume.spacing_zyx)
    turn = rotation_matrix(params.get("rot_deg", (0.0, 0.0, 0.0)), 3)
    matrix = turn.T / params.get("scale", 1.0) * spacing[None, :] / spacing[:, None]
    centre = (np.asarray(volume.size_zyx) - 1) / 2
    control = None
    if "elastic_mm" in params:
        rng = np.random.Generator(np.random.PCG64(params["elastic_seed"]))
        control = rng.uniform(-1, 1, (3, *params["controls"])) * params["elastic_mm"] / spacing[:, None, None, None]
    return matrix, centre - matrix @ centre, control


def _sampled(
    array: np.ndarray, matrix: np.ndarray, offset: np.ndarray, control: np.ndarray | None, order: int, fill: float
) -> np.ndarray:
    kind = np.float64 if order and array.dtype.kind in "iu" else array.dtype
    if control is None:
        return _as_type(_turned(np.ascontiguousarray(array, kind), matrix, offset, order, fill), array.dtype)
    from scipy import ndimage

    options = {"order": order, "mode": "constant", "cval": fill, "prefilter": False}
    out = np.empty(array.shape, array.dtype)
    bases = [spline_basis(count, points) for count, points in zip(array.shape, control.shape[1:], strict=True)]
    flat = np.einsum("cijk,yj,xk->ciyx", control, bases[1], bases[2], optimize=True)
    y, x = np.meshgrid(*map(np.arange, array.shape[1:]), indexing="ij")
    step = max(1, SLAB_VOX // (array.shape[1] * array.shape[2]))
    for start in range(0, array.shape[0], step):
        planes = np.arange(start, min(start + step, array.shape[0]))
        place = np.tensordot(flat, bases[0][planes], axes=(1, 1)).transpose(0, 3, 1, 2)
        for axis in range(3):
            flat_part = matrix[axis, 1] * y + matrix[axis, 2] * x + offset[axis]
            place[axis] += flat_part + (matrix[axis, 0] * planes)[:, None, None]
        out[planes] = _as_type(ndimage.map_coordinates(array, place, output=kind, **options), array.dtype)
    return out


def _turned(array: np.ndarray, matrix: np.ndarray, offset: np.ndarray, order: int, fill: float) -> np.ndarray:
    """Interpolate at ``matrix @ voxel + offset``; SimpleITK takes a third of SciPy's time for this."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    transform = sitk.AffineTransform(matrix[::-1, ::-1].ravel().tolist(), offset[::-1].tolist())
    interpolator = sitk.sitkLinear if order else sitk.sitkNearestNeighbor
    return sitk.GetArrayFromImage(sitk.Resample(image, image, transform, interpolator, float(fill), image.GetPixelID()))


def _intensities(params: dict[str, Any], array: np.ndarray, image: Volume) -> np.ndarray:
    """Blur, noise and gamma, channel by channel, in floating point."""
    if not {"blur_mm", "noise", "gamma"} & params.keys():
        return np.ascontiguousarray(array)
    from scipy import ndimage

    out = np.empty_like(array)
    generator = np.random.Generator(np.random.SFC64(params.get("noise_seed", 0)))
    kind = np.float64 if array.dtype.itemsize > 2 else np.float32
    shaped = array.reshape(-1, *image.size_zyx)
    for channel, target in zip(shaped, out.reshape(shaped.shape), strict=True):
        values = channel.astype(kind)
        if "blur_mm" in params:
            sigma_vox = [params["blur_mm"] / spacing for spacing in image.spacing_zyx]
            values = ndimage.gaussian_filter(values, sigma_vox, truncate=TRUNCATE)
        if "noise" in params:
            values += generator.standard_normal(values.shape, dtype=np.float32) * (params["noise"] * values.std())
        if "gamma" in params and values.max() > values.min():
            low, high = values.min(), values.max()
            values = ((values - low) / (high - low)) ** params["gamma"] * (high - low) + low
        target[:] = _as_type(values, array.dtype)
    return out


def _as_type(values: np.ndarray, kind: np.dtype) -> np.ndarray:
    if kind.kind not in "iu" or values.dtype == kind:
        return values.astype(kind, copy=False)
    limits = np.iinfo(kind)
    return np.clip(np.rint(values), limits.min, limits.max).astype(kind)


def _like(volume: Volume, array: np.ndarray) -> Volume:
    return Volume(np.ascontiguousarray(array), volume.spacing_zyx, volume.origin_xyz, volume.direction_xyz)


def require_finite(volume: Volume, path: Any) -> None:
    """Refuse an image with NaN or infinite voxels, which an interpolation would spread.

    Raises:
        DataError: If there is one.
    """
    if volume.array.dtype.kind == "f" and not np.isfinite(volume.array).all():
        count = int(volume.array.size - np.isfinite(volume.array).sum())
        raise DataError(
            f"holds {count} NaN or infinite voxels, which an interpolation would spread. Fix the image.", path
        )


def three(what: str, values: Sequence[float]) -> tuple[float, float, float]:
    """Return one number or three as three.

    Raises:
        UsageError: If it is neither.
    """
    values = tuple(values) * 3 if len(values) == 1 else tuple(values)
    if len(values) != 3:
        raise UsageError(f"{what} takes one number or three (Z, Y, X), found {len(values)}.")
    return values
