"""`itk_aug`: changes about the true centre, replayable, the same for any number of workers, types and grid kept."""

import json
import math

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_data import OBLIQUE, make_dataset, make_label, make_volume

from itkit.errors import DataError, UsageError
from itkit.io.volumes import Volume, from_image, read_volume, to_image, write_volume
from itkit.process import augmentation
from itkit.process.augmentation import Ranges, apply, border_value, draw

EVERYTHING = [
    "--random-rot", 20, 5, 10, "--random-scale", 0.3, "--random-flip", 0.5, "--random-elastic", 2, "--elastic-grid", 6,
    "--random-noise", 0.2, "--random-gamma", 0.5, "--random-blur", 1,
]  # fmt: skip


def smooth(size=(20, 24, 28), *, spacing=(3.0, 2.0, 1.0), direction=OBLIQUE, dtype="float64"):
    """An image without sharp edges that is 0 at its border, so that two interpolators agree."""
    axes = [np.sin(np.linspace(0, math.pi, count)) ** 2 for count in size]
    values = np.einsum("i,j,k", *axes) * (1 + np.arange(size[2]) / size[2])
    return Volume((1000 * values).astype(dtype), spacing, (5.0, -7.0, 11.0), direction)


@given(st.tuples(*[st.floats(-40, 40)] * 3), st.floats(0.7, 1.4))
@settings(max_examples=25, deadline=None)
def test_space_is_turned_about_the_physical_centre_as_simpleitk_does(degrees, scale):
    image = smooth()
    ours, _ = apply({"rot_deg": list(degrees), "scale": scale}, image, None, fill=0.0)
    about_z, about_y, about_x = (math.radians(value) for value in degrees)
    turns = []  # of index axes (Z, Y, X): about Z in (Y, X), about Y in (Z, X), about X in (Z, Y)
    for angle, (a, b) in zip((about_z, about_y, about_x), ((1, 2), (0, 2), (0, 1)), strict=True):
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        turns.append(turn)
    turn_zyx = scale * turns[0] @ turns[1] @ turns[2]
    direction = np.reshape(image.direction_xyz, (3, 3))
    physical = direction @ turn_zyx[::-1, ::-1] @ direction.T
    source = to_image(image)
    centre = source.TransformContinuousIndexToPhysicalPoint([(count - 1) / 2 for count in source.GetSize()])
    transform = sitk.AffineTransform(np.linalg.inv(physical).ravel().tolist(), (0.0, 0.0, 0.0), centre)
    theirs = from_image(sitk.Resample(source, source, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat64))
    np.testing.assert_allclose(ours.array, theirs.array, atol=1e-6)


def test_a_quarter_turn_is_rot90():
    image = make_volume(size=(5, 7, 7), spacing=(2.0, 1.0, 1.0))
    label = make_label(size=(5, 7, 7), spacing=(2.0, 1.0, 1.0))
    turned, labels = apply({"rot_deg": [90.0, 0.0, 0.0]}, image, label, fill=0.0)
    inner = np.s_[:, 1:-1, 1:-1]  # positions on the border are outside by the rounding of a cosine
    np.testing.assert_array_equal(turned.array[inner], np.rot90(image.array, axes=(1, 2))[inner])
    np.testing.assert_array_equal(labels.array[inner], np.rot90(label.array, axes=(1, 2))[inner])


def test_mirrors_are_exact():
    image, label = make_volume(), make_label()
    mirrored, labels = apply({"flip": [0, 2]}, image, label, fill=0.0)
    np.testing.assert_array_equal(mirrored.array, image.array[::-1, :, ::-1])
    np.testing.assert_array_equal(labels.array, label.array[::-1, :, ::-1])
    assert mirrored.geometry == image.geometry


@given(st.integers(0, 10**6), st.sampled_from(["uint8", "int16", "int32", "float32"]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_drawn_change_replays_and_keeps_grid_type_and_classes(seed, dtype, channels):
    image, label = make_volume(seed, dtype=dtype), make_label(seed=seed)
    if channels:
        image = Volume(np.stack([image.array, image.array // 2]), *_place(image))
    ranges = Ranges((30.0, 10.0, 0.0), 0.3, (0.5, 0.5, 0.5), 2.0, 6.0, 0.2, 0.5, 1.0)
    before = image.array.copy()
    params = json.loads(json.dumps(draw(ranges, image, np.random.default_rng(seed))))
    first, second = (apply(params, image, label, fill=3.0) for _ in range(2))
    np.testing.assert_array_equal(first[0].array, second[0].array)
    np.testing.assert_array_equal(first[1].array, second[1].array)
    np.testing.assert_array_equal(image.array, before)
    assert first[0].geometry == image.geometry
    assert (first[0].array.dtype, first[1].array.dtype) == (image.array.dtype, label.array.dtype)
    assert set(np.unique(first[1].array)) <= set(np.unique(label.array))


def _place(volume):
    return volume.spacing_zyx, volume.origin_xyz, volume.direction_xyz


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_the_strongest_bend_never_folds(seed):
    size, grid = (24, 24, 24), 8.0
    ramp = Volume(np.indices(size).astype(float), (1.0, 1.0, 1.0))
    params = {"elastic_mm": 0.4 * grid, "controls": [6, 6, 6], "elastic_seed": seed}
    bent = apply(params, ramp, None, fill=-1000.0)[0].array  # where each voxel came from
    inside = bent.min(axis=0) > -500
    gradient = np.stack([np.stack(np.gradient(part)) for part in bent])
    determinant = np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)))
    full = inside.copy()
    for axis in range(3):
        full &= np.roll(inside, 1, axis) & np.roll(inside, -1, axis)
        full[tuple(slice(None) if other != axis else [0, -1] for other in range(3))] = False
    assert determinant[full].min() > 0


def test_bending_by_slabs_is_bending_at_once(monkeypatch):
    image = smooth()
    params = {"elastic_mm": 3.0, "controls": [5, 6, 7], "elastic_seed": 4, "rot_deg": [5.0, 3.0, 1.0]}
    at_once = apply(params, image, None, fill=0.0)[0].array
    monkeypatch.setattr(augmentation, "SLAB_VOX", 1)
    np.testing.assert_allclose(apply(params, image, None, fill=0.0)[0].array, at_once, rtol=1e-12)
    assert np.abs(at_once - apply({"rot_deg": [5.0, 3.0, 1.0]}, image, None, fill=0.0)[0].array).max() > 1


def test_background_is_filled_from_the_image():
    image = make_volume(size=(9, 9, 9), spacing=(1.0, 1.0, 1.0), direction=(1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    image.array[:] = -1024
    image.array[2:-2, 2:-2, 2:-2] = 50
    assert border_value(image) == -1024
    turned = apply({"rot_deg": [45.0, 0.0, 0.0]}, image, None, fill=border_value(image))[0].array
    assert (turned[:, 0, 0] == -1024).all()
    assert turned.min() == -1024


def test_intensities_change_as_stated():
    image = smooth(dtype="float32")
    deviation = image.array.std()
    noisy = apply({"noise": 0.25, "noise_seed": 1}, image, None, fill=0.0)[0].array - image.array
    assert noisy.std() == pytest.approx(0.25 * deviation, rel=0.02)
    bent = apply({"gamma": 2.0}, image, None, fill=0.0)[0].array
    low, high = image.array.min(), image.array.max()
    np.testing.assert_allclose(
        bent, ((image.array - low) / (high - low)) ** 2 * (high - low) + low, rtol=1e-5, atol=1e-3
    )
    point = Volume(np.zeros((31, 31, 61)), (2.0, 2.0, 1.0))
    point.array[15, 15, 30] = 1.0
    blurred = apply({"blur_mm": 3.0}, point, None, fill=0.0)[0].array
    for axis, spacing in enumerate((2.0, 2.0, 1.0)):
        place = (np.arange(blurred.shape[axis]) - blurred.shape[axis] // 2) * spacing
        line = blurred.sum(axis=tuple({0, 1, 2} - {axis}))
        assert math.sqrt((line * place**2).sum() / line.sum()) == pytest.approx(3.0, rel=0.03)


def test_a_type_is_never_overrun():
    image = make_volume(dtype="uint8")
    image.array[:] = np.where(image.array > 50, 255, 0)
    noisy = apply({"noise": 1.0, "noise_seed": 1}, image, None, fill=0.0)[0].array
    assert noisy.dtype == np.uint8
    assert (noisy[image.array == 255] > 50).mean() > 0.9  # clipped, not wrapped around to 0


def test_copies_do_not_depend_on_workers_or_other_cases(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 3)
    folders = [source / "image", source / "label"]

    def run(name, *more):
        words = ["-oimg", tmp_path / name / "image", "-olbl", tmp_path / name / "label", "-n", 2, *EVERYTHING, *more]
        assert tool("itk_aug", *folders, *words)[0] == 0
        return {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.mha")}

    one = run("one")
    assert sorted(path.name for path in one)[:3] == ["case_0_aug1.mha", "case_0_aug1.mha", "case_0_aug2.mha"]
    assert len(one) == 12
    assert len(set(one.values())) == 12
    assert run("two", "--workers", 2) == one
    assert not set(run("other", "--seed", 1).values()) & set(one.values())
    (source / "image/case_0.mha").unlink()
    assert {path: data for path, data in one.items() if not path.name.startswith("case_0")} == run("fewer")


def test_what_was_drawn_is_kept_and_makes_the_same_again(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 1)
    out = tmp_path / "out"
    assert tool("itk_aug", source / "image", source / "label", "-oimg", out, *EVERYTHING)[0] == 0
    case = json.loads((out / "aug_meta.json").read_text())["cases"]["case_0"]
    image, label = read_volume(source / "image/case_0.mha"), read_volume(source / "label/case_0.mha")
    again = apply(case["copies"]["1"], image, label, fill=case["fill"])[0]
    np.testing.assert_array_equal(read_volume(out / "case_0_aug1.mha").array, again.array)


def test_a_missing_label_or_a_nan_fails_its_case_only(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 3)
    (source / "label/case_1.mha").unlink()
    broken = make_volume(2, dtype="float32")
    broken.array[0, 0, 0] = np.nan
    write_volume(source / "image/case_2.mha", broken)
    words = [source / "image", source / "label", "-olbl", tmp_path / "out", "--random-rot", 10]
    code, _, said = tool("itk_aug", *words)
    assert code == 1
    assert "case_1.mha: has no label of its name" in said
    assert "case_2.mha: holds 1 NaN or infinite voxels" in said
    assert [path.name for path in (tmp_path / "out").glob("*.mha")] == ["case_0_aug1.mha"]


@pytest.mark.parametrize(
    "words, text",
    [
        (["-oimg", "out"], "no random change is asked for"),
        (["--random-rot", 5], "says no place for the results"),
        (["-oimg", "out", "--random-rot", 5, 6], "--random-rot takes one number or three"),
        (["-oimg", "out", "--random-rot", -5], "ranges of random changes are not negative"),
        (["-oimg", "out", "--random-elastic", 20], "can fold the image; at most 12.8 mm are safe"),
        (["-oimg", "raw/image/x", "--random-rot", 5], "nothing is ever written into a source"),
    ],
)
def test_words_that_make_no_sense(tool, tmp_path, monkeypatch, words, text):
    source = make_dataset(tmp_path / "raw", 1)
    monkeypatch.chdir(tmp_path)
    code, _, said = tool("itk_aug", source / "image", source / "label", *words)
    assert (code, text in said) == (2, True), said


def test_errors_of_the_library():
    with pytest.raises(UsageError, match="lie between 0 and 1"):
        Ranges(flip=(2.0, 0.0, 0.0))
    volume = make_volume(dtype="float32")
    volume.array[0, 0, 0] = np.inf
    with pytest.raises(DataError, match="1 NaN or infinite"):
        augmentation.require_finite(volume, "a.mha")


def test_labels_without_an_image_are_named(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 2)
    (source / "image/case_1.mha").unlink()
    words = [source / "image", source / "label", "-oimg", tmp_path / "out", "--random-rot", 5]
    code, out, _ = tool("itk_aug", *words)
    assert code == 0
    assert "1 labels have no image of their name: case_1" in out
    assert json.loads((tmp_path / "out/aug_meta.json").read_text())["labels_without_image"] == ["case_1"]


def test_words_of_other_suites_mean_the_same(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 1)
    words = [source / "image", source / "label", "--random-rot", 5, 5, 5]
    short = ["-oimg", tmp_path / "a/i", "-olbl", tmp_path / "a/l", "-n", 2]
    long = ["--out-img-folder", tmp_path / "b/i", "--out-lbl-folder", tmp_path / "b/l", "--num", 2]
    assert tool("itk_aug", *words, *short)[0] == tool("itk_aug", *words, *long)[0] == 0
    made = sorted((tmp_path / "a").rglob("*.mha"))
    assert len(made) == 4
    for path in made:
        assert (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() == path.read_bytes()
