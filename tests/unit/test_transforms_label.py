"""Label transforms by hand."""

from __future__ import annotations

import numpy as np
import pytest

from itkit.errors import ConfigError, DataError
from itkit.io.labels import replace_values
from itkit.transforms.label import BinariseLabel, MapLabels


def sample_of(values, dtype=np.uint8, **more):
    return {"gt_sem_seg": np.array([values], dtype), "seg_fields": ["gt_sem_seg"], "seg_map_path": "b.nii", **more}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int64])
def test_values_change_places_at_once(dtype):
    label = np.array([0, 1, 2, 3, 1], dtype)
    np.testing.assert_array_equal(replace_values(label, {1: 2, 2: 1, 99999: 0}), [0, 2, 1, 3, 2])
    np.testing.assert_array_equal(replace_values(label, {3: 1}, others=0), [0, 0, 0, 1, 0])
    np.testing.assert_array_equal(label, [0, 1, 2, 3, 1])
    assert replace_values(label, {1: 2}).dtype == dtype


def test_map_labels_checks_its_result():
    assert MapLabels({7: 1}, others=0)(sample_of([0, 7, 9], num_classes=2))["gt_sem_seg"].tolist() == [[0, 1, 0]]
    with pytest.raises(DataError, match=r"b.nii: label values \[9\] are impossible: they must lie in 0 .. 1"):
        MapLabels({7: 1})(sample_of([0, 7, 9], num_classes=2))
    with pytest.raises(DataError, match=r"MapLabels makes \[300\], which uint8 cannot hold"):
        MapLabels({7: 300})(sample_of([0, 7]))


def test_binarise():
    assert BinariseLabel()(sample_of([0, 7, 9]))["gt_sem_seg"].tolist() == [[0, 1, 1]]
    result = BinariseLabel([9])(sample_of([0, 7, 9], np.int16))["gt_sem_seg"]
    assert result.tolist() == [[0, 0, 1]]
    assert result.dtype == np.int16


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: MapLabels({}), "mapping is empty"),
        (lambda: MapLabels({"1": 2}), "label values must be integers"),
        (lambda: BinariseLabel([]), "foreground names no value"),
    ],
)
def test_impossible_arguments_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
