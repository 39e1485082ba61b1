"""Pictures of cases: the right slice, the right turn, small files, and every shape of input that a run can bring."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from itkit.errors import UsageError
from itkit.process.figures import (
    CLASS_COLOURS,
    MAX_PNG_BYTES,
    class_colour,
    cut_case,
    draw_case,
    encode_png,
    mean_foreground_dice,
    overlay_figure,
)

CLASSES = ("background", "one", "two")


@pytest.fixture
def volume():
    rng = np.random.default_rng(0)
    truth = np.zeros((12, 20, 16), np.uint8)
    truth[3:8, 5:12, 4:9] = 1
    truth[8:10, 13:17, 10:13] = 2
    return rng.normal(100, 20, truth.shape).astype(np.float32), truth


def _opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_numbers_of_the_legend_in_closed_form(volume):
    image, truth = volume
    prediction = truth.copy()
    prediction[3, 5:12, 4:9] = 0  # one of the five slices of class 1 is missed
    prediction[8:10, 13:17, 10:13] = 1  # class 2 is taken for class 1
    cuts = cut_case(image, truth, prediction, classes=CLASSES, spacing_zyx=(2.0, 1.0, 0.5))
    slab = 7 * 5
    assert cuts.dice[1] == pytest.approx(2 * 4 * slab / (5 * slab + 4 * slab + 24))
    assert cuts.dice[2] == 0
    assert cuts.mean_dice == pytest.approx(cuts.dice[1] / 2)
    assert cuts.disagreement_ml == pytest.approx({"missed": slab / 1000, "extra": 0, "swapped": 24 / 1000})


def test_slices_show_every_class_and_planes_have_physical_size(volume):
    image, truth = volume
    truth = np.zeros_like(truth)
    truth[2, 4:16, 3:13] = 1
    truth[9, 9:11, 7:9] = 2
    truth[9, 5:8, 4:7] = 1
    cuts = cut_case(image, truth, None, classes=CLASSES, spacing_zyx=(3.0, 1.0, 0.5))
    assert [plane.name for plane in cuts.planes] == ["axial", "coronal", "sagittal"]
    assert cuts.planes[0].index == 9
    for plane, (rows, columns) in zip(cuts.planes, ((1.0, 0.5), (3.0, 0.5), (3.0, 1.0)), strict=True):
        assert plane.size_mm == pytest.approx((plane.grey.shape[0] * rows, plane.grey.shape[1] * columns))


def test_superior_is_up_and_direction_turns_the_volume():
    truth = np.zeros((6, 8, 10), np.uint8)
    truth[4, 2, 3] = 1
    image = truth * 100.0
    coronal = cut_case(image, truth, None, classes=CLASSES).planes[1]
    assert np.argwhere(coronal.truth == 1)[0][0] < coronal.truth.shape[0] / 2
    turned = cut_case(
        image[::-1, ::-1].transpose(2, 0, 1),
        truth[::-1, ::-1].transpose(2, 0, 1),
        None,
        classes=CLASSES,
        # array axes are now (left, inferior, anterior); SimpleITK's columns are those of the axes in reverse order
        direction_xyz=(0, 0, 1, -1, 0, 0, 0, -1, 0),
    )
    straight = cut_case(image, truth, None, classes=CLASSES, direction_xyz=(1, 0, 0, 0, 1, 0, 0, 0, 1))
    for one, other in zip(straight.planes, turned.planes, strict=True):
        np.testing.assert_array_equal(one.truth, other.truth)
        np.testing.assert_array_equal(one.grey, other.grey)
        assert one.letters == other.letters != ("", "")
    assert turned.planes[0].index == 1  # the slice's number in the file's own axis, which runs downwards


@pytest.mark.parametrize("direction", [None, (1, 0, 0), (float("nan"),) * 9, (1, 1, 0, 1, 1, 0, 0, 0, 1)])
def test_an_unusable_direction_leaves_the_axes_alone(volume, direction):
    image, truth = volume
    assert cut_case(image, truth, None, direction_xyz=direction).planes[0].letters == ("", "")


@pytest.mark.parametrize("truth_there", [True, False])
@pytest.mark.parametrize("prediction_there", [True, False])
@pytest.mark.parametrize("shape", [(12, 20, 16), (1, 20, 16), (20, 16), (12, 1, 16), (1, 1, 1), (2, 200, 3)])
@pytest.mark.parametrize("empty", [True, False])
def test_every_shape_gives_a_small_picture(shape, truth_there, prediction_there, empty):
    image = np.random.default_rng(1).normal(size=shape)
    labels = np.zeros(shape, np.int16) if empty else np.random.default_rng(2).integers(0, 3, shape)
    png = overlay_figure(
        image, labels if truth_there else None, labels if prediction_there else None, CLASSES, None, "x"
    )
    assert len(png) <= MAX_PNG_BYTES
    assert _opened(png).shape[0] > 60


def test_noise_on_a_large_grid_stays_below_the_limit():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 40, (96, 120, 110)).astype(np.int16)
    png = overlay_figure(rng.normal(size=labels.shape), labels, labels[::-1], (), (1, 1, 1), "case" * 100)
    assert len(png) <= MAX_PNG_BYTES


def test_anisotropic_spacing_sets_the_aspect():
    image = np.random.default_rng(0).normal(size=(10, 50, 50))
    cuts = cut_case(image, spacing_zyx=(10.0, 1.0, 1.0))
    heights = [plane.size_mm[0] / plane.size_mm[1] for plane in cuts.planes]
    assert heights == pytest.approx([1.0, 2.0, 2.0])


def test_a_difference_is_visible_and_agreement_is_not_marked(volume):
    image, truth = volume
    missed = np.zeros_like(truth)
    blue = np.array([0x4D, 0xA3, 0xFF])

    def blueness(prediction):
        picture = draw_case(cut_case(image, truth, prediction, classes=CLASSES))
        right = picture[50:-50, picture.shape[1] * 2 // 3 :].astype(int)
        return (np.abs(right - blue).sum(-1) < 120).mean()

    assert blueness(missed) > 0.02
    assert blueness(truth) == 0


def test_constant_and_non_finite_images(volume):
    _, truth = volume
    bad = np.full(truth.shape, np.nan)
    bad[:, :, ::2] = np.inf
    assert cut_case(bad, truth).planes[0].grey.max() == 0
    assert set(np.unique(cut_case(np.full(truth.shape, 7), truth).planes[0].grey)) == {110}


def test_window_is_robust_against_one_extreme_voxel(volume):
    image, truth = volume
    image = image.copy()
    image[5, 8, 6] = 1e30
    assert cut_case(image, truth).planes[0].grey.std() > 20


def test_ignored_labels_count_neither_as_class_nor_as_error(volume):
    image, truth = volume
    prediction = truth.copy()
    truth = truth.copy()
    truth[0:2] = 255
    prediction[0:2] = 1
    cuts = cut_case(image, truth, prediction, classes=CLASSES)
    assert cuts.shown == (1, 2)
    assert sum(cuts.disagreement_ml.values()) == 0


def test_inputs_are_not_modified(volume):
    image, truth = volume
    before = image.copy(), truth.copy()
    overlay_figure(image, truth, truth[::-1], CLASSES, (1, 1, 1))
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(truth, before[1])


def test_first_channel_is_taken(volume):
    image, truth = volume
    one = cut_case(np.stack([image, image * 0]), truth).planes[0].grey
    np.testing.assert_array_equal(one, cut_case(image, truth).planes[0].grey)


def test_sizes_that_do_not_match_are_refused(volume):
    image, truth = volume
    with pytest.raises(UsageError, match=r"truth has shape \(11, 20, 16\), the image \(12, 20, 16\)"):
        cut_case(image, truth[1:])
    with pytest.raises(UsageError, match=r"2 or 3 axes that is not empty; found shape \(0, 4\)"):
        cut_case(np.zeros((0, 4)))


def test_class_colours_are_stable_and_distinct():
    colours = [class_colour(index) for index in range(1, 41)]
    assert colours[0] == tuple(int(CLASS_COLOURS[0][k : k + 2], 16) for k in (1, 3, 5))
    assert len(set(colours)) == 40
    assert all(0 <= part <= 255 for colour in colours for part in colour)


def test_encode_png_keeps_size_when_it_may(volume):
    picture = np.zeros((50, 70, 3), np.uint8)
    picture[10:20] = (200, 30, 10)
    np.testing.assert_array_equal(_opened(encode_png(picture)), picture)


def test_mean_foreground_dice_in_closed_form():
    truth, prediction = np.array([0, 1, 1, 2, 7]), np.array([0, 1, 0, 2, 1])
    assert mean_foreground_dice(truth, prediction, 4) == pytest.approx((2 / 3 + 1) / 2)
    assert mean_foreground_dice(truth * 0, truth * 0, 3) is None
