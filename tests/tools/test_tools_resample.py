"""`itk_resample`: types kept, sizes by the stated rule, positions right, labels never invented."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from tool_data import OBLIQUE, ledger, make_dataset, make_label, make_volume

from itkit.io.volumes import Volume, read_header, read_volume, write_volume
from itkit.process.manifest import update_manifest, without_stamps


def test_a_dataset_at_another_spacing(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 2)
    (source / "meta.json").write_text('{"name": "Odd", "classes": ["b", "1", "2", "3"]}')
    assert tool("itk_resample", "dataset", source, tmp_path / "out", "--spacing", 1.5, -1, 3)[0] == 0
    for number in range(2):
        name = f"case_{number}.mha"
        before, after = read_volume(source / "image" / name), read_volume(tmp_path / "out/image" / name)
        label = read_volume(tmp_path / "out/label" / name)
        assert after.size_zyx == (12, 8, 3)
        assert after.spacing_zyx == (1.5, 2.0, 3.0)
        assert (after.origin_xyz, after.direction_xyz) == (before.origin_xyz, before.direction_xyz)
        assert (after.array.dtype, label.array.dtype) == (np.int16, np.uint8)
        assert label.geometry == after.geometry
        np.testing.assert_array_equal(after.array[::2, :, 0], before.array[:, :, 0])  # voxels at the same places
        assert set(np.unique(label.array)) <= {0, 1, 2, 3}
    manifest = json.loads((tmp_path / "out/series_meta.json").read_text())
    assert manifest["case_0.mha"]["size"] == [12, 8, 3]
    assert manifest["case_0.mha"]["labels"] == [0, 1, 2, 3]
    configs = json.loads((tmp_path / "out/resample_configs.json").read_text())
    assert configs["spacing"] == [1.5, -1.0, 3.0]
    assert configs["was"]["case_1"] == {"size": [6, 8, 10], "spacing": [3.0, 2.0, 1.0]}
    assert (tmp_path / "out/meta.json").read_text() == (source / "meta.json").read_text()


def test_the_manifest_is_the_one_that_training_would_make(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 3, suffix=".nii.gz")
    assert tool("itk_resample", "dataset", source, tmp_path / "out", "--spacing", 2, 2, 2)[0] == 0
    written = json.loads((tmp_path / "out/series_meta.json").read_text())
    taken = update_manifest(tmp_path / "out", write=False)
    (tmp_path / "out/series_meta.json").unlink()
    made = json.loads(json.dumps(update_manifest(tmp_path / "out")))
    assert taken == made
    assert written == {name: without_stamps(entry) for name, entry in made.items()}


def test_documents_do_not_tell_when_they_were_written(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 3)
    for number in range(2):
        assert tool("itk_resample", "dataset", source, tmp_path / f"out{number}", "--spacing", 2, 2, 2)[0] == 0
    for path in (tmp_path / "out0").rglob("*.*"):
        if path.is_file() and path.name != "ledger.jsonl":
            assert (tmp_path / "out1" / path.relative_to(tmp_path / "out0")).read_bytes() == path.read_bytes()


def test_training_believes_no_manifest_whose_files_are_others(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 2)
    assert tool("itk_resample", "dataset", source, tmp_path / "out", "--spacing", 2, 2, 2)[0] == 0
    image = read_volume(tmp_path / "out/image/case_0.mha")
    write_volume(tmp_path / "out/image/case_0.mha", Volume(image.array + 7, image.spacing_zyx, image.origin_xyz))
    (tmp_path / "out/label/case_1.mha").unlink()
    found = update_manifest(tmp_path / "out")
    assert found["case_0.mha"]["max"] == image.array.max() + 7
    assert (found["case_1.mha"]["labels"], "label_sha256" in found["case_1.mha"]) == (None, False)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_every_type_stays_and_large_values_survive(tool, tmp_path, dtype):
    high = 2**24 + 3 if dtype in ("int32", "float64") else 60000 if dtype != "int16" else 30000
    high = 255 if dtype == "uint8" else high
    volume = make_volume(dtype=dtype)
    volume.array[:] = high
    write_volume(tmp_path / "raw/a.mha", volume)
    assert tool("itk_resample", "image", tmp_path / "raw", tmp_path / "out", "--spacing", 1.1, 1.1, 1.1)[0] == 0
    result = read_volume(tmp_path / "out/a.mha").array
    assert result.dtype == np.dtype(dtype)
    assert (result == high).all()


def test_a_size_keeps_the_outer_edges(tool, tmp_path):
    write_volume(tmp_path / "raw/a.nrrd", make_volume())
    assert tool("itk_resample", "image", tmp_path / "raw", tmp_path / "out", "--size", 3, -1, 40)[0] == 0
    before, after = (sitk.ReadImage(str(tmp_path / folder / "a.nrrd")) for folder in ("raw", "out"))
    assert after.GetSize() == (40, 8, 3)
    for corner in ((0, 0, 0), (1, 1, 1), (1, 0, 1)):
        ends = [
            image.TransformContinuousIndexToPhysicalPoint(
                [end * count - 0.5 for end, count in zip(corner, image.GetSize(), strict=True)]
            )
            for image in (before, after)
        ]
        np.testing.assert_allclose(*ends, atol=1e-9)


def test_predictions_go_back_to_the_grids_of_their_images(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 2)
    words = ["--spacing", 1.5, 1, 0.5]
    assert tool("itk_resample", "label", source / "label", tmp_path / "fine", *words)[0] == 0
    back = ["itk_resample", "label", tmp_path / "fine", tmp_path / "back", "--target-folder", source / "image"]
    assert tool(*back)[0] == 0
    for number in range(2):
        name = f"case_{number}.mha"
        before, after = read_volume(source / "label" / name), read_volume(tmp_path / "back" / name)
        assert after.geometry == before.geometry
        np.testing.assert_array_equal(after.array, before.array)  # every coarse voxel's centre is a fine one's too
    assert tool(*back)[2].count("2 up to date") == 1
    write_volume(source / "image/case_0.mha", make_volume(size=(3, 8, 10)))
    assert "1 done, 1 up to date" in tool(*back)[2]  # the target is an input: a changed one makes the case stale
    assert read_header(tmp_path / "back/case_0.mha").geometry.size_zyx == (3, 8, 10)


def test_a_target_of_another_direction_is_met_by_physical_position(tool, tmp_path):
    straight = Volume(np.zeros((10, 14, 14), "int16"), (2.0, 2.0, 2.0), (-20.0, 35.0, 5.0))
    write_volume(tmp_path / "target/a.mha", straight)
    write_volume(tmp_path / "raw/a.mha", make_volume(size=(8, 20, 20)))
    words = ["--target-folder", tmp_path / "target", "--fill", -100]
    assert tool("itk_resample", "image", tmp_path / "raw", tmp_path / "out", *words)[0] == 0
    source, grid = (sitk.ReadImage(str(tmp_path / folder / "a.mha")) for folder in ("raw", "target"))
    theirs = sitk.Resample(sitk.Cast(source, sitk.sitkFloat64), grid, sitk.Transform(), sitk.sitkLinear, -100.0)
    ours = read_volume(tmp_path / "out/a.mha").array
    far = sitk.GetArrayFromImage(theirs)
    assert (np.abs(ours - far) <= 1).mean() > 0.99  # the rim of half a voxel may be drawn otherwise
    assert (ours == -100).any()
    assert OBLIQUE[1] != 0


def test_missing_partner_and_wrong_pair_fail_their_case_only(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 3)
    write_volume(source / "label/case_1.mha", make_label(size=(5, 8, 10)))
    code, _, said = tool("itk_resample", "dataset", source, tmp_path / "out", "--spacing", 1, 1, 1)
    assert code == 1
    assert "case_1" in said
    assert "label has size (5, 8, 10), image has (6, 8, 10)" in said
    assert not (tmp_path / "out/image/case_1.mha").exists()
    assert ledger(tmp_path / "out")["case_1"]["state"] == "failed"
    (source / "image/case_2.mha").unlink()
    words = ["--target-folder", source / "image"]
    code, _, said = tool("itk_resample", "label", source / "label", tmp_path / "t", *words)
    assert code == 1
    assert "case_2.mha: has no partner of its name" in said


def test_probabilities_are_no_labels(tool, tmp_path):
    volume = make_volume(dtype="float32")
    volume.array[0, 0, 0] = 0.5
    write_volume(tmp_path / "raw/a.mha", volume)
    code, _, said = tool("itk_resample", "label", tmp_path / "raw", tmp_path / "out", "--spacing", 1, 1, 1)
    assert (code, "holds 0.5, which is no label" in said) == (1, True)


def test_smooth_labels_have_no_new_values_and_a_smoother_border(tool, tmp_path):
    z, y, x = np.indices((16, 16, 16))
    ball = ((z - 7.5) ** 2 + (y - 7.5) ** 2 + (x - 7.5) ** 2 < 36) * np.where(x < 8, 3, 300)
    write_volume(tmp_path / "raw/a.mha", Volume(ball.astype("int16"), (2.0, 2.0, 2.0)))
    shares = {}
    for way in ("nearest", "linear"):
        words = ["--spacing", 0.5, 0.5, 0.5, "--label-interpolation", way]
        assert tool("itk_resample", "label", tmp_path / "raw", tmp_path / way, *words)[0] == 0
        label = read_volume(tmp_path / way / "a.mha").array
        assert set(np.unique(label)) == {0, 3, 300}
        z, y, x = (np.indices(label.shape) * 0.5) / 2 - 7.5
        truth = z**2 + y**2 + x**2 < 36
        shares[way] = ((label != 0) != truth).mean()
    assert shares["linear"] < 0.8 * shares["nearest"]


def test_antialiasing_removes_what_the_coarse_grid_cannot_hold(tool, tmp_path):
    stripes = np.zeros((8, 8, 64), "float32")
    stripes[..., ::2] = 1000
    write_volume(tmp_path / "raw/a.mha", Volume(stripes, (1.0, 1.0, 1.0)))
    values = {}
    for name, more in (("plain", []), ("smooth", ["--antialias"])):
        words = ["--spacing", -1, -1, 4, *more]
        assert tool("itk_resample", "image", tmp_path / "raw", tmp_path / name, *words)[0] == 0
        values[name] = read_volume(tmp_path / name / "a.mha").array[..., 2:-2]
    assert (values["plain"] == 1000).all()
    np.testing.assert_allclose(values["smooth"], 500, atol=60)


@pytest.mark.parametrize(
    "words, text",
    [
        ([], "needs exactly one of --spacing, --size and --target-folder; found none"),
        (["--spacing", 1, 1, 1, "--size", 4, 4, 4], "found --spacing, --size"),
        (["--spacing", 0, 1, 1], "spacing (0.0, 1.0, 1.0) (Z, Y, X) is a positive number of mm, or -1"),
        (["--spacing", "nan", 1, 1], "'nan' is not a finite number"),
        (["--spacing", -2, 1, 1], "is a positive number of mm, or -1 to keep an axis"),
        (["--spacing", -1, -1, -1], "not all of them -1"),
        (["--size", 0, 4, 4], "is positive, or -1 to keep an axis"),
        (["--size", 4, 4], "expected 3 arguments"),
    ],
)
def test_words_that_make_no_sense(tool, tmp_path, words, text):
    source = make_dataset(tmp_path / "raw", 1)
    code, _, said = tool("itk_resample", "dataset", source, tmp_path / "out", *words)
    assert (code, text in said) == (2, True), said


def test_a_folder_that_is_no_dataset(tool, tmp_path):
    write_volume(tmp_path / "raw/a.mha", make_volume())
    code, _, said = tool("itk_resample", "dataset", tmp_path / "raw", tmp_path / "out", "--size", 3, 3, 3)
    assert (code, "give 'image' or 'label' for a plain folder" in said) == (1, True)
    assert tool("itk_resample", "volume", tmp_path / "raw", tmp_path / "out", "--size", 3, 3, 3)[0] == 2


@pytest.mark.parametrize("kind", ["image", "label"])
def test_of_a_dataset_only_the_images_or_only_the_labels(tool, tmp_path, kind):
    source = make_dataset(tmp_path / "raw", 2)
    (source / "label/case_1.mha").unlink()
    code, _, said = tool("itk_resample", kind, source, tmp_path / "out", "--spacing", 1.5, -1, -1)
    assert code == 0
    assert f"{2 if kind == 'image' else 1} done" in said
    assert {path.parent.name for path in (tmp_path / "out").rglob("*.mha")} == {kind}
    before, after = (read_volume(root / kind / "case_0.mha") for root in (source, tmp_path / "out"))
    np.testing.assert_array_equal(after.array[::2], before.array)
    if kind == "label":
        assert set(np.unique(after.array)) <= set(np.unique(before.array))


def test_a_kind_that_is_not_there(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 1)
    (source / "label/case_0.mha").unlink()
    code, _, said = tool("itk_resample", "label", source, tmp_path / "out", "--spacing", 1, 1, 1)
    assert (code, "holds no label." in said) == (1, True)


def test_voxels_that_are_not_finite_are_noted(tool, tmp_path):
    volume = make_volume(dtype="float32")
    volume.array[3, 4, 5] = np.nan
    write_volume(tmp_path / "raw/a.mha", volume)
    code, _, said = tool("itk_resample", "image", tmp_path / "raw", tmp_path / "out", "--spacing", 1.5, -1, -1)
    assert code == 0
    count = int(np.isnan(read_volume(tmp_path / "out/a.mha").array).sum())
    assert count == 3
    assert f"note    a: {count} voxels are NaN or infinite now" in said
    entry = json.loads((tmp_path / "out/series_meta.json").read_text())["a"]
    assert entry["nonfinite"] == count
