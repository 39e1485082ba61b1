"""Distances between the surfaces of two masks, in mm: Hausdorff, average distance, normalised surface Dice.

The surface of a mask is what marching cubes makes of it: every 2x2x2 neighbourhood of voxels that lies neither wholly
inside nor wholly outside holds one surface element, at the corner point that the eight voxels share, with the area of
the triangles there, in mm^2 (in 2D: 2x2 pixels, contour length in mm). Voxels beyond the border of the image count as
outside. All measures weight each element with its area, so they do not depend on how finely the grid samples a
direction. This is the definition of Nikolov et al., Clinically applicable segmentation of head and neck anatomy, JMIR
2021 (arXiv:1809.04430), and the numbers equal those of DeepMind's ``surface-distance``. Tools that take the centres of
the border voxels, all with weight one (MONAI, SciPy recipes), differ from it by up to about a voxel.

The rule for absent masks (see also `itkit.measures.overlap`): both empty, every measure is NaN; one empty, distances
are infinite and the normalised surface Dice is 0. Tables, which need a finite mean, replace an infinite distance by the
diagonal of the image (`image_diagonal`): a missed structure must cost more than any found one.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from itkit.errors import DataError, GeometryError


@dataclass(frozen=True)
class SurfaceDistances:
    """All distances between two surfaces, each list sorted from near to far.

    Attributes:
        truth_to_prediction: (n,) mm, from each surface element of the truth to the nearest of the prediction.
        truth_areas: (n,) area of these elements, mm^2 (2D: length, mm).
        prediction_to_truth: (m,) mm, from each surface element of the prediction to the nearest of the truth.
        prediction_areas: (m,) area of these elements.
    """

    truth_to_prediction: np.ndarray
    truth_areas: np.ndarray
    prediction_to_truth: np.ndarray
    prediction_areas: np.ndarray

    @property
    def both_empty(self) -> bool:
        """Whether neither mask has a surface."""
        return not (self.truth_areas.size or self.prediction_areas.size)


def surface_distances(truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> SurfaceDistances:
    """Measure the distances between the surfaces of two masks.

    Only the box that holds both masks is looked at; the result is that of the whole image.

    Args:
        truth: Mask, (Z, Y, X) or (Y, X); every non-zero voxel is inside.
        prediction: Mask of the same shape. Neither array is modified.
        spacing: Voxel spacing in mm, in the order of the axes of the masks.

    Raises:
        DataError: If the shapes differ or are neither 2D nor 3D.
        GeometryError: If `spacing` does not hold one positive finite number for each axis.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    spacing = _checked(truth, prediction, spacing)
    truth, prediction = truth != 0, prediction != 0
    box = _union(*(next(iter(ndimage.find_objects(mask.view(np.uint8))), None) for mask in (truth, prediction)))
    if box is None:
        box = (slice(0, 0),) * truth.ndim
    return _distances_in_box(truth[box], prediction[box], spacing)


def label_surface_distances(
    truth: np.ndarray, prediction: np.ndarray, labels: Iterable[int], spacing: Sequence[float]
) -> Iterator[tuple[int, SurfaceDistances]]:
    """Yield ``(label, distances)`` for each of `labels`; the boxes of all labels are found in one pass.

    Args:
        truth: Integer label map, (Z, Y, X) or (Y, X), no negative values.
        prediction: Integer label map of the same shape. Neither array is modified.
        labels: Labels to measure, each > 0 or 0 for the background.
        spacing: Voxel spacing in mm, in the order of the axes of the maps.

    Raises:
        DataError: If the shapes differ or are neither 2D nor 3D.
        GeometryError: If `spacing` does not hold one positive finite number for each axis.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    spacing = _checked(truth, prediction, spacing)
    labels = list(labels)
    highest = max(labels, default=0)
    boxes = [ndimage.find_objects(_indexable(volume), max_label=highest) for volume in (truth, prediction) if highest]
    everything = tuple(slice(0, size) for size in truth.shape)
    nothing = (slice(0, 0),) * truth.ndim
    for label in labels:
        box = (_union(*(found[label - 1] for found in boxes)) or nothing) if label else everything
        yield label, _distances_in_box(truth[box] == label, prediction[box] == label, spacing)


def hausdorff(distances: SurfaceDistances, percentile: float = 100.0) -> float:
    """Return the Hausdorff distance in mm, or its robust form for a `percentile` below 100 (HD95: 95).

    Each direction's value is the smallest distance within which `percentile` percent of that surface's area lie; the
    larger of the two is returned. Source: Huttenlocher et al., IEEE TPAMI 15 (1993).

    Returns:
        mm; infinite if one surface is empty, NaN if both are.
    """
    if distances.both_empty:
        return math.nan
    return max(
        _area_percentile(distances.truth_to_prediction, distances.truth_areas, percentile),
        _area_percentile(distances.prediction_to_truth, distances.prediction_areas, percentile),
    )


def average_surface_distance(distances: SurfaceDistances) -> float:
    """Return the average symmetric surface distance (ASSD) in mm: the mean over the area of both surfaces together.

    Source: Heimann et al., Comparison and evaluation of methods for liver segmentation, IEEE TMI 28 (2009).

    Returns:
        mm; infinite if one surface is empty, NaN if both are.
    """
    area = distances.truth_areas.sum() + distances.prediction_areas.sum()
    if area == 0:
        return math.nan
    total = np.sum(distances.truth_to_prediction * distances.truth_areas)
    total += np.sum(distances.prediction_to_truth * distances.prediction_areas)
    return float(total / area)


def normalised_surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Return the share of both surfaces' area that lies within `tolerance_mm` of the other surface.

    Source: Nikolov et al., arXiv:1809.04430.

    Args:
        distances: Of the two surfaces.
        tolerance_mm: Distance that still counts as agreement, in mm, inclusive.

    Returns:
        0 to 1; 0 if one surface is empty, NaN if both are.
    """
    area = distances.truth_areas.sum() + distances.prediction_areas.sum()
    if area == 0:
        return math.nan
    near = distances.truth_areas[distances.truth_to_prediction <= tolerance_mm].sum()
    near += distances.prediction_areas[distances.prediction_to_truth <= tolerance_mm].sum()
    return float(near / area)


def image_diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Return the length in mm of the diagonal of an image: what a missed structure costs in tables.

    Args:
        shape: Number of voxels along each axis.
        spacing: Voxel spacing in mm, same order.
    """
    return math.sqrt(sum((size * step) ** 2 for size, step in zip(shape, spacing, strict=True)))


@functools.lru_cache(maxsize=64)
def surface_element_areas(spacing: tuple[float, ...]) -> np.ndarray:
    """Return the area of the surface element of each possible neighbourhood of voxels.

    The bits of the code are the voxels of the neighbourhood in reading order, the first voxel the highest bit. The
    surface separates the corners of one sort (those that are fewer) from the rest, one piece for each group of corners
    that edges of the cube join. Its vertices are the middles of the cut edges, so few forms exist, and only the form of
    a group and its direction matter.

    Args:
        spacing: Voxel spacing in mm, three numbers (2D: two).

    Returns:
        (256,) areas in mm^2 (2D: (16,) lengths in mm), not writable. 0 for the codes without any surface.
    """
    dimensions = len(spacing)
    corners = list(itertools.product((0, 1), repeat=dimensions))
    # A normal vector of length "area on a unit grid" scales with the product of the other axes' spacings.
    scale = np.prod(spacing) / np.asarray(spacing, float)
    areas = np.zeros(2 ** len(corners))
    for code in range(len(areas)):
        inside = [corner for bit, corner in enumerate(reversed(corners)) if code >> bit & 1]
        if 2 * len(inside) > len(corners):
            inside = [corner for corner in corners if corner not in inside]
        for group in _joined(inside):
            areas[code] += sum(np.linalg.norm(normal * scale) for normal in _group_normals(group))
    areas.flags.writeable = False
    return areas


def _joined(corners: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Yield the groups of `corners` that edges of the cube connect."""
    left = set(corners)
    while left:
        group, front = [], [left.pop()]
        while front:
            corner = front.pop()
            group.append(corner)
            near = {other for other in left if sum(a != b for a, b in zip(corner, other, strict=True)) == 1}
            left -= near
            front.extend(near)
        yield group


def _group_normals(group: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Return the flat pieces that separate one group of corners, as vectors (signs do not matter) of their area."""
    dimensions = len(group[0])
    unit, ones = np.eye(dimensions), np.ones(dimensions)
    degree = dict.fromkeys(group, 0)
    along = np.zeros(dimensions, int)  # edges of the cube inside the group, by axis
    for one, other in itertools.combinations(group, 2):
        differs = [axis for axis in range(dimensions) if one[axis] != other[axis]]
        if len(differs) == 1:
            along[differs[0]] += 1
            degree[one] += 1
            degree[other] += 1
    if dimensions == 2:
        return [ones / 2] if len(group) == 1 else [unit[int(np.argmin(along))]]
    if len(group) == 1:  # a corner: one triangle
        return [ones / 8]
    if len(group) == 2:  # an edge: one slanted rectangle
        return [(ones - unit[int(np.argmax(along))]) / 2]
    if len(group) == 3:  # an L: half of a face, and a slanted trapezium
        return [unit[int(np.argmin(along))] / 2, ones * 3 / 8]
    if along.max() == 2:  # a face
        return [unit[int(np.argmin(along))]]
    if max(degree.values()) == 3:  # a corner with its three neighbours: a regular hexagon
        return [ones * 3 / 4]
    # a path along all three axes: a hexagon folded about its middle edge
    inner = [corner for corner in group if degree[corner] == 2]
    middle = next(axis for axis in range(3) if inner[0][axis] != inner[1][axis])
    return [ones / 2, *((unit[middle] + unit[axis]) / 4 for axis in range(3) if axis != middle)]


def _distances_in_box(truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> SurfaceDistances:
    """Measure two bool masks of one shape, outside of which there is nothing."""
    codes = [_neighbourhood_codes(mask) for mask in (truth, prediction)]
    whole = np.uint8(2**2**truth.ndim - 2)
    borders = [(code - np.uint8(1)) < whole for code in codes]  # neither wholly outside (0) nor inside (all bits)
    areas = surface_element_areas(spacing)
    weights = [areas[code[border]] for code, border in zip(codes, borders, strict=True)]
    lengths = [_nearest(borders[0], borders[1], spacing), _nearest(borders[1], borders[0], spacing)]
    orders = [np.argsort(length, kind="stable") for length in lengths]
    return SurfaceDistances(lengths[0][orders[0]], weights[0][orders[0]], lengths[1][orders[1]], weights[1][orders[1]])


def _neighbourhood_codes(mask: np.ndarray) -> np.ndarray:
    """Return the code of the 2x2x2 (2x2) voxels around each corner point: an axis of n voxels has n + 1 points."""
    code = np.pad(mask, 1).astype(np.uint8)
    for step, axis in enumerate(reversed(range(mask.ndim))):
        before = code[(slice(None),) * axis + (slice(None, -1),)]
        after = code[(slice(None),) * axis + (slice(1, None),)]
        code = before << np.uint8(2**step) | after
    return code


def _nearest(points: np.ndarray, targets: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Return the distance in mm from each point (True, in reading order) to the nearest target.

    A distance transform costs the same for every voxel of the box, a tree for every point: the cheaper one is taken.
    Both are exact, and compute the distance from the whole number of voxels between the two points.
    """
    count = np.count_nonzero(points)
    if not count:
        return np.empty(0)
    if not targets.any():
        return np.full(count, np.inf)
    apart = points & ~targets
    if 4 * (np.count_nonzero(apart) + np.count_nonzero(targets)) > points.size:
        return ndimage.distance_transform_edt(~targets, sampling=spacing)[points]
    distances = np.zeros(count)
    step = np.asarray(spacing)
    start, goal = np.argwhere(apart), np.argwhere(targets)
    if len(start):
        tree = cKDTree(goal * step, compact_nodes=False, balanced_tree=False)
        offset = (goal[tree.query(start * step)[1]] - start) * step
        distances[apart[points]] = np.sqrt((offset * offset).sum(1))
    return distances


def _area_percentile(distances: np.ndarray, areas: np.ndarray, percentile: float) -> float:
    if not distances.size:
        return math.inf
    if percentile >= 100:
        return float(distances[-1])
    share = np.cumsum(areas) / areas.sum()
    index = np.searchsorted(share, percentile / 100.0)
    return float(distances[min(index, len(distances) - 1)])


def _checked(truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> tuple[float, ...]:
    if truth.shape != prediction.shape:
        raise DataError(
            f"truth has shape {truth.shape}, prediction has {prediction.shape}; bring both to one grid before "
            "comparing."
        )
    if truth.ndim not in (2, 3):
        raise DataError(f"surfaces are measured in 2D and 3D masks, this one has shape {truth.shape}.")
    numbers = tuple(float(step) for step in spacing)
    if len(numbers) != truth.ndim or not all(math.isfinite(step) and step > 0 for step in numbers):
        raise GeometryError(
            f"spacing {numbers} of a mask of shape {truth.shape} must be {truth.ndim} positive finite numbers in mm."
        )
    return numbers


def _indexable(labels: np.ndarray) -> np.ndarray:
    return labels.view(np.uint8) if labels.dtype == bool else labels


def _union(*boxes: tuple[slice, ...] | None) -> tuple[slice, ...] | None:
    """Return the smallest box that holds all `boxes`, None being an empty one."""
    found = [box for box in boxes if box is not None]
    if not found:
        return None
    return tuple(
        slice(min(part.start for part in axis), max(part.stop for part in axis)) for axis in zip(*found, strict=True)
    )
