"""Overlap measures: closed forms, the rule for absent classes, integer types, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from itkit.errors import DataError, UsageError
from itkit.measures.case import case_values, check_measures
from itkit.measures.overlap import OVERLAP_MEASURES, class_counts, confusion_matrix, label_counts

TRUTH = np.array([[0, 0, 1, 1], [2, 2, 2, 0]])
PREDICTION = np.array([[0, 1, 1, 1], [2, 0, 0, 0]])


def values(truth, prediction, num_classes, **options):
    counts = class_counts(confusion_matrix(np.asarray(truth), np.asarray(prediction), num_classes, **options))
    return {name: measure(counts) for name, measure in OVERLAP_MEASURES.items()}


def test_confusion_matrix_has_truth_in_rows():
    np.testing.assert_array_equal(confusion_matrix(TRUTH, PREDICTION, 3), [[2, 1, 0], [0, 2, 0], [2, 0, 1]])


def test_measures_by_hand():
    found = values(TRUTH, PREDICTION, 3)
    np.testing.assert_allclose(found["Dice"], [4 / 7, 4 / 5, 2 / 4])
    np.testing.assert_allclose(found["IoU"], [2 / 5, 2 / 3, 1 / 3])
    np.testing.assert_allclose(found["Precision"], [2 / 4, 2 / 3, 1])
    np.testing.assert_allclose(found["Recall"], [2 / 3, 1, 1 / 3])
    np.testing.assert_allclose(found["Specificity"], [3 / 5, 5 / 6, 5 / 5])


@pytest.mark.parametrize("name", sorted(OVERLAP_MEASURES.keys() - {"Specificity"}))
def test_absent_in_both_is_undefined_and_absent_in_one_is_zero(name):
    truth, prediction = np.array([0, 0, 1, 0]), np.array([0, 0, 0, 2])
    found = values(truth, prediction, 4)[name]
    assert found[1] == 0
    assert found[2] == 0
    assert np.isnan(found[3])


def test_specificity_looks_at_what_does_not_have_the_class():
    truth, prediction = np.array([0, 0, 1, 0]), np.array([0, 0, 0, 2])
    np.testing.assert_array_equal(values(truth, prediction, 4)["Specificity"], [0, 1, 3 / 4, np.nan])
    np.testing.assert_array_equal(values(np.ones(3, int), np.ones(3, int), 2)["Specificity"], [np.nan, np.nan])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64])
def test_every_integer_type_counts_the_same(dtype):
    np.testing.assert_array_equal(
        confusion_matrix(TRUTH.astype(dtype), PREDICTION.astype(np.int16), 3), confusion_matrix(TRUTH, PREDICTION, 3)
    )


def test_bool_masks_and_many_classes():
    np.testing.assert_array_equal(confusion_matrix(TRUTH == 2, PREDICTION == 2, 2), [[5, 0], [2, 1]])
    labels = np.arange(300, dtype=np.uint16)
    np.testing.assert_array_equal(confusion_matrix(labels, labels[::-1], 300), np.eye(300)[::-1])


def test_blocks_add_up():
    generator = np.random.default_rng(0)
    truth, prediction = generator.integers(0, 5, (2, 100_001), dtype=np.uint8)
    plain = np.zeros((5, 5), np.int64)
    np.add.at(plain, (truth, prediction), 1)
    np.testing.assert_array_equal(confusion_matrix(truth, prediction, 5), plain)


def test_ignored_voxels_are_not_counted():
    truth = np.array([0, 1, 255, 255], np.uint8)
    np.testing.assert_array_equal(
        confusion_matrix(truth, np.array([0, 1, 1, 0], np.uint8), 2, ignore_index=255), [[1, 0], [0, 1]]
    )
    assert confusion_matrix(np.full(3, -1), np.zeros(3, int), 2, ignore_index=-1).sum() == 0


def test_empty_arrays_count_nothing():
    assert confusion_matrix(np.zeros((0, 3), int), np.zeros((0, 3), int), 2).sum() == 0


@pytest.mark.parametrize(
    "truth, prediction, text",
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"truth has shape \(2, 3\), prediction has \(3, 2\)"),
        (np.zeros(3), np.zeros(3, int), "truth holds float64, labels must be integers"),
        (np.array([0, 3]), np.array([0, 1]), "truth holds label 3, but there are 3 classes, labels 0 to 2"),
        (np.array([0, 1]), np.array([0, -1]), "prediction holds label -1"),
        (np.array([0, 2**63 + 7], np.uint64), np.array([0, 1]), "truth holds label 9223372036854775815"),
    ],
)
def test_bad_labels_are_refused(truth, prediction, text):
    with pytest.raises(DataError, match=text):
        confusion_matrix(truth, prediction, 3)


def test_ignored_label_does_not_hide_a_wrong_one():
    with pytest.raises(DataError, match="truth holds label 7"):
        confusion_matrix(np.array([0, 7, 255]), np.zeros(3, int), 3, ignore_index=255)


def test_measure_names_are_checked():
    assert check_measures(["Dice", "NSD"]) == ("Dice", "NSD")
    with pytest.raises(UsageError, match="unknown measure 'dise'.*Did you mean Dice"):
        check_measures(["dise"])
    with pytest.raises(UsageError, match="must be a list of names"):
        check_measures("Dice")
    with pytest.raises(UsageError, match="must be a list of names"):
        check_measures([])


def test_case_values_come_in_the_order_asked_for():
    cube = np.zeros((6, 6, 6), np.uint8)
    cube[2:4, 2:4, 2:4] = 1
    found = case_values(cube, cube, 2, ("NSD", "Dice", "HD95"), (1, 1, 1))
    assert list(found) == ["NSD", "Dice", "HD95"]
    assert [found[name][1] for name in found] == [1, 1, 0]


def test_case_values_of_missed_and_of_invented_structures():
    truth, prediction = np.zeros((2, 4, 5, 6), np.uint8)
    truth[1, 1, 1], prediction[2, 2, 2] = 1, 2
    found = case_values(truth, prediction, 4, ("NSD", "HD95", "HD", "ASSD"), (3.0, 2.0, 1.0))
    diagonal = (12**2 + 10**2 + 6**2) ** 0.5
    np.testing.assert_allclose(found["NSD"], [np.nan, 0, 0, np.nan])
    for name in ("HD95", "HD", "ASSD"):
        np.testing.assert_allclose(found[name], [np.nan, diagonal, diagonal, np.nan])


def test_case_values_ignore_voxels_in_surfaces_too():
    truth = np.zeros((8, 8), np.uint8)
    truth[2:4, 2:4], truth[6:] = 1, 255
    prediction = (truth > 0).astype(np.uint8)
    found = case_values(truth, prediction, 2, ("Dice", "HD"), (1, 1), ignore_index=255)
    assert found["Dice"][1] == 1
    assert found["HD"][1] == 0


def test_counts_of_labels_equal_those_of_the_confusion_matrix():
    generator = np.random.default_rng(0)
    truth, prediction = generator.integers(0, 40, (2, 30, 31, 32), dtype=np.uint8)
    truth[truth == 7], prediction[prediction == 9] = 0, 0
    labels, counts = label_counts(truth, prediction)
    np.testing.assert_array_equal(labels, np.arange(40))
    np.testing.assert_array_equal(counts, class_counts(confusion_matrix(truth, prediction, 40)))


@pytest.mark.parametrize("high", [300, 70_000, 2**40])
def test_counts_of_labels_of_any_size(high):
    truth, prediction = np.zeros((2, 4, 5, 6), np.int64)
    truth[1, 1], prediction[1, 1, 1:] = high, high
    prediction[3, 0, :2] = 3
    labels, counts = label_counts(truth, prediction)
    assert labels.tolist() == [0, 3, high]
    np.testing.assert_array_equal(counts[1:], [[0, 2, 0, 118], [5, 0, 1, 114]])
    np.testing.assert_array_equal(counts.sum(1), 120)


def test_counts_of_labels_leave_out_what_is_ignored():
    truth, prediction = np.array([[-1, -1, 1, 2, 0]]), np.array([[5, 1, 1, 1, 0]])
    labels, counts = label_counts(truth, prediction, ignore_label=-1)
    assert labels.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(counts, [[1, 0, 0, 2], [1, 1, 0, 1], [0, 0, 1, 2]])
    labels, counts = label_counts(np.full((2, 2), -1), np.ones((2, 2), int), ignore_label=-1)
    assert (labels.size, counts.shape) == (0, (0, 4))


@pytest.mark.parametrize("wrong", [np.array([0, -1]), np.array([0, 2**63 + 1], np.uint64)])
def test_labels_that_cannot_be_are_refused(wrong):
    with pytest.raises(DataError, match=rf"prediction holds label {wrong[1]}; labels are 0 .background. and up"):
        label_counts(np.zeros(2, int), wrong)
    with pytest.raises(DataError, match="truth holds float64, labels must be integers"):
        label_counts(np.zeros(2), np.zeros(2, int))
    with pytest.raises(DataError, match="bring both to one grid"):
        label_counts(np.zeros(2, int), np.zeros(3, int))
