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

from itkit.errors import DataError, GeometryError
from itkit.measures.runs import label_boxes, require_same_shape

_NEAR = 224
"""Places around an element that are looked at one after the other before a search over all elements is made."""
_NEAR_ROUNDS = (8, 32, 96, _NEAR)
_PAIRS = 1 << 20  # distances computed at once
_POINT_COST, _TARGET_COST = 18, 2  # of a search tree, in voxels of a distance transform
_LARGEST = 1 << 17  # boxes of labels from here on are not kept in a table


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
    box = label_boxes(truth, prediction, 1)[0] or (slice(0, 0),) * truth.ndim
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
    labels, names = list(labels), None
    if max(labels, default=0) >= _LARGEST:
        names, labels = labels, list(range(1, len(labels) + 1))
        truth, prediction = (_numbered(volume, names) for volume in (truth, prediction))
    boxes = label_boxes(truth, prediction, max(labels, default=0))
    everything = tuple(slice(0, size) for size in truth.shape)
    nothing = (slice(0, 0),) * truth.ndim
    for label in labels:
        box = (boxes[label - 1] or nothing) if label else everything
        name = label if names is None else names[label - 1]
        yield name, _distances_in_box(truth[box] == label, prediction[box] == label, spacing)


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
    offsets = _near_offsets(spacing)[0]
    margin = tuple(int(reach) for reach in np.abs(offsets).max(0))
    codes = [_neighbourhood_codes(mask, margin) for mask in (truth, prediction)]
    shape = codes[0].shape
    whole = np.uint8(2**2**truth.ndim - 2)
    codes = [code.ravel() for code in codes]
    borders = [(code - np.uint8(1)) < whole for code in codes]  # neither wholly outside (0) nor inside (all bits)
    places = [np.flatnonzero(border) for border in borders]
    areas = surface_element_areas(spacing)
    found = []
    for own, other in ((0, 1), (1, 0)):
        lengths = _nearest(places[own], borders[other], places[other], shape, spacing)
        order = np.argsort(lengths, kind="stable")
        found += [lengths[order], areas[codes[own][places[own]]][order]]
    return SurfaceDistances(*found)


def _neighbourhood_codes(mask: np.ndarray, margin: tuple[int, ...]) -> np.ndarray:
    """Return the code of the 2x2x2 (2x2) voxels around each corner point, and zeros in a margin around.

    An axis of n voxels has n + 1 corner points, and ``margin`` more on either side.
    """
    code = np.zeros([size + 2 + 2 * more for size, more in zip(mask.shape, margin, strict=True)], np.uint8)
    code[tuple(slice(more + 1, more + 1 + size) for size, more in zip(mask.shape, margin, strict=True))] = mask
    for step, axis in enumerate(reversed(range(mask.ndim))):
        before = code[(slice(None),) * axis + (slice(None, -1),)]
        after = code[(slice(None),) * axis + (slice(1, None),)]
        code = before << np.uint8(2**step)
        code |= after
    return code


@functools.lru_cache(maxsize=64)
def _near_offsets(spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return about `_NEAR` places around a point, nearest first: no place that is left out is nearer than the last one.

    Returns:
        Steps along the axes, (n, axes) int64, and their lengths in mm, (n,).
    """
    step = np.asarray(spacing)
    ball = 4 / 3 * math.pi if len(step) == 3 else math.pi
    reach = (_NEAR * np.prod(step) / ball) ** (1 / len(step))
    counts = np.minimum(reach / step, _NEAR).astype(int)
    grid = np.meshgrid(*(np.arange(-count, count + 1) for count in counts), indexing="ij")
    steps = np.stack(grid, -1).reshape(-1, len(step))
    lengths = np.sqrt(((steps * step) ** 2).sum(1))
    order = np.argsort(lengths, kind="stable")[1 : _NEAR + 1]  # the first of all is the point itself
    order = order[lengths[order] <= reach]
    return steps[order], lengths[order]


def _nearest(
    points: np.ndarray, target_mask: np.ndarray, targets: np.ndarray, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> np.ndarray:
    """Return the distance in mm from each point to the nearest target.

    Where two segmentations agree, the nearest target lies a few steps away: the places around a point are looked at from
    near to far, and most points are done soon. What is left is held against all targets if these are few, else searched
    by a tree, whose cost is that of the points, or by a distance transform, whose cost is that of the box. All ways are
    exact, and compute the distance from the whole number of voxels between two points.

    Args:
        points: Flat indices into the box, (n,).
        target_mask: Whether a place of the box is a target, flat. The box has the margin of `_near_offsets`.
        targets: Flat indices of the targets.
        shape: Of the box.
        spacing: In mm, in the order of the axes.
    """
    if not len(targets):
        return np.full(len(points), np.inf)
    distances = np.zeros(len(points))
    left = np.flatnonzero(~target_mask[points])
    steps, lengths = _near_offsets(spacing)
    strides = np.cumprod((1, *shape[:0:-1]))[::-1]
    offsets = steps @ strides
    begin = 0
    for end in _NEAR_ROUNDS:
        if not len(left) or (begin > _NEAR_ROUNDS[0] and 2 * len(left) > len(points)):
            break  # done, or the two surfaces are far apart
        missed = []
        for start in range(0, len(left), _PAIRS // (end - begin)):
            part = left[start : start + _PAIRS // (end - begin)]
            hit = target_mask[points[part, None] + offsets[begin:end]]
            first = hit.argmax(1)
            found = hit[np.arange(len(part)), first]
            distances[part[found]] = lengths[begin:end][first[found]]
            missed.append(part[~found])
        left, begin = np.concatenate(missed), end
    if len(left):
        distances[left] = _nearest_far(points[left], target_mask, targets, shape, np.asarray(spacing))
    return distances


def _nearest_far(
    points: np.ndarray, target_mask: np.ndarray, targets: np.ndarray, shape: tuple[int, ...], step: np.ndarray
) -> np.ndarray:
    """Return what `_nearest` returns, at a cost that does not depend on how far the targets are."""
    start, goal = (np.stack(np.unravel_index(flat, shape), 1) for flat in (points, targets))
    if len(points) * len(targets) <= _PAIRS // 4:
        apart = ((start[:, None, axis] - goal[:, axis]) * step[axis] for axis in range(len(shape)))
        return np.sqrt(functools.reduce(np.add, (lengths * lengths for lengths in apart)).min(1))
    if _POINT_COST * len(points) + _TARGET_COST * len(targets) > target_mask.size:
        from scipy import ndimage

        found = ndimage.distance_transform_edt(
            ~target_mask.reshape(shape), sampling=tuple(step), return_distances=False, return_indices=True
        )
        nearest = found.reshape(len(shape), -1)[:, points].T
    else:
        from scipy.spatial import cKDTree

        tree = cKDTree(goal * step, compact_nodes=False, balanced_tree=False)
        nearest = goal[tree.query(start * step)[1]]
    return np.sqrt((((nearest - start) * step) ** 2).sum(1))


def _area_percentile(distances: np.ndarray, areas: np.ndarray, percentile: float) -> float:
    if not distances.size:
        return math.inf
    if percentile >= 100:
        return float(distances[-1])
    share = np.cumsum(areas) / areas.sum()
    index = np.searchsorted(share, percentile / 100.0)
    return float(distances[min(index, len(distances) - 1)])


def _checked(truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> tuple[float, ...]:
    require_same_shape(truth, prediction)
    if truth.ndim not in (2, 3):
        raise DataError(f"surfaces are measured in 2D and 3D masks, this one has shape {truth.shape}.")
    numbers = tuple(float(step) for step in spacing)
    if len(numbers) != truth.ndim or not all(math.isfinite(step) and step > 0 for step in numbers):
        raise GeometryError(
            f"spacing {numbers} of a mask of shape {truth.shape} must be {truth.ndim} positive finite numbers in mm."
        )
    return numbers


def _numbered(volume: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Return `volume` with each of `labels` replaced by its place in them, counted from 1, and all else by 0."""
    order = np.argsort(labels)
    known = np.asarray(labels)[order]
    place = np.minimum(np.searchsorted(known, volume), len(known) - 1)
    return np.where(known[place] == volume, order[place] + 1, 0)
