"""Laws of the transforms that move voxels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itkit.io.warp import rotation_matrix, spline_basis
from itkit.ops.warp import Warp
from itkit.transforms.sample import axis_spacing
from itkit.transforms.spatial import (
    CropToSize,
    ExtractSlices,
    PadToSize,
    RandomCrop,
    RandomFlip,
    RandomWarp,
    ResampleToSpacing,
)  # fmt: skip
from itkit.transforms.spatial.crop_place import draw_crop_start, draw_foreground_voxel

SHAPES = st.one_of(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12)),
)
SEEDS = st.integers(0, 2**32 - 1)
relaxed = settings(deadline=None, max_examples=40)


def make_sample(shape, seed=0, spacing=(1.0, 1.0, 1.0)):
    generator = np.random.default_rng(seed)
    image, label = generator.standard_normal((2, *shape), np.float32), generator.integers(0, 4, shape).astype(np.uint8)
    return {"img": image, "gt_sem_seg": label, "seg_fields": ["gt_sem_seg"], "img_shape": shape,
            "spacing_zyx": spacing, "origin_xyz": (4.0, 5.0, 6.0), "direction_xyz": (0.0, 1, 0, -1, 0, 0, 0, 0, 1),
            "rng": np.random.default_rng(seed)}  # fmt: skip


def assert_same(a, b, atol=0.0):
    np.testing.assert_allclose(a["img"], b["img"], rtol=0, atol=atol)
    np.testing.assert_array_equal(a["gt_sem_seg"], b["gt_sem_seg"])


@relaxed
@given(SHAPES, SEEDS)
def test_flipping_twice_is_the_identity(shape, seed):
    flip = RandomFlip(prob=1.0, swap_labels=[(1, 3)], swap_axis=0)
    sample = make_sample(shape, seed)
    once = flip(dict(sample))
    assert_same(flip(dict(once)), sample)
    swapped = np.array([0, 3, 2, 1])[np.flip(sample["gt_sem_seg"])]
    np.testing.assert_array_equal(once["gt_sem_seg"], swapped)


@relaxed
@given(SHAPES, st.integers(1, 16), st.sampled_from(["constant", "edge", "reflect"]), SEEDS)
def test_cropping_takes_padding_off_again(shape, size, mode, seed):
    sample = make_sample(shape, seed)
    padded = PadToSize(size, mode=mode)(dict(sample))
    assert padded["img_shape"] == tuple(max(n, size) for n in shape)
    back = CropToSize(shape)(dict(padded))
    assert_same(back, sample)
    np.testing.assert_allclose(back["origin_xyz"], sample["origin_xyz"])


@relaxed
@given(SHAPES, st.integers(1, 9))
def test_padding_to_a_divisor_is_the_least_multiple(shape, divisor):
    padded = PadToSize(divisor=divisor)(make_sample(shape))
    for new, old in zip(padded["img_shape"], shape, strict=True):
        assert new % divisor == 0
        assert old <= new < old + divisor


@relaxed
@given(SHAPES, SEEDS, st.data())
def test_a_crop_is_a_part_of_the_volume(shape, seed, data):
    size = tuple(data.draw(st.integers(1, n)) for n in shape)
    sample = make_sample(shape, seed)
    crop = RandomCrop(size, foreground_ratio=0.5)(dict(sample))
    start = crop["applied"][0][1]["start"]
    box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
    assert crop["img"].shape[1:] == size
    np.testing.assert_array_equal(crop["img"], sample["img"][(slice(None), *box)])
    np.testing.assert_array_equal(crop["gt_sem_seg"], sample["gt_sem_seg"][box])
    if len(shape) == 3:
        direction = np.reshape(sample["direction_xyz"], (3, 3))
        np.testing.assert_allclose(crop["origin_xyz"], np.add(sample["origin_xyz"], direction @ start[::-1]))


@relaxed
@given(SHAPES, SEEDS, st.data())
def test_a_foreground_crop_holds_a_foreground_voxel_of_every_class_in_turn(shape, seed, data):
    size = tuple(data.draw(st.integers(1, 14)) for _ in shape)
    sample = make_sample(shape, seed)
    sample["gt_sem_seg"] = np.zeros(shape, np.uint8)
    voxel = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    sample["gt_sem_seg"][voxel] = 3
    start = draw_crop_start(sample, size, np.random.default_rng(seed), foreground_ratio=1.0)
    for a, length, n, v in zip(start, size, shape, voxel, strict=True):
        assert a <= v < a + length
        assert (0 <= a <= n - length) if n >= length else (a <= 0 and a + length >= n)


def test_each_class_present_is_drawn_equally_often():
    label = np.zeros((20, 20), np.uint8)
    label[:10], label[15, 15] = 1, 3
    rng = np.random.default_rng(0)
    drawn = [int(label[draw_foreground_voxel(label, rng, num_classes=5)]) for _ in range(400)]
    assert set(drawn) == {1, 3}
    assert 160 < drawn.count(3) < 240
    assert draw_foreground_voxel(label, rng, classes=[2]) is None


@relaxed
@given(SHAPES, SEEDS, st.booleans())
def test_a_warp_by_nothing_is_the_identity(shape, seed, smooth):
    sample = make_sample(shape, seed, (3.0, 1.0, 0.7))
    assert_same(RandomWarp()(dict(sample)), sample)
    control = np.zeros((*(4,) * len(shape), len(shape)), np.float32)
    params = {"degrees": [0.0] * 3, "control_mm": control, "fill": "edge", "smooth_labels": smooth}
    assert_same(RandomWarp.apply(dict(sample), params), sample, atol=1e-4)


@pytest.mark.parametrize("axis, plane", [(0, (1, 2)), (1, (0, 2)), (2, (0, 1))])
@pytest.mark.parametrize("turns", [1, 2, -1])
@pytest.mark.parametrize("smooth", [False, True])
def test_a_quarter_turn_is_rot90(axis, plane, turns, smooth):
    sample = make_sample((9, 9, 9))
    degrees = [0.0, 0.0, 0.0]
    degrees[axis] = 90.0 * turns
    turned = RandomWarp.apply(dict(sample), {"degrees": degrees, "fill": "edge", "smooth_labels": smooth})
    expected = {
        "img": np.stack([np.rot90(c, turns, plane) for c in sample["img"]]),
        "gt_sem_seg": np.rot90(sample["gt_sem_seg"], turns, plane),
    }
    assert_same(turned, expected, atol=1e-4)


def test_a_quarter_turn_of_a_slice_is_rot90():
    sample = make_sample((8, 8))
    turned = RandomWarp.apply(dict(sample), {"degrees": [90.0], "fill": "edge", "smooth_labels": False})
    np.testing.assert_array_equal(turned["gt_sem_seg"], np.rot90(sample["gt_sem_seg"]))


def test_a_turn_happens_in_space_not_in_voxels():
    sample = make_sample((5, 9, 9), spacing=(2.0, 1.0, 1.0))
    sample["img"][:], sample["gt_sem_seg"][:] = 0, 0
    sample["img"][0, 2, 4, 8] = 1  # 4 mm from the centre along X
    params = {"degrees": [0.0, 90.0, 0.0], "fill": "edge", "smooth_labels": False}
    turned = RandomWarp.apply(sample, params)["img"][0]
    assert np.unravel_index(turned.argmax(), turned.shape) == (0, 4, 4)  # 4 mm are 2 voxels along Z
    assert turned[0, 4, 4] == pytest.approx(1, abs=1e-4)


def test_shift_and_scale_go_the_way_they_are_named():
    sample = make_sample((5, 9, 9), spacing=(2.0, 1.0, 1.0))
    sample["img"][:] = 0
    sample["img"][0, 2, 4, 4] = 1
    shifted = RandomWarp.apply(dict(sample), {"translate_mm": [2.0, 0.0, -3.0], "fill": 0.0, "smooth_labels": False})
    assert np.unravel_index(shifted["img"][0].argmax(), (5, 9, 9)) == (3, 4, 1)
    sample["gt_sem_seg"] = np.zeros((5, 9, 9), np.uint8)
    sample["gt_sem_seg"][2, 3:6, 3:6] = 1
    larger = RandomWarp.apply(dict(sample), {"scale": [1.0, 2.0, 2.0], "fill": 0.0, "smooth_labels": False})
    assert larger["gt_sem_seg"][2].sum() > 2 * 9


@relaxed
@given(SEEDS, st.tuples(*[st.integers(1, 14)] * 3))
def test_a_patch_in_one_step_is_the_patch_of_the_whole_warp(seed, size):
    """Reading only what the patch can see changes nothing."""
    shape = (10, 12, 11)
    sample = make_sample(shape, seed, (2.0, 1.0, 1.0))
    whole = RandomWarp(30, 0.3, 2.0)
    params = whole.draw(sample, np.random.default_rng(seed))
    full = RandomWarp.apply(dict(sample), params)
    start = tuple((n - t) // 2 for n, t in zip(shape, size, strict=True))
    # both grids must have the same middle: take sizes of the same parity as the volume
    size = tuple(t + (n - t) % 2 for n, t in zip(shape, size, strict=True))
    start = tuple((n - t) // 2 for n, t in zip(shape, size, strict=True))
    patch = RandomWarp.apply(dict(sample), {**params, "size": size, "start": start})
    inner = tuple(slice(max(a, 0), min(a + t, n)) for a, t, n in zip(start, size, shape, strict=True))
    outer = tuple(slice(s.start - a, s.stop - a) for s, a in zip(inner, start, strict=True))
    np.testing.assert_allclose(patch["img"][(slice(None), *outer)], full["img"][(slice(None), *inner)], atol=2e-4)
    differs = patch["gt_sem_seg"][outer] != full["gt_sem_seg"][inner]
    assert differs.mean() < 0.05  # a voxel that lies half-way may fall to either side


@relaxed
@given(st.integers(1, 40), st.integers(4, 12))
def test_spline_weights_are_shares_that_reproduce_a_straight_line(points, controls):
    basis = spline_basis(points, controls)
    assert basis.min() >= 0
    np.testing.assert_allclose(basis.sum(axis=1), 1, rtol=1e-5)
    line = basis @ (np.arange(controls) - 1.0)
    expected = np.arange(points) / max(points - 1, 1) * (controls - 3)
    np.testing.assert_allclose(line, expected, atol=1e-4)


@relaxed
@given(st.tuples(*[st.floats(-180, 180)] * 3))
def test_a_rotation_keeps_lengths_and_handedness(degrees):
    matrix = rotation_matrix(degrees, 3)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1)


@relaxed
@given(
    SEEDS, st.booleans(), st.one_of(st.just("edge"), st.floats(-3, 3)), st.sampled_from([np.uint8, np.int16, np.uint16])
)
def test_a_warp_invents_no_label(seed, smooth, fill, dtype):
    generator = np.random.default_rng(seed)
    label = generator.choice([0, 3, 200], (6, 7, 8)).astype(dtype)
    warp = Warp(label.shape, (7, 5, 9), generator.normal(size=(3, 3)), fill=fill,
                control=generator.normal(size=(4, 5, 4, 3)))  # fmt: skip
    warped = warp.label(label, smooth=smooth)
    assert warped.dtype == dtype
    assert warped.shape == (7, 5, 9)
    assert set(np.unique(warped)) <= {0, 3, 200}


def test_outside_is_the_fill_and_background():
    sample = make_sample((6, 6))
    sample["gt_sem_seg"][:] = 2
    for smooth in (False, True):
        params = {"translate_mm": [0.0, 4.0], "fill": -7.0, "smooth_labels": smooth}
        moved = RandomWarp.apply(dict(sample), params)
        np.testing.assert_allclose(moved["img"][:, :, :3], -7, atol=1e-5)
        assert not moved["gt_sem_seg"][:, :3].any()
        assert (moved["gt_sem_seg"][:, 4:] == 2).all()


@relaxed
@given(st.tuples(*[st.integers(1, 10)] * 3), SEEDS)
def test_resampling_to_the_own_spacing_is_the_identity(shape, seed):
    sample = make_sample(shape, seed, (3.0, 1.0, 0.5))
    same = ResampleToSpacing((3.0, None, 0.5))(dict(sample))
    assert_same(same, sample)


@relaxed
@given(st.tuples(*[st.integers(1, 6)] * 3), st.integers(0, 2), st.integers(0, 2), SEEDS)
def test_slices_make_up_the_volume_and_neighbours_repeat_at_the_border(shape, axis, neighbours, seed):
    sample = make_sample(shape, seed, (3.0, 2.0, 1.0))
    slices = ExtractSlices(axis=axis, neighbours=neighbours)(dict(sample))
    np.testing.assert_array_equal(np.stack([s["gt_sem_seg"] for s in slices], axis), sample["gt_sem_seg"])
    for k, one in enumerate(slices):
        assert one["z_index"] == k
        assert one["img"].shape[0] == 2 * (2 * neighbours + 1)
        assert axis_spacing(one) == tuple(s for i, s in enumerate((3.0, 2.0, 1.0)) if i != axis)
        for j, offset in enumerate(range(-neighbours, neighbours + 1)):
            place = min(max(k + offset, 0), shape[axis] - 1)
            np.testing.assert_array_equal(one["img"][2 * j : 2 * j + 2], sample["img"].take(place, axis=axis + 1))
