"""Arguments and border cases of the transforms that move voxels."""

from __future__ import annotations

import numpy as np
import pytest

from itkit.errors import ConfigError, DataError
from itkit.ops.warp import Warp
from itkit.transforms import spatial as room


def sample_of(*shape, **more):
    return {"img": np.arange(np.prod(shape), dtype=np.float32).reshape(shape), "rng": np.random.default_rng(0),
            "spacing_zyx": (1.0, 1.0, 1.0), **more}  # fmt: skip


def test_padding_values_and_places():
    sample = sample_of(1, 1, 2, gt_sem_seg=np.array([[1, 2]], np.uint8), seg_fields=["gt_sem_seg"])
    centre = room.PadToSize((1, 5), value=-1.0, label_value=9)(dict(sample))
    np.testing.assert_array_equal(centre["img"], [[[-1, 0, 1, -1, -1]]])
    np.testing.assert_array_equal(centre["gt_sem_seg"], [[9, 1, 2, 9, 9]])
    start = room.PadToSize((None, 4), position="start", value="min")(dict(sample))
    np.testing.assert_array_equal(start["img"], [[[0, 1, 0, 0]]])
    mirrored = room.PadToSize((1, 4), mode="reflect")(dict(sample))
    np.testing.assert_array_equal(mirrored["img"], [[[0, 0, 1, 1]]])


def test_crop_at_a_fixed_place_and_open_axes():
    sample = sample_of(1, 4, 5)
    np.testing.assert_array_equal(room.CropToSize((2, 2), start=(1, 3))(dict(sample))["img"], [[[8, 9], [13, 14]]])
    assert room.CropToSize((None, 3))(dict(sample))["img_shape"] == (4, 3)
    assert room.CropToSize(9)(dict(sample))["img_shape"] == (4, 5)


def test_a_warp_that_is_not_drawn_still_cuts_its_patch():
    sample = sample_of(1, 6, 6, 6)
    patch = room.RandomWarp(10, size=4, prob=0.0)(dict(sample))
    start = patch["applied"][0][1]["start"]
    np.testing.assert_array_equal(patch["img"], sample["img"][(slice(None), *(slice(a, a + 4) for a in start))])
    larger = room.RandomWarp(10, size=8, prob=0.0)(dict(sample))
    np.testing.assert_allclose(larger["img"][0, 1:7, 1:7, 1:7], sample["img"][0], atol=1e-3)
    assert "applied" not in room.RandomWarp(10, prob=0.0)(dict(sample))


def test_parts_of_a_warp_are_drawn_with_their_own_chance():
    warp = room.RandomWarp(10, 0.1, 2.0, 3.0, rotate_prob=0.2, scale_prob=0.8, translate_prob=0.0)
    rng, sample = np.random.default_rng(0), sample_of(1, 4, 5, 6)
    drawn = [warp.draw(sample, rng) for _ in range(300)]
    counts = {key: sum(key in params for params in drawn) for key in ("degrees", "scale", "translate_mm", "control_mm")}
    assert 30 < counts["degrees"] < 95
    assert 205 < counts["scale"] < 275
    assert (counts["translate_mm"], counts["control_mm"]) == (0, 300)
    assert all(np.abs(p["degrees"]).max() <= 10 for p in drawn if "degrees" in p)


def test_special_cases_are_parts_of_the_warp():
    sample, rng = sample_of(1, 6, 6, 6), np.random.default_rng(0)
    assert set(room.RandomRotateScale(translate_mm=1.0).draw(sample, rng)) >= {"degrees", "scale", "translate_mm"}
    assert "control_mm" not in room.RandomRotateScale().draw(sample, rng)
    bent = room.RandomElastic(2.0, 4.0).draw(sample, rng)
    assert set(bent) == {"fill", "smooth_labels", "control_mm"}
    assert bent["control_mm"].shape == (5, 5, 5, 3)


def test_slices_at_random_in_the_centre_and_by_number():
    label = np.zeros((5, 3, 3), np.uint8)
    label[4, 0, 0] = 1
    sample = sample_of(1, 5, 3, 3, gt_sem_seg=label, seg_fields=["gt_sem_seg"])
    assert room.ExtractSlice(foreground_ratio=1.0)(dict(sample))["z_index"] == 4
    assert room.ExtractSlice("centre")(dict(sample))["z_index"] == 2
    assert room.ExtractSlice(-1)(dict(sample))["z_index"] == 4
    assert len({room.ExtractSlice()(sample)["z_index"] for _ in range(60)}) == 5
    assert [s["z_index"] for s in room.ExtractSlices(step=2)(sample)] == [0, 2, 4]


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: room.PadToSize(), "needs a size, a divisor, or both"),
        (lambda: room.PadToSize(0), "size must be a positive integer"),
        (lambda: room.PadToSize((1, 2, 3, 4)), "size must be a positive integer"),
        (lambda: room.PadToSize(divisor=0), "divisor must be a positive integer"),
        (lambda: room.PadToSize(4, mode="wrap"), "mode must be one of constant, edge, reflect; found 'wrap'"),
        (lambda: room.PadToSize(4, position="end"), "position must be one of centre, start"),
        (lambda: room.PadToSize(4, value="max"), "value must be a number or 'min'"),
        (lambda: room.CropToSize(4, start=(-1, 0)), "start must not be negative"),
        (lambda: room.RandomCrop(4, foreground_ratio=2), "foreground_ratio must be between 0 and 1"),
        (lambda: room.RandomFlip((3,)), "axes must be among 0, 1, 2"),
        (lambda: room.RandomFlip(swap_labels=[(1, 2)]), "swap_labels needs swap_axis"),
        (lambda: room.RandomWarp(scale=(0.0, 1.0)), "scale must stay above 0"),
        (lambda: room.RandomWarp(degrees=(1, 2)), r"degrees must be one number or three \(Z, Y, X\)"),
        (lambda: room.RandomWarp(translate_mm=-1), "translate_mm must be one number or three"),
        (lambda: room.RandomWarp(elastic_mm=-1), "elastic_mm must be finite with low <= high"),
        (lambda: room.RandomWarp(elastic_grid_mm=0), "elastic_grid_mm must be above 0"),
        (lambda: room.RandomWarp(foreground_ratio=0.5), "give its size too"),
        (lambda: room.RandomElastic(fill="wrap"), "RandomElastic: fill must be 'edge' or a number; found 'wrap'"),
        (lambda: room.ResampleToSpacing((1, 0, 1)), "three positive numbers"),
        (lambda: room.ExtractSlice("first"), "index must be 'random', 'centre' or a number; found 'first'"),
        (lambda: room.ExtractSlice(axis=3), "axis must be 0, 1 or 2"),
        (lambda: room.ExtractSlices(neighbours=-1), "neighbours must be 0 or more"),
        (lambda: room.ExtractSlices(step=0), "step must be a positive integer"),
        (lambda: Warp((4, 4), (4, 4), np.eye(2), fill="wrap"), "fill 'wrap' of a warp must be 'edge' or a number"),
        (lambda: Warp((4, 4), (4, 4), np.eye(2), control=np.zeros((3, 4, 2))), "at least 4 control values"),
        (lambda: room.RandomFlip((0, 1, 2))(sample_of(1, 4, 4)), r"axes \(0, 1, 2\) do not exist in 2D"),
    ],
)
def test_impossible_arguments_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


@pytest.mark.parametrize(
    "transform, shape, message",
    [
        (room.RandomCrop(5), (1, 4, 9), r"a patch of \(5, 5\) does not fit into \(4, 9\); put PadToSize before it"),
        (room.CropToSize(3, start=(2, 0)), (1, 4, 4), r"a crop of \(3, 3\) from \(2, 0\) does not lie inside \(4, 4\)"),
        (room.PadToSize((4, 4)), (1, 3, 3, 3), r"PadToSize has a size of 2 axes \(4, 4\), the image has 3"),
        (room.ResampleToSpacing((1, 1, 1)), (1, 3, 3), "needs a volume; put it before slices are taken"),
        (room.ExtractSlices(), (1, 3, 3), "ExtractSlices needs a volume; the sample is 2D already"),
        (room.ExtractSlice(7), (1, 3, 3, 3), "there is no slice 7 among 3"),
    ],
)
def test_samples_that_do_not_fit_are_refused(transform, shape, message):
    with pytest.raises(DataError, match=message):
        transform(sample_of(*shape))
