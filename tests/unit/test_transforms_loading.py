"""Loading a case: what arrives, what is refused and how it is named."""

from __future__ import annotations

import numpy as np
import pytest

from itkit.errors import ConfigError, DataError, GeometryError
from itkit.io.volumes import Volume, write_volume
from itkit.transforms import LoadVolume

SPACING, ORIGIN = (3.0, 1.0, 0.5), (1.0, 2.0, 3.0)


@pytest.fixture
def case(tmp_path):
    """Write an image and a label (kind -> array, spacing) and return the sample that names them."""

    def write(image, label=None, label_spacing=SPACING, **more):
        sample = {"case_id": "a", "img_path": str(tmp_path / "a.mha"), "seg_map_path": None, **more}
        write_volume(sample["img_path"], Volume(np.asarray(image), SPACING, ORIGIN))
        if label is not None:
            sample["seg_map_path"] = str(tmp_path / "a_label.mha")
            write_volume(sample["seg_map_path"], Volume(np.asarray(label), label_spacing, ORIGIN))
        return sample

    return write


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64])
def test_arrays_and_geometry_arrive_as_they_are_in_the_file(case, dtype):
    image = np.arange(24).reshape(2, 3, 4).astype(dtype)
    label = (np.arange(24).reshape(2, 3, 4) % 3).astype(np.uint16)
    sample = LoadVolume()(case(image, label, num_classes=3))
    np.testing.assert_array_equal(sample["img"], image[None])
    np.testing.assert_array_equal(sample["gt_sem_seg"], label)
    assert (sample["img"].dtype, sample["gt_sem_seg"].dtype) == (dtype, np.uint16)
    assert sample["seg_fields"] == ["gt_sem_seg"]
    assert sample["spacing_zyx"] == SPACING
    assert sample["origin_xyz"] == ORIGIN
    assert len(sample["direction_xyz"]) == 9
    assert sample["ori_shape"] == sample["img_shape"] == (2, 3, 4)


def test_channels_and_missing_labels(case):
    image = np.random.default_rng(0).random((2, 3, 4, 5))
    sample = LoadVolume()(case(image))
    np.testing.assert_array_equal(sample["img"], image)
    assert sample["seg_fields"] == []
    assert "gt_sem_seg" not in sample
    labelled = case(image, np.zeros((3, 4, 5), np.uint8))
    assert "gt_sem_seg" not in LoadVolume(with_label=False)(labelled)


def test_label_stored_as_whole_floats_becomes_integer(case):
    label = LoadVolume()(case(np.zeros((1, 1, 2)), np.array([[[0.0, 2.0]]])))["gt_sem_seg"]
    assert label.dtype == np.int32
    assert label.tolist() == [[[0, 2]]]


@pytest.mark.parametrize(
    "label, message",
    [
        (np.array([[[0, 5, 7]]], np.uint8), r"label values \[5, 7\] are impossible: they must lie in 0 .. 2"),
        (np.array([[[0, -1, 1]]], np.int16), r"label values \[-1\] are impossible"),
        (np.array([[[0, 0.5, 1]]], np.float32), r"label values \[0.5\] are no whole numbers"),
        (np.zeros((2, 1, 1, 3), np.uint8), "one value per voxel; found 2 channels"),
    ],
)
def test_impossible_labels_name_the_file(case, label, message):
    with pytest.raises(DataError, match=rf"a_label.mha: .*{message}"):
        LoadVolume()(case(np.zeros((1, 1, 3)), label, num_classes=3))


def test_labels_are_taken_as_they_are_on_request(case):
    sample = case(np.zeros((1, 1, 3)), np.array([[[0, 5, 7]]], np.uint8), num_classes=3)
    assert LoadVolume(check_labels=False)(sample)["gt_sem_seg"].max() == 7
    negative = case(np.zeros((1, 1, 2)), np.array([[[0, -5]]], np.int16))
    with pytest.raises(DataError, match="must not be negative"):
        LoadVolume()(negative)


def test_label_on_another_grid_is_refused(case):
    with pytest.raises(GeometryError, match=r"a_label.mha: label has .*spacing"):
        LoadVolume()(case(np.zeros((2, 2, 2)), np.zeros((2, 2, 2), np.uint8), label_spacing=(1.0, 1.0, 1.0)))
    with pytest.raises(GeometryError, match=r"a_label.mha: label has size"):
        LoadVolume()(case(np.zeros((2, 2, 2)), np.zeros((2, 2, 3), np.uint8)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_intensities_that_are_no_numbers(case, value):
    sample = case(np.array([[[1.0, value, value]]], np.float32))
    with pytest.raises(DataError, match=r"a.mha: 2 voxels are NaN or infinite"):
        LoadVolume()(dict(sample))
    np.testing.assert_array_equal(LoadVolume(nonfinite="zero")(dict(sample))["img"], [[[[1, 0, 0]]]])


def test_large_but_finite_intensities_are_fine(case):
    big = np.full((1, 1, 2), np.finfo(np.float64).max)
    np.testing.assert_array_equal(LoadVolume()(case(big))["img"], big[None])


def test_files_are_read_through_the_cache(case):
    sample = case(np.ones((1, 2, 2)), np.ones((1, 2, 2), np.uint8))

    class Cache(dict):
        def get(self, path, read):
            if path not in self:
                self[path] = read(path)
            return self[path]

    cache = Cache()
    for _ in range(2):
        loaded = LoadVolume()({**sample, "cache": cache})
    assert sorted(cache) == sorted([sample["img_path"], sample["seg_map_path"]])
    assert loaded["img"].sum() == 4


def test_wrong_use_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nonfinite must be one of error, zero; found 'ignore'"):
        LoadVolume(nonfinite="ignore")
    with pytest.raises(DataError, match=r"case x names no image"):
        LoadVolume()({"case_id": "x"})
    with pytest.raises(DataError, match="missing.mha"):
        LoadVolume()({"img_path": str(tmp_path / "missing.mha")})


def test_a_real_case(shared_data):
    folder = shared_data("Task04_Hippocampus")
    image = sorted((folder / "imagesTr").glob("*.nii.gz"))[0]
    label = folder / "labelsTr" / image.name
    sample = LoadVolume()({"img_path": str(image), "seg_map_path": str(label), "num_classes": 3})
    assert sample["img"].shape[1:] == sample["gt_sem_seg"].shape
    assert set(np.unique(sample["gt_sem_seg"])) == {0, 1, 2}
