"""Surface distances by hand: slabs and cubes whose surfaces are known, empty masks, and refusals."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from itkit.errors import DataError, GeometryError
from itkit.measures import surface
from itkit.measures.surface import (
    average_surface_distance,
    hausdorff,
    image_diagonal,
    label_surface_distances,
    normalised_surface_dice,
    surface_distances,
    surface_element_areas,
)


def box(*slices, shape=(12, 12, 12)):
    mask = np.zeros(shape, bool)
    mask[slices] = True
    return mask


def test_two_cubes_a_shift_apart():
    one, other = box(*(slice(3, 6),) * 3), box(slice(3, 6), slice(3, 6), slice(5, 8))
    found = surface_distances(one, other, (1.0, 1.0, 0.5))
    assert hausdorff(found) == 1.0  # two voxels of 0.5 mm
    assert normalised_surface_dice(found, 1.0) == 1.0
    assert 0 < normalised_surface_dice(found, 0.9) < 1
    assert 0 < average_surface_distance(found) < 1


def test_identical_masks():
    found = surface_distances(box(2, 3, 4), box(2, 3, 4), (1, 2, 3))
    assert (hausdorff(found), hausdorff(found, 95), average_surface_distance(found)) == (0, 0, 0)
    assert normalised_surface_dice(found, 0) == 1


def test_area_of_a_single_voxel_is_that_of_its_octahedron():
    spacing = np.array([3.0, 2.0, 0.5])
    found = surface_distances(box(4, 4, 4), box(4, 4, 4), spacing)
    triangle = np.linalg.norm(np.prod(spacing) / spacing) / 8
    assert found.truth_areas.sum() == pytest.approx(8 * triangle)


def test_area_of_a_face_is_that_of_the_pixels():
    found = surface_distances(box(slice(5, None)), box(slice(5, None)), (1.0, 2.0, 3.0))
    flat = found.truth_areas[np.isclose(found.truth_areas, 6.0)]
    assert len(flat) == 2 * 11 * 11  # both sides of the slab, without the rim


def test_percentile_leaves_out_the_smallest_far_area():
    one = box(*(slice(1, 9),) * 3)
    other = one.copy()
    other[11, 4, 4] = True
    found = surface_distances(one, other, (1, 1, 1))
    assert hausdorff(found) == pytest.approx(math.dist((11.5,), (8.5,)))
    assert hausdorff(found, 95) == 0


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 7)])
def test_empty_masks(shape):
    empty, one = np.zeros(shape, bool), np.zeros(shape, bool)
    one[(2,) * len(shape)] = True
    spacing = (1.0,) * len(shape)
    both = surface_distances(empty, empty, spacing)
    assert all(map(math.isnan, (hausdorff(both, 95), average_surface_distance(both), normalised_surface_dice(both, 1))))
    for truth, prediction in ((empty, one), (one, empty)):
        found = surface_distances(truth, prediction, spacing)
        assert hausdorff(found, 95) == math.inf
        assert hausdorff(found) == math.inf
        assert average_surface_distance(found) == math.inf
        assert normalised_surface_dice(found, 1000.0) == 0


def test_mask_that_fills_the_image_has_its_surface_at_the_border():
    found = surface_distances(np.ones((4, 5), bool), np.ones((4, 5), bool), (1, 1))
    assert found.truth_areas.sum() == pytest.approx(2 * 3 + 2 * 4 + 4 * math.sqrt(0.5))


def test_inputs_are_not_modified():
    one, other = box(3, 4, 5).astype(np.int64), box(4, 4, 5).astype(np.int64)
    before = one.copy(), other.copy()
    surface_distances(one, other, (1, 1, 1))
    np.testing.assert_array_equal((one, other), before)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint32, np.int64, np.uint64])
def test_labels_of_any_type_equal_masks_one_by_one(dtype):
    truth = np.zeros((9, 10, 11), dtype)
    truth[1:4, 2:5, 3:8], truth[5:8, 1:3, 2:4] = 1, dtype(2) if dtype is not bool else 1
    prediction = np.roll(truth, 1, 2)
    for label, found in label_surface_distances(truth, prediction, [0, 1, 2], (3, 1, 2)):
        alone = surface_distances(truth == label, prediction == label, (3, 1, 2))
        np.testing.assert_array_equal(found.truth_to_prediction, alone.truth_to_prediction)
        np.testing.assert_allclose(found.prediction_areas, alone.prediction_areas)


def only_one_way(found_by, monkeypatch):
    """Leave one of the ways of searching, and make sure that no other is taken."""

    def refuse(*_, **__):
        raise AssertionError("not this way")

    if found_by == "near":
        monkeypatch.setattr(surface, "_nearest_far", refuse)
        return
    monkeypatch.setattr(surface, "_NEAR_ROUNDS", ())
    monkeypatch.setattr(surface, "_PAIRS", 1 << 40 if found_by == "pairs" else 0)
    monkeypatch.setattr(surface, "_POINT_COST", 0 if found_by == "tree" else 1 << 40)
    monkeypatch.setattr(surface, "_TARGET_COST", 0)
    for name, function in (("transform", "ndimage.distance_transform_edt"), ("tree", "spatial.cKDTree")):
        if found_by != name:
            monkeypatch.setattr(f"scipy.{function}", refuse)


@pytest.mark.parametrize("found_by", ["near", "pairs", "tree", "transform"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.7, 0.9), (0.3, 4.0, 1.0)])
def test_every_way_of_searching_equals_all_pairs(found_by, spacing, monkeypatch):
    generator = np.random.default_rng(0)
    truth = np.zeros((14, 15, 16), bool)
    truth[3:10, 4:12, 3:12] = True
    prediction = truth ^ (generator.random(truth.shape) < 0.04)
    prediction = np.roll(truth, 1, 2) if found_by == "near" else np.roll(prediction, (3, 2, 3), (0, 1, 2))
    only_one_way(found_by, monkeypatch)
    found = surface_distances(truth, prediction, spacing)
    places = []
    for mask in (truth, prediction):
        window = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1), (2, 2, 2)).sum((3, 4, 5))
        places.append(np.argwhere((window > 0) & (window < 8)) * spacing)
    between = np.sqrt(((places[0][:, None] - places[1]) ** 2).sum(-1))
    np.testing.assert_allclose(found.truth_to_prediction, np.sort(between.min(1)), rtol=1e-12)
    np.testing.assert_allclose(found.prediction_to_truth, np.sort(between.min(0)), rtol=1e-12)


@pytest.mark.parametrize(
    "spacing", [(1.0, 1.0, 1.0), (20.0, 0.3, 0.3), (1e-6, 1.0, 1.0), (0.01, 100.0, 100.0), (0.5, 7.0)]
)
def test_no_place_nearer_than_the_last_near_one_is_left_out(spacing):
    steps, lengths = surface._near_offsets(spacing)
    assert 8 <= len(steps) <= surface._NEAR
    assert (np.diff(lengths) >= 0).all()
    reach = np.abs(steps).max(0) + 1
    around = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), -1).reshape(-1, len(spacing))
    nearer = np.sqrt(((around * np.asarray(spacing)) ** 2).sum(1)) < lengths[-1] * (1 - 1e-12)
    known = {tuple(step) for step in steps.tolist()} | {(0,) * len(spacing)}
    assert {tuple(step) for step in around[nearer].tolist()} <= known


def test_labels_may_have_any_number():
    truth = np.zeros((9, 10, 11), np.int64)
    truth[1:4, 2:5, 3:8], truth[5:8, 1:3, 2:4] = 2**40, 7
    prediction = np.roll(truth, 1, 2)
    for label, found in label_surface_distances(truth, prediction, [2**40, 7, 5], (3, 1, 2)):
        alone = surface_distances(truth == label, prediction == label, (3, 1, 2))
        np.testing.assert_array_equal(found.truth_to_prediction, alone.truth_to_prediction)
        np.testing.assert_array_equal(found.prediction_areas, alone.prediction_areas)


def test_scipy_is_not_loaded_where_the_surfaces_are_near():
    code = (
        "import sys, numpy as np\n"
        "from itkit.measures.case import case_values\n"
        "truth = np.zeros((20, 20, 20), np.uint8); truth[5:15, 5:15, 5:15] = 1\n"
        "case_values(truth, np.roll(truth, 1, 0), 2, ('Dice', 'HD95', 'NSD'), (1, 1, 1))\n"
        "print([name for name in sys.modules if name.startswith('scipy')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_areas_are_symmetric_under_complement_and_not_writable():
    areas = surface_element_areas((3.0, 2.0, 0.5))
    np.testing.assert_allclose(areas, areas[::-1])
    with pytest.raises(ValueError, match="read-only"):
        areas[3] = 0


def test_image_diagonal():
    assert image_diagonal((3, 4), (1.0, 1.0)) == 5


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, 1, -1), (1, 1, math.nan), (1, math.inf, 1)])
def test_bad_spacing_is_refused(spacing):
    with pytest.raises(GeometryError, match="must be 3 positive finite numbers in mm"):
        surface_distances(box(1, 1, 1), box(1, 1, 1), spacing)


def test_bad_shapes_are_refused():
    with pytest.raises(DataError, match=r"truth has shape \(2, 2\), prediction has \(2, 3\)"):
        surface_distances(np.ones((2, 2)), np.ones((2, 3)), (1, 1))
    with pytest.raises(DataError, match="surfaces are measured in 2D and 3D masks"):
        surface_distances(np.ones(4), np.ones(4), (1,))
