"""Runs of voxels: they cover both maps once, lie in one row each, and give the boxes of all labels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from itkit.errors import DataError
from itkit.measures import runs
from itkit.measures.runs import joint_runs, label_boxes, require_same_shape


def maps(shape, seed=0, dtype=np.uint8):
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 4, (2, *(-(-size // 3) for size in shape)))
    for axis in range(1, coarse.ndim):
        coarse = np.repeat(coarse, 3, axis)
    return coarse[(slice(None), *(slice(size) for size in shape))].astype(dtype)


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 17])
@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 1, 9), (8, 1, 1), (11, 4), (13,)])
def test_runs_rebuild_the_maps(shape, block, monkeypatch):
    monkeypatch.setattr(runs, "_BLOCK", block)
    pair = maps(shape)
    rebuilt, place = np.full((2, pair[0].size), 99), 0
    for starts, lengths, *labels in joint_runs(*pair):
        for start, length, *values in zip(starts, lengths, *labels, strict=True):
            assert start == place
            assert start // shape[-1] == (start + length - 1) // shape[-1]
            rebuilt[:, start : start + length] = np.array(values)[:, None]
            place += length
    np.testing.assert_array_equal(rebuilt.reshape(pair.shape), pair)


def test_neighbours_in_a_run_change_in_neither_map():
    (found,) = joint_runs(np.array([[1, 1, 1, 2, 2]]), np.array([[0, 0, 3, 3, 3]]))
    assert [part.tolist() for part in found] == [[0, 2, 3], [2, 1, 2], [1, 1, 2], [0, 3, 3]]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint64])
@pytest.mark.parametrize("shape", [(9, 10, 11), (12, 13)])
def test_boxes_equal_scipys(shape, dtype, monkeypatch):
    monkeypatch.setattr(runs, "_BLOCK", 50)
    truth, prediction = maps(shape, 1, dtype)
    truth[0], prediction[:, 0] = 0, 0
    found = label_boxes(truth, prediction, 5)
    either = [ndimage.find_objects(volume.astype(int), max_label=5) for volume in (truth, prediction)]
    for box, *expected in zip(found, *either, strict=True):
        expected = [part for part in expected if part is not None]
        if not expected:
            assert box is None
            continue
        for axis, part in enumerate(box):
            assert part.start == min(other[axis].start for other in expected)
            assert part.stop == max(other[axis].stop for other in expected)


def test_boxes_pass_over_negative_and_higher_labels_and_empty_maps():
    truth = np.array([[-1, 9, 2]])
    assert label_boxes(truth, np.zeros_like(truth), 3) == [None, (slice(0, 1), slice(2, 3)), None]
    assert label_boxes(np.zeros((0, 3), int), np.zeros((0, 3), int), 1) == [None]
    assert list(joint_runs(np.zeros((3, 0), int), np.zeros((3, 0), int))) == []


def test_maps_that_are_not_contiguous_are_read_in_reading_order():
    truth, prediction = maps((6, 7, 8))
    turned = truth.transpose(2, 0, 1), prediction[::-1].transpose(2, 0, 1)
    assert label_boxes(*turned, 3) == label_boxes(*map(np.ascontiguousarray, turned), 3)


def test_other_shapes_are_refused():
    with pytest.raises(DataError, match=r"truth has shape \(2,\), prediction has \(3,\)"):
        require_same_shape(np.zeros(2), np.zeros(3))
