"""All measures of one case by name: the one way from two label maps to a row of a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from itkit._support.suggestions import did_you_mean
from itkit.errors import UsageError
from itkit.measures import surface
from itkit.measures.overlap import OVERLAP_MEASURES, class_counts, confusion_matrix

SURFACE_MEASURES: dict[str, Callable[[surface.SurfaceDistances, float], float]] = {
    "HD95": lambda distances, _: surface.hausdorff(distances, 95.0),
    "HD": lambda distances, _: surface.hausdorff(distances),
    "ASSD": lambda distances, _: surface.average_surface_distance(distances),
    "NSD": surface.normalised_surface_dice,
}
"""Measure name in configs and tables -> function of the distances and the tolerance in mm."""

MEASURES = (*OVERLAP_MEASURES, *SURFACE_MEASURES)
"""Every name that `measures` of a config may hold."""


def check_measures(measures: Collection[str]) -> tuple[str, ...]:
    """Return `measures` as a tuple.

    Raises:
        UsageError: If there is none, or one has an unknown name; the nearest valid one is named.
    """
    if isinstance(measures, str) or not measures:
        raise UsageError(f"measures must be a list of names out of {', '.join(MEASURES)}; found {measures!r}.")
    for name in measures:
        if name not in MEASURES:
            raise UsageError(
                f"unknown measure {name!r}; there are {', '.join(MEASURES)}.{did_you_mean(name, MEASURES)}"
            )
    return tuple(measures)


def overlap_values(counts: np.ndarray, measures: Collection[str]) -> dict[str, np.ndarray]:
    """Return those of `measures` that follow from the counts: name -> (K,) float64, NaN where undefined.

    Args:
        counts: (K, 4) as `itkit.measures.overlap.class_counts` gives them.
        measures: Names; those of surface measures are passed over.
    """
    return {name: OVERLAP_MEASURES[name](counts) for name in measures if name in OVERLAP_MEASURES}


def surface_values(
    truth: np.ndarray,
    prediction: np.ndarray,
    num_classes: int,
    measures: Collection[str],
    spacing: Sequence[float],
    *,
    nsd_tolerance_mm: float = 1.0,
    ignore_index: int | None = None,
) -> dict[str, np.ndarray]:
    """Return those of `measures` that need surfaces: name -> (K,) float64, NaN where undefined.

    The background (class 0) is not measured: NaN. A class that only one of the maps has gets NSD 0, and as
    distances the diagonal of the image in mm.

    Args:
        truth: Integer labels, (Z, Y, X) or (Y, X).
        prediction: Integer labels of the same shape.
        num_classes: Number of classes K, background included.
        measures: Names; those of overlap measures are passed over.
        spacing: Voxel spacing in mm, in the order of the axes.
        nsd_tolerance_mm: Tolerance of the normalised surface Dice, in mm.
        ignore_index: Label of the truth whose voxels count as background in both maps. ``None``: there is none.

    Raises:
        DataError: If the shapes differ or are neither 2D nor 3D.
        GeometryError: If `spacing` does not hold one positive finite number for each axis.
    """
    found = label_surface_values(
        truth,
        prediction,
        range(1, num_classes),
        measures,
        spacing,
        nsd_tolerance_mm=nsd_tolerance_mm,
        ignore_label=ignore_index,
    )
    return {name: np.append(np.nan, values)[:num_classes] for name, values in found.items()}


def label_surface_values(
    truth: np.ndarray,
    prediction: np.ndarray,
    labels: Sequence[int],
    measures: Collection[str],
    spacing: Sequence[float],
    *,
    nsd_tolerance_mm: float | Mapping[int, float] = 1.0,
    ignore_label: int | None = None,
) -> dict[str, np.ndarray]:
    """Return those of `measures` that need surfaces, for labels of any number: name -> (len(labels),) float64.

    The rule for absent labels is that of `surface_values`.

    Args:
        truth: Integer labels, (Z, Y, X) or (Y, X).
        prediction: Integer labels of the same shape.
        labels: Labels to measure, each above 0.
        measures: Names; those of overlap measures are passed over.
        spacing: Voxel spacing in mm, in the order of the axes.
        nsd_tolerance_mm: Tolerance of the normalised surface Dice in mm, one for all or label -> tolerance.
        ignore_label: Label of the truth whose voxels count as background in both maps. ``None``: there is none.

    Raises:
        DataError: If the shapes differ or are neither 2D nor 3D.
        GeometryError: If `spacing` does not hold one positive finite number for each axis.
    """
    wanted = [name for name in measures if name in SURFACE_MEASURES]
    values = {name: np.full(len(labels), np.nan) for name in wanted}
    if not wanted:
        return values
    if ignore_label is not None:
        ignored = truth == ignore_label
        if ignored.any():
            truth, prediction = np.where(ignored, 0, truth), np.where(ignored, 0, prediction)
    diagonal = surface.image_diagonal(truth.shape, spacing)
    pairs = surface.label_surface_distances(truth, prediction, labels, spacing)
    for place, (label, distances) in enumerate(pairs):
        tolerance = nsd_tolerance_mm[label] if isinstance(nsd_tolerance_mm, Mapping) else nsd_tolerance_mm
        for name in wanted:
            value = SURFACE_MEASURES[name](distances, tolerance)
            values[name][place] = diagonal if math.isinf(value) else value
    return values


def case_values(
    truth: np.ndarray,
    prediction: np.ndarray,
    num_classes: int,
    measures: Collection[str],
    spacing: Sequence[float],
    *,
    nsd_tolerance_mm: float = 1.0,
    ignore_index: int | None = None,
) -> dict[str, np.ndarray]:
    """Return all `measures` of one case: name -> (K,) float64 in the order of `measures`, NaN where undefined.

    The arguments are those of `surface_values`.

    Raises:
        UsageError: If a measure has an unknown name.
        DataError: If the shapes differ, or a label is out of range or no integer.
        GeometryError: If `spacing` does not hold one positive finite number for each axis.
    """
    measures = check_measures(measures)
    counts = class_counts(confusion_matrix(truth, prediction, num_classes, ignore_index=ignore_index))
    found = overlap_values(counts, measures) | surface_values(
        truth, prediction, num_classes, measures, spacing, nsd_tolerance_mm=nsd_tolerance_mm, ignore_index=ignore_index
    )
    return {name: found[name] for name in measures}
