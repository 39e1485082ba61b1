"""Connected pieces: connectivity, largest, small ones, types kept."""

from __future__ import annotations

import numpy as np
import pytest

from itkit.errors import UsageError
from itkit.measures.components import components, keep_largest, remove_small


def diagonal_pair():
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[1, 1, 1] = mask[2, 2, 2] = 1
    return mask


@pytest.mark.parametrize("connectivity, pieces", [("face", 2), ("edge", 2), ("corner", 1)])
def test_connectivity(connectivity, pieces):
    _, sizes = components(diagonal_pair(), connectivity=connectivity)
    assert len(sizes) - 1 == pieces
    assert sizes.sum() == 64


def test_edge_and_corner_are_one_in_2d():
    mask = np.eye(3)
    assert [len(components(mask, connectivity=c)[1]) - 1 for c in ("face", "edge", "corner")] == [3, 1, 1]


def test_keep_largest_of_each_class():
    labels = np.array([1, 1, 0, 1, 2, 0, 2, 2, 300, 0, 300], np.int16)
    found = keep_largest(labels)
    np.testing.assert_array_equal(found, [1, 1, 0, 0, 0, 0, 2, 2, 300, 0, 0])
    assert found.dtype == np.int16
    assert labels[3] == 1


def test_keep_largest_of_some_classes():
    labels = np.array([1, 0, 1, 2, 0, 2])
    np.testing.assert_array_equal(keep_largest(labels, [2, 5]), [1, 0, 1, 2, 0, 0])


def test_remove_small_knows_millimetres():
    labels = np.array([[1, 1, 0, 1, 0, 2]], np.uint8)
    np.testing.assert_array_equal(remove_small(labels, 0.6, (1.0, 0.3)), [[1, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(remove_small(labels, 0.3, (1.0, 0.3)), labels)
    np.testing.assert_array_equal(remove_small(labels, 0.6, (1.0, 0.3), [1]), [[1, 1, 0, 0, 0, 2]])


def test_bool_masks_stay_bool():
    assert keep_largest(diagonal_pair().astype(bool), connectivity="face").dtype == bool


def test_refusals():
    with pytest.raises(UsageError, match="connectivity must be one of face, edge, corner; found 26"):
        components(diagonal_pair(), connectivity=26)
    with pytest.raises(UsageError, match="does not fit a label map of shape"):
        remove_small(diagonal_pair(), 1.0, (1, 1))
