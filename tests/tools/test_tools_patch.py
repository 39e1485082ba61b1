"""`itk_patch`: every patch at its place in space, nothing dropped unless asked, draws that depend on names alone."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from tool_data import make_dataset, make_label, make_volume

from itkit.dataset.patches import PatchedDataset
from itkit.errors import UsageError
from itkit.io.cropping import crop, pad
from itkit.io.orientation import ORIENTATIONS, reorient
from itkit.io.volumes import read_volume, write_volume


def patches(folder):
    return sorted(path.name for path in (folder / "image").iterdir())


@pytest.mark.parametrize("code", ORIENTATIONS[::7])
def test_the_world_position_of_every_voxel_stays(tool, tmp_path, code):
    source = reorient(make_volume(), code)
    write_volume(tmp_path / "raw/a.mha", source)
    words = ["--patch-size", 3, 4, 5, "--patch-stride", 2, 3, 5, "--still-save-when-no-label"]
    assert tool("itk_patch", tmp_path / "raw", tmp_path / "out", *words)[0] == 0
    whole, seen = sitk.ReadImage(str(tmp_path / "raw/a.mha")), np.zeros(source.size_zyx, bool)
    for path in (tmp_path / "out/image").iterdir():
        patch = sitk.ReadImage(str(path))
        assert patch.GetSize() == (5, 4, 3)
        for index in ((0, 0, 0), (4, 3, 2), (2, 1, 0)):
            there = whole.TransformPhysicalPointToContinuousIndex(patch.TransformIndexToPhysicalPoint(index))
            near = [round(value) for value in there]
            np.testing.assert_allclose(there, near, atol=1e-9)
            assert patch[index] == whole[near]
        start = whole.TransformPhysicalPointToIndex(patch.GetOrigin())[::-1]
        seen[tuple(slice(first, first + count) for first, count in zip(start, (3, 4, 5), strict=True))] = True
    assert seen.all()


def test_patches_cover_and_their_numbers_do_not_depend_on_what_is_kept(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 2)
    write_volume(source / "label/case_1.mha", make_label((0,), seed=1))
    size = ["--patch-size", 3, 4, 5, "--patch-stride", 3, 4, 5]
    assert tool("itk_patch", source, tmp_path / "all", *size)[0] == 0
    assert len(patches(tmp_path / "all")) == 2 * 2 * 2 * 2
    code, _, said = tool("itk_patch", source, tmp_path / "some", *size, "--minimum-foreground-ratio", 0.75)
    assert code == 0
    assert "note    case_1: none of 8 patches is kept" in said
    kept = patches(tmp_path / "some")
    assert set(kept) < set(patches(tmp_path / "all"))
    for name in patches(tmp_path / "all"):
        everywhere = read_volume(tmp_path / "all/label" / name).array
        assert (name in kept) == (np.count_nonzero(everywhere) / everywhere.size >= 0.75)
        if name in kept:
            assert (tmp_path / "all/image" / name).read_bytes() == (tmp_path / "some/image" / name).read_bytes()
    meta = json.loads((tmp_path / "some/crop_meta.json").read_text())
    assert sorted(meta["cases"]["case_0"]["patches"]) == [name.removesuffix(".mha") for name in kept]
    assert meta["cases"]["case_0"]["patches_in_all"] == 8
    first = meta["cases"]["case_0"]["patches"][kept[0].removesuffix(".mha")]
    cut = crop(read_volume(source / "image/case_0.mha"), first["start"], (3, 4, 5))
    np.testing.assert_array_equal(cut.array, read_volume(tmp_path / "some/image" / kept[0]).array)


def test_empty_patches_are_drawn_by_seed_case_and_number(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 4)
    for number in range(4):
        write_volume(source / f"label/case_{number}.mha", make_label((0,), seed=number))
    words = ["--patch-size", 2, "--keep-empty-label-prob", 0.5]
    assert tool("itk_patch", source, tmp_path / "a", *words)[0] == 0
    assert tool("itk_patch", source, tmp_path / "b", *words, "--workers", 2)[0] == 0
    assert tool("itk_patch", source, tmp_path / "c", *words, "--seed", 1)[0] == 0
    assert patches(tmp_path / "a") == patches(tmp_path / "b") != patches(tmp_path / "c")
    everything = 4 * 3 * 4 * 5
    for name in "ac":  # 240 draws: 120 +- 5 standard deviations
        assert abs(len(patches(tmp_path / name)) - everything / 2) < 39
    (source / "image/case_0.mha").unlink()
    (source / "label/case_0.mha").unlink()
    assert tool("itk_patch", source, tmp_path / "d", *words)[0] == 0
    assert patches(tmp_path / "d") == [name for name in patches(tmp_path / "a") if not name.startswith("case_0_")]


def test_a_case_without_label_fails_or_is_saved(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 2)
    (source / "label/case_1.mha").unlink()
    code, _, said = tool("itk_patch", source, tmp_path / "out", "--patch-size", 4)
    assert code == 1
    assert "case_1.mha: has no label; with --still-save-when-no-label all of its patches are kept" in said
    assert "1 done, 0 up to date, 1 failed" in said
    assert tool("itk_patch", source, tmp_path / "out", "--patch-size", 4, "--still-save-when-no-label")[0] == 0
    assert {name.rsplit("_", 1)[0] for name in patches(tmp_path / "out")} == {"case_0", "case_1"}


def test_smaller_volumes_fail_or_are_padded(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 1)
    code, _, said = tool("itk_patch", source, tmp_path / "out", "--patch-size", 8, 8, 10)
    assert code == 1
    assert "has (6, 8, 10) voxels (Z, Y, X), less than a patch of (8, 8, 10)" in said
    assert tool("itk_patch", source, tmp_path / "out", "--patch-size", 9, 8, 10, "--pad-value", -7)[0] == 0
    image, patch = read_volume(source / "image/case_0.mha"), read_volume(tmp_path / "out/image/case_0_0.mha")
    np.testing.assert_array_equal(patch.array[1:7], image.array)
    assert (patch.array[[0, 7, 8]] == -7).all()
    assert (read_volume(tmp_path / "out/label/case_0_0.mha").array[[0, 7, 8]] == 0).all()
    back = crop(patch, (1, 0, 0), (6, 8, 10))
    np.testing.assert_allclose(back.origin_xyz, image.origin_xyz, atol=1e-12)
    meta = json.loads((tmp_path / "out/crop_meta.json").read_text())["cases"]["case_0"]
    assert meta["patches"]["case_0_0"]["start"] == [-1, 0, 0]
    np.testing.assert_allclose(meta["origin"], image.origin_xyz, atol=1e-12)


def test_no_patch_at_all_is_an_error(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 1)
    write_volume(source / "label/case_0.mha", make_label((0,)))
    code, _, said = tool("itk_patch", source, tmp_path / "out", "--patch-size", 4, "--minimum-foreground-ratio", 0.5)
    assert code == 1
    assert "no patch of any case is kept" in said


def test_a_label_on_another_grid_fails(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 1)
    write_volume(source / "label/case_0.mha", make_label(size=(5, 8, 10)))
    code, _, said = tool("itk_patch", source, tmp_path / "out", "--patch-size", 4)
    assert code == 1
    assert "label has size (5, 8, 10), image has (6, 8, 10) (Z, Y, X)" in said


def test_the_training_dataset_reads_the_patches(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 2)
    (source / "meta.json").write_text('{"name": "Odd", "classes": ["background", "a", "b", "c"]}')
    assert tool("itk_patch", source, tmp_path / "out", "--patch-size", 4, "--patch-stride", 2)[0] == 0
    dataset = PatchedDataset(data_root=str(tmp_path / "out"), split="all", pipeline=[])
    assert {dataset.get_data_info(k)["parent_case"] for k in range(len(dataset))} == {"case_0", "case_1"}
    assert len(dataset) == len(patches(tmp_path / "out"))


@pytest.mark.parametrize(
    "words, text",
    [
        (["--patch-size", 4, "--patch-stride", 5], "a stride of 5 voxels along Z is larger than the patch of 4"),
        (["--patch-size", 4, 5], "patch size is one number or three"),
        (["--patch-size", 0], "patch size is one number or three"),
        (["--patch-size", 4, "--minimum-foreground-ratio", 2], "'2' is not between 0 and 1"),
        ([], "the following arguments are required: --patch-size"),
    ],
)
def test_words_that_make_no_sense(tool, tmp_path, words, text):
    source = make_dataset(tmp_path / "raw", 1)
    code, _, said = tool("itk_patch", source, tmp_path / "out", *words)
    assert (code, text in said) == (2, True)


def test_boxes_outside_and_impossible_margins_are_refused():
    volume = make_volume()
    with pytest.raises(UsageError, match="does not lie inside a volume of"):
        crop(volume, (5, 0, 0), (2, 1, 1))
    with pytest.raises(UsageError, match="0.5 is no value of int16 voxels"):
        pad(volume, (1, 0, 0), (0, 0, 0), 0.5)
    with pytest.raises(UsageError, match="40000 is no value of int16 voxels"):
        pad(volume, (1, 0, 0), (0, 0, 0), 40000)


def test_a_label_without_an_image_is_named(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 2)
    (source / "image/case_1.mha").unlink()
    code, _, said = tool("itk_patch", source, tmp_path / "out", "--patch-size", 4)
    assert code == 1
    assert "label/case_1.mha: is a label without an image." in said
    assert "1 done, 0 up to date, 1 failed" in said
