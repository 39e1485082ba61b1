"""`itk_extract`: values mapped at once, types kept, slips refused."""

import errno
import json

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from tool_data import ledger, make_dataset, make_label, make_volume

from itkit.errors import DataError, UsageError
from itkit.io.labels import count_values, replace_values, require_whole
from itkit.io.volumes import read_volume, write_volume
from itkit.process.extract import parse_mapping


def test_a_dataset_keeps_its_images_and_gets_new_labels(tool, tmp_path):
    source = make_dataset(tmp_path / "raw")
    code, _, said = tool("itk_extract", source, tmp_path / "out", "1:2", "2:1")
    assert code == 0
    assert "3 done" in said
    for number in range(3):
        name = f"case_{number}.mha"
        assert (tmp_path / "out/image" / name).read_bytes() == (source / "image" / name).read_bytes()
        before, after = read_volume(source / "label" / name), read_volume(tmp_path / "out/label" / name)
        np.testing.assert_array_equal(after.array, np.select([before.array == 1, before.array == 2], [2, 1], 0))
        assert after.array.dtype == before.array.dtype
        assert after.geometry == before.geometry
    meta = json.loads((tmp_path / "out/extract_meta.json").read_text())["case_0"]
    assert meta["after"]["2"] == meta["before"]["1"]
    assert meta["after"]["0"] == meta["before"]["0"] + meta["before"]["3"]
    assert json.loads((tmp_path / "out/extract_configs.json").read_text())["mapping"] == {"1": 2, "2": 1}


def test_class_names_and_split_go_along(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 2)
    (source / "meta.json").write_text('{"name": "Odd", "classes": ["background", "liver", "spleen", "cyst"]}')
    (source / "split.json").write_text('{"train": ["case_0"], "val": ["case_1"]}')
    assert tool("itk_extract", source, tmp_path / "out", "3:1", "1:2")[0] == 0
    meta = json.loads((tmp_path / "out/meta.json").read_text())
    assert meta == {"name": "Odd", "classes": ["background", "cyst", "liver"]}
    assert (tmp_path / "out/split.json").read_text() == (source / "split.json").read_text()
    assert tool("itk_extract", source, tmp_path / "gap", "3:4")[0] == 0
    assert not (tmp_path / "gap/meta.json").exists()


def test_images_are_linked_or_left_out(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 1)
    assert tool("itk_extract", source, tmp_path / "links", "1:1", "--images", "symlink")[0] == 0
    assert (tmp_path / "links/image/case_0.mha").resolve() == (source / "image/case_0.mha").resolve()
    assert tool("itk_extract", source, tmp_path / "none", "1:1", "--images", "none")[0] == 0
    assert not (tmp_path / "none/image").exists()


@pytest.mark.parametrize("way", ["copy", "symlink"])
def test_images_of_two_files_go_along_with_both(tool, tmp_path, way):
    source = make_dataset(tmp_path / "raw", 1, suffix=".mhd")
    assert tool("itk_extract", source, tmp_path / "out", "1:1", "--images", way)[0] == 0
    carried = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out/image/case_0.mhd")))
    np.testing.assert_array_equal(carried, read_volume(source / "image/case_0.mhd").array)


def test_cases_without_a_label_stay_in_the_dataset(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 2)
    (source / "label/case_1.mha").unlink()
    code, _, said = tool("itk_extract", source, tmp_path / "out", "1:1")
    assert code == 0
    assert "note    case_1: has no label; its image goes along" in said
    assert (tmp_path / "out/image/case_1.mha").read_bytes() == (source / "image/case_1.mha").read_bytes()
    assert list(json.loads((tmp_path / "out/extract_meta.json").read_text())) == ["case_0"]
    assert tool("itk_extract", source, tmp_path / "labels", "1:1", "--images", "none")[0] == 0
    assert ledger(tmp_path / "labels").keys() == {"case_0"}


@pytest.mark.parametrize("way", ["copy", "symlink"])
def test_a_damaged_image_or_one_on_another_grid_is_not_carried(tool, tmp_path, way):
    source = make_dataset(tmp_path / "raw", 3, suffix=".nii.gz")
    damaged = source / "image/case_0.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    write_volume(source / "label/case_1.nii.gz", make_label(size=(1, 8, 10)))
    code, _, said = tool("itk_extract", source, tmp_path / "out", "1:1", "--images", way)
    assert code == 1
    assert "case_0.nii.gz: the compressed data end" in said
    assert "label has size (1, 8, 10), image has (6, 8, 10)" in said
    assert [path.name for path in (tmp_path / "out/image").iterdir()] == ["case_2.nii.gz"]
    assert [path.name for path in (tmp_path / "out/label").iterdir()] == ["case_2.nii.gz"]


def test_a_full_disk_is_said_of_the_copy_not_of_the_source(tool, tmp_path, monkeypatch):
    source = make_dataset(tmp_path / "raw", 1)

    def full(there, here):
        raise OSError(errno.ENOSPC, "No space left on device", str(there))

    monkeypatch.setattr("itkit.process.carrying.shutil.copy2", full)
    code, _, said = tool("itk_extract", source, tmp_path / "out", "1:1")
    assert code == 1
    assert f"{tmp_path}/out/image/case_0.mha: No space left on device. Make room and run it again." in said


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "float32"])
def test_every_label_type_is_kept(tool, tmp_path, dtype):
    write_volume(tmp_path / "raw/a.nrrd", make_label((0, 7, 100), dtype=dtype))
    assert tool("itk_extract", tmp_path / "raw", tmp_path / "out", "100:1")[0] == 0
    result = read_volume(tmp_path / "out/a.nrrd").array
    assert result.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(result, read_volume(tmp_path / "raw/a.nrrd").array == 100)


def test_labels_beyond_a_byte_and_below_zero(tool, tmp_path):
    write_volume(tmp_path / "raw/a.mha", make_label((-1, 0, 300), dtype="int16"))
    assert tool("itk_extract", tmp_path / "raw", tmp_path / "out", "300:-2", "-1:400")[0] == 0
    source, result = read_volume(tmp_path / "raw/a.mha").array, read_volume(tmp_path / "out/a.mha").array
    np.testing.assert_array_equal(result, np.select([source == 300, source == -1], [-2, 400], 0))


def test_a_value_that_does_not_fit_fails_the_case_and_dtype_helps(tool, tmp_path):
    write_volume(tmp_path / "raw/a.mha", make_label())
    write_volume(tmp_path / "raw/b.mha", make_label(dtype="int16"))
    code, _, said = tool("itk_extract", tmp_path / "raw", tmp_path / "out", "1:300")
    assert code == 1
    assert "1 done" in said
    assert r"the new values [300] do not fit into uint8; choose a type with --dtype" in said
    assert tool("itk_extract", tmp_path / "raw", tmp_path / "out2", "1:300", "--dtype", "uint16")[0] == 0
    assert read_volume(tmp_path / "out2/a.mha").array.dtype == np.uint16


def test_an_image_among_the_labels_is_named(tool, tmp_path):
    volume = make_volume(size=(12, 12, 12), dtype="float32")
    volume.array[:] = np.arange(12**3).reshape(12, 12, 12)
    write_volume(tmp_path / "raw/image.mha", volume)
    code, _, said = tool("itk_extract", tmp_path / "raw", tmp_path / "out", "1:1")
    assert code == 0
    assert "holds 1728 different values; is it an image?" in said
    volume.array[:] += 0.5
    write_volume(tmp_path / "raw/image.mha", volume)
    code, _, said = tool("itk_extract", tmp_path / "raw", tmp_path / "out", "1:1")
    assert code == 1
    assert "the label map holds 0.5, which is no label" in said


def test_a_class_that_is_nowhere_is_noted(tool, tmp_path):
    write_volume(tmp_path / "raw/a.mha", make_label())
    code, _, said = tool("itk_extract", tmp_path / "raw", tmp_path / "out", "9:1")
    assert code == 0
    assert "note    a: holds no voxel of 9" in said
    assert ledger(tmp_path / "out")["a"]["notes"] == ["holds no voxel of 9"]


@pytest.mark.parametrize(
    "words, text",
    [
        (["1:2", "3:2"], "the new value 2 is given twice; itk_combine merges classes"),
        (["1:0", "3:0"], "the new value 0 is given twice; values that are not named become 0 anyway"),
        (["1:2", "1:3"], "the old value 1 is mapped twice, to 2 and to 3"),
        (["1-2"], "'1-2' is no mapping; write old:new"),
        ([], "name at least one mapping"),
    ],
)
def test_slips_are_refused(words, text):
    with pytest.raises(UsageError, match=text):
        parse_mapping(words)


@pytest.mark.parametrize(
    "dtype, text", [("foo", "'foo' is not the name of a number type"), ("U4", "not stored as <U4")]
)
def test_a_type_that_makes_no_sense_is_refused_before_any_case(tool, tmp_path, dtype, text):
    code, _, said = tool("itk_extract", make_dataset(tmp_path / "raw", 1), tmp_path / "out", "1:1", "--dtype", dtype)
    assert (code, text in said) == (2, True), said
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_labels_is_an_error(tool, tmp_path):
    write_volume(tmp_path / "raw/image/a.mha", make_volume())
    code, _, said = tool("itk_extract", tmp_path / "raw", tmp_path / "out", "1:1")
    assert code == 1
    assert "holds images but no label" in said


@given(
    st.lists(st.integers(-300, 300), min_size=1, max_size=40),
    st.dictionaries(st.integers(-300, 300), st.integers(-300, 300), max_size=6),
    st.sampled_from([None, 0, 5]),
    st.booleans(),
)
def test_replacing_is_what_a_loop_does(values, mapping, others, wide):
    label = np.array(values, np.int16) if not wide else np.array([*values, 1 << 40])
    expected = [mapping.get(int(v), int(v) if others is None else others) for v in label]
    result = replace_values(label, mapping, others=others)
    assert result.tolist() == expected
    assert result.dtype == label.dtype
    assert count_values(label) == {v: label.tolist().count(v) for v in sorted(set(label.tolist()))}


def test_whole_numbers_are_required():
    assert require_whole(np.array([0.0, 300.0])).dtype == np.int16
    assert require_whole(np.array([0.0, 1e6])).tolist() == [0, 1000000]
    label = np.array([1, 2], np.uint8)
    assert require_whole(label) is label
    for wrong, text in (([0.5], "holds 0.5"), ([np.nan], "NaN or infinite"), ([1e30], "holds 1e"), ([True], "bool")):
        with pytest.raises(DataError, match=text):
            require_whole(np.array(wrong), "x.mha")
