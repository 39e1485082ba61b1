"""Laws of the measures over random masks: symmetry, invariance to placement and to the order of axes, and bounds."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from itkit.measures import surface
from itkit.measures.components import components, keep_largest, remove_small
from itkit.measures.overlap import class_counts, confusion_matrix, dice, iou, precision, recall

LAWS = settings(max_examples=40, deadline=None, derandomize=True)
SHAPES = st.tuples(*(st.integers(1, 6),) * 3)
SPACINGS = st.tuples(*(st.sampled_from([0.3, 0.7, 1.0, 2.5]),) * 3)


@st.composite
def pairs(draw, classes=4):
    shape = draw(SHAPES)
    labels = arrays.arrays(np.uint8, shape, elements=st.integers(0, classes - 1))
    return draw(labels), draw(labels)


def measures(distances):
    return (
        surface.hausdorff(distances),
        surface.hausdorff(distances, 95),
        surface.average_surface_distance(distances),
        surface.normalised_surface_dice(distances, 1.0),
    )


@LAWS
@given(pairs())
def test_overlap_laws(pair):
    truth, prediction = pair
    matrix = confusion_matrix(truth, prediction, 4)
    counts = class_counts(matrix)
    assert matrix.sum() == truth.size
    np.testing.assert_array_equal(matrix, confusion_matrix(prediction, truth, 4).T)
    swapped = class_counts(matrix.T)
    np.testing.assert_array_equal(dice(counts), dice(swapped))
    np.testing.assert_array_equal(precision(counts), recall(swapped))
    np.testing.assert_allclose(dice(counts), 2 * iou(counts) / (1 + iou(counts)))
    half = truth.shape[0] // 2
    parts = (confusion_matrix(truth[part], prediction[part], 4) for part in (slice(half), slice(half, None)))
    np.testing.assert_array_equal(sum(parts), matrix)


@LAWS
@given(pairs(2), SPACINGS)
def test_surface_measures_are_symmetric_and_know_no_axis_order(pair, spacing):
    truth, prediction = pair
    found = measures(surface.surface_distances(truth, prediction, spacing))
    np.testing.assert_allclose(measures(surface.surface_distances(prediction, truth, spacing)), found, rtol=1e-12)
    turned = surface.surface_distances(truth.transpose(2, 0, 1), prediction.transpose(2, 0, 1), np.roll(spacing, 1))
    np.testing.assert_allclose(measures(turned), found, rtol=1e-12)
    flipped = surface.surface_distances(truth[::-1, :, ::-1], prediction[::-1, :, ::-1], spacing)
    np.testing.assert_allclose(measures(flipped), found, rtol=1e-12)


@LAWS
@given(pairs(2), SPACINGS, st.tuples(*(st.tuples(st.integers(0, 3), st.integers(0, 3)),) * 3))
def test_surface_measures_do_not_see_the_image_around(pair, spacing, margins):
    near = surface.surface_distances(*pair, spacing)
    far = surface.surface_distances(*(np.pad(mask, margins) for mask in pair), spacing)
    np.testing.assert_allclose(measures(far), measures(near), rtol=1e-12)
    np.testing.assert_allclose(far.truth_areas.sum(), near.truth_areas.sum(), rtol=1e-12)


@LAWS
@given(pairs(2), SPACINGS)
def test_surface_measures_are_ordered_and_scale_with_the_unit(pair, spacing):
    distances = surface.surface_distances(*pair, spacing)
    far, robust, average, _ = measures(distances)
    if not distances.both_empty:
        assert 0 <= robust <= far
        assert average <= far or np.isclose(average, far)
    doubled = surface.surface_distances(*pair, tuple(2 * step for step in spacing))
    np.testing.assert_allclose(measures(doubled)[:3], [2 * far, 2 * robust, 2 * average], rtol=1e-12)
    shares = [surface.normalised_surface_dice(distances, tolerance) for tolerance in (0.0, 0.5, 1.0, 5.0)]
    assert np.isnan(shares).all() or shares == sorted(shares)


@LAWS
@given(pairs(), st.sampled_from(["face", "edge", "corner"]))
def test_component_laws(pair, connectivity):
    labels, _ = pair
    largest = keep_largest(labels, connectivity=connectivity)
    assert set(np.unique(largest)) | {0} == set(np.unique(labels)) | {0}
    assert (largest == labels)[largest > 0].all()
    np.testing.assert_array_equal(keep_largest(largest, connectivity=connectivity), largest)
    for label in range(1, 4):
        _, sizes = components(labels == label, connectivity=connectivity)
        assert (largest == label).sum() == max(sizes[1:], default=0)
    cleaned = remove_small(labels, 3.0, (1, 1, 1), connectivity=connectivity)
    for label in range(1, 4):
        assert all(components(cleaned == label, connectivity=connectivity)[1][1:] >= 3)
