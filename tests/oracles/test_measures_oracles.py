"""Our measures against DeepMind's surface-distance and MONAI, on random blobs with anisotropic spacing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from itkit.measures import surface
from itkit.measures.case import case_values

deepmind = pytest.importorskip("surface_distance.metrics")
tables = pytest.importorskip("surface_distance.lookup_tables")
SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.7, 0.9), (0.4, 2.0, 1.1)]


def blobs(shape, seed, num_classes=3):
    generator = np.random.default_rng(seed)
    field, noise = (ndimage.gaussian_filter(generator.standard_normal(shape), sigma) for sigma in (2.5, 1.2))
    field, noise = field / field.std(), noise / noise.std()
    edges = np.linspace(0.3, 1.5, num_classes - 1)
    return np.digitize(field, edges), np.digitize(field + 0.3 * noise, edges)


def one_hot(labels, num_classes):
    return torch.from_numpy(np.stack([labels == k for k in range(num_classes)])[None].astype(np.float32))


@pytest.mark.parametrize("spacing", [*SPACINGS, (0.5, 2.0), (1.0, 1.0)])
def test_areas_of_all_surface_elements(spacing):
    table = (
        tables.create_table_neighbour_code_to_surface_area
        if len(spacing) == 3
        else tables.create_table_neighbour_code_to_contour_length
    )
    np.testing.assert_allclose(surface.surface_element_areas(spacing), table(spacing), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("seed, spacing", enumerate([*SPACINGS, *SPACINGS, (0.5, 2.0), (1.0, 0.3)]))
def test_surface_measures_equal_deepminds(seed, spacing, monkeypatch):
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    truth, prediction = blobs((18, 24, 22) if len(spacing) == 3 else (64, 60), seed)
    prediction[-1] = 2  # also at the border of the image
    for label, ours in surface.label_surface_distances(truth, prediction, (1, 2), spacing):
        theirs = deepmind.compute_surface_distances(truth == label, prediction == label, spacing)
        np.testing.assert_allclose(ours.truth_to_prediction, theirs["distances_gt_to_pred"], rtol=1e-12)
        np.testing.assert_allclose(ours.prediction_to_truth, theirs["distances_pred_to_gt"], rtol=1e-12)
        for percentile in (50, 95, 100):
            expected = deepmind.compute_robust_hausdorff(theirs, percentile)
            assert surface.hausdorff(ours, percentile) == pytest.approx(expected, rel=1e-12)
        for tolerance in (0.0, 0.7, 1.0, 2.5):
            expected = deepmind.compute_surface_dice_at_tolerance(theirs, tolerance)
            assert surface.normalised_surface_dice(ours, tolerance) == pytest.approx(expected, rel=1e-12)
        both_ways = deepmind.compute_average_surface_distance(theirs)
        assert min(both_ways) <= surface.average_surface_distance(ours) <= max(both_ways)


def test_real_hippocampi_equal_deepminds(shared_data):
    import SimpleITK as sitk

    for path in sorted(shared_data("Task04_Hippocampus").joinpath("labelsTr").glob("[!.]*.nii.gz"))[:4]:
        image = sitk.ReadImage(str(path))
        truth, spacing = (
            sitk.GetArrayFromImage(image).astype(np.uint8),
            image.GetSpacing()[::-1],
        )  # some are float files
        ours = case_values(truth, np.roll(truth, (1, -1), (1, 2)), 3, ("HD95", "NSD"), spacing)
        for label in (1, 2):
            theirs = deepmind.compute_surface_distances(
                truth == label, np.roll(truth == label, (1, -1), (1, 2)), spacing
            )
            assert ours["HD95"][label] == pytest.approx(deepmind.compute_robust_hausdorff(theirs, 95), rel=1e-12)
            assert ours["NSD"][label] == pytest.approx(
                deepmind.compute_surface_dice_at_tolerance(theirs, 1.0), rel=1e-12
            )


def test_one_empty_mask_equals_deepminds(monkeypatch):
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    truth, _ = blobs((8, 9, 10), 0, 2)
    theirs = deepmind.compute_surface_distances(truth == 1, truth == 5, (1, 1, 1))
    ours = surface.surface_distances(truth == 1, truth == 5, (1, 1, 1))
    assert surface.hausdorff(ours, 95) == deepmind.compute_robust_hausdorff(theirs, 95) == np.inf
    assert surface.normalised_surface_dice(ours, 1) == deepmind.compute_surface_dice_at_tolerance(theirs, 1) == 0


@pytest.mark.parametrize("seed", range(3))
def test_overlap_equals_monai(seed):
    from monai.metrics import ConfusionMatrixMetric, DiceMetric, MeanIoU

    truth, prediction = blobs((16, 20, 18), seed, 5)
    ours = case_values(truth, prediction, 5, ("Dice", "IoU", "Precision", "Recall"), (1, 1, 1))
    pair = one_hot(prediction, 5), one_hot(truth, 5)
    np.testing.assert_allclose(DiceMetric(reduction="none")(*pair)[0], ours["Dice"], rtol=1e-6)
    np.testing.assert_allclose(MeanIoU(reduction="none")(*pair)[0], ours["IoU"], rtol=1e-6)
    for name, theirs in (("Precision", "precision"), ("Recall", "sensitivity")):
        metric = ConfusionMatrixMetric(metric_name=theirs, compute_sample=True, reduction="none")
        metric(*pair)
        np.testing.assert_allclose(metric.aggregate()[0][0], ours[name], rtol=1e-6)


@pytest.mark.parametrize("seed, spacing", enumerate(SPACINGS))
def test_surface_dice_equals_monai_with_subvoxels_and_hausdorff_is_near(seed, spacing):
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    truth, prediction = blobs((18, 24, 22), seed)
    ours = case_values(truth, prediction, 3, ("NSD", "HD"), spacing)
    pair = one_hot(prediction, 3), one_hot(truth, 3)
    dice = compute_surface_dice(*pair, class_thresholds=[1.0, 1.0], spacing=spacing, use_subvoxels=True)
    np.testing.assert_allclose(dice[0], ours["NSD"][1:], rtol=1e-5)
    # MONAI measures between centres of border voxels: the two definitions differ by less than a voxel's diagonal
    distance = compute_hausdorff_distance(*pair, spacing=spacing)
    np.testing.assert_allclose(distance[0], ours["HD"][1:], atol=np.linalg.norm(spacing))


@pytest.mark.parametrize("shift", [(0, 0, 1), (2, 3, 2), (6, 9, 8)])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_near_and_far_predictions_equal_deepminds(shift, spacing, monkeypatch):
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    truth = np.zeros((40, 42, 44), np.uint8)
    truth[8:30, 9:32, 8:33] = blobs((22, 23, 25), 1)[0]
    prediction = np.roll(truth, shift, (0, 1, 2))
    for label, ours in surface.label_surface_distances(truth, prediction, (1, 2), spacing):
        theirs = deepmind.compute_surface_distances(truth == label, prediction == label, spacing)
        np.testing.assert_allclose(ours.truth_to_prediction, theirs["distances_gt_to_pred"], rtol=1e-12)
        np.testing.assert_allclose(ours.prediction_to_truth, theirs["distances_pred_to_gt"], rtol=1e-12)


@pytest.mark.parametrize("cases", [2, 5, 12, 40, 150])
def test_signed_rank_test_equals_scipys(cases):
    from scipy import stats

    from itkit.measures.statistics import signed_rank_test

    differences = np.random.default_rng(cases).normal(0.2, 1, cases)
    assert signed_rank_test(differences) == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue, rel=1e-9)


@pytest.mark.parametrize("digits", [1, 8])
def test_signed_rank_test_of_many_cases_equals_scipys(digits):
    from scipy import stats

    from itkit.measures.statistics import signed_rank_test

    differences = np.round(np.random.default_rng(0).normal(0.1, 1, 400), digits)
    try:  # the name of the normal approximation was changed in SciPy 1.13
        expected = stats.wilcoxon(differences, method="asymptotic").pvalue
    except ValueError:
        expected = stats.wilcoxon(differences, method="approx").pvalue
    assert signed_rank_test(differences) == pytest.approx(expected, rel=1e-9)


def test_signed_rank_test_with_ties_equals_all_sign_patterns():
    import itertools

    from itkit.measures.statistics import signed_rank_test

    differences = np.array([-2.0, 1, -3, -2, 4, 1, 4, -3, -2, 3])
    ranks = np.array([np.mean(np.flatnonzero(np.sort(np.abs(differences)) == abs(d)) + 1) for d in differences])
    sums = np.array([np.dot(signs, ranks) for signs in itertools.product((0, 1), repeat=len(ranks))])
    seen = min(ranks[differences > 0].sum(), ranks[differences < 0].sum())
    assert signed_rank_test(differences) == pytest.approx(min(1, 2 * (sums <= seen).mean()), rel=1e-12)
