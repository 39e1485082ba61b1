"""Intensity transforms against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from itkit.errors import ConfigError, DataError
from itkit.transforms import intensity as room
from itkit.transforms.intensity.gaussian_noise import RandomGaussianNoise


def sample_of(image, **more):
    return {"img": np.asarray(image), "rng": np.random.default_rng(0), **more}


def test_window_by_hand():
    image = np.array([[[-200, -160, 40, 240, 900]]], np.int16)
    result = room.Window(level=40, width=400)(sample_of(image))["img"]
    np.testing.assert_allclose(result, [[[0, 0, 0.5, 1, 1]]])
    assert result.dtype == np.float32


def test_zscore_is_per_channel_and_may_leave_the_background_out():
    image = np.array([[[0, 2, 4, 6]], [[0, 0, 10, 30]]], np.float32)
    result = room.ZScore()(sample_of(image))["img"]
    np.testing.assert_allclose(result[0, 0], (np.array([0, 2, 4, 6]) - 3) / np.sqrt(5), rtol=1e-6)
    np.testing.assert_allclose(result.mean(axis=(1, 2)), 0, atol=1e-6)
    inside = room.ZScore(mask="nonzero")(sample_of(image))["img"]
    np.testing.assert_allclose(inside[1, 0], [-2, -2, -1, 1])
    negative = np.array([[[-9, 10, 30]]], np.float32)
    np.testing.assert_allclose(room.ZScore(mask="positive")(sample_of(negative))["img"], [[[-2.9, -1, 1]]], rtol=1e-6)


def test_percentiles_scale_and_clip():
    image = np.arange(101, dtype=np.float32).reshape(1, 101, 1)
    scaled = room.PercentileScale(10, 90)(sample_of(image))["img"][0, :, 0]
    np.testing.assert_allclose(scaled[[0, 10, 50, 90, 100]], [0, 0, 0.5, 1, 1], atol=1e-6)
    open_end = room.PercentileScale(10, 90, clip=False)(sample_of(image))["img"][0, :, 0]
    np.testing.assert_allclose(open_end[[0, 100]], [-0.125, 1.125], atol=1e-6)
    clipped = room.ClipPercentiles(10, 90)(sample_of(image.astype(np.int16)))["img"]
    assert (clipped.min(), clipped.max(), clipped.dtype) == (10, 90, np.int16)


def test_type_conversion_is_asked_for_and_checked():
    label = np.array([[0, 300]], np.int32)
    sample = sample_of(np.zeros((1, 1, 2), np.int16), gt_sem_seg=label, seg_fields=["gt_sem_seg"])
    result = room.TypeConvert(label="int64")(dict(sample))
    assert (result["img"].dtype, result["gt_sem_seg"].dtype) == (np.float32, np.int64)
    assert room.TypeConvert(image=None)(dict(sample))["img"].dtype == np.int16
    with pytest.raises(DataError, match="values from 0 to 300, uint8 holds 0 to 255"):
        room.TypeConvert(label="uint8")(dict(sample))


def test_gamma_bends_between_the_extremes():
    image = np.array([[[10, 15, 20]]], np.float32)
    params = {"gamma": 2.0, "invert": False, "keep_statistics": False}
    np.testing.assert_allclose(room.RandomGamma.apply(sample_of(image), params)["img"], [[[10, 12.5, 20]]])
    params["invert"] = True
    np.testing.assert_allclose(room.RandomGamma.apply(sample_of(image), params)["img"], [[[10, 17.5, 20]]])
    params["keep_statistics"] = True
    kept = room.RandomGamma.apply(sample_of(image), params)["img"]
    np.testing.assert_allclose([kept.mean(), kept.std()], [image.mean(), image.std()], rtol=1e-5)
    flat = np.full((1, 2, 2), 3, np.float32)
    np.testing.assert_array_equal(room.RandomGamma.apply(sample_of(flat), params)["img"], flat)


def test_brightness_and_contrast_by_hand():
    image = np.array([[[0, 1, 5]]], np.float32)
    np.testing.assert_allclose(room.RandomBrightness.apply(sample_of(image), {"shift": 0.5})["img"], image + 0.5)
    params = {"factor": 2.0, "keep_range": False}
    np.testing.assert_allclose(room.RandomContrast.apply(sample_of(image), params)["img"], [[[-2, 0, 8]]])
    params["keep_range"] = True
    np.testing.assert_allclose(room.RandomContrast.apply(sample_of(image), params)["img"], [[[0, 0, 5]]])


def test_noise_has_the_drawn_deviation():
    image = np.full((1, 40, 40, 40), 7, np.float32)
    noisy = RandomGaussianNoise.apply(sample_of(image), {"std": 0.3, "seed": 1})["img"]
    assert noisy.dtype == np.float32
    assert noisy.mean() == pytest.approx(7, abs=0.01)
    assert noisy.std() == pytest.approx(0.3, rel=0.02)


def test_blur_is_scipys_on_each_channel():
    image = np.random.default_rng(0).standard_normal((2, 8, 9)).astype(np.float32)
    blurred = room.RandomGaussianBlur.apply(sample_of(image), {"sigma_vox": 0.8})["img"]
    for channel, expected in zip(blurred, image, strict=True):
        np.testing.assert_allclose(channel, ndimage.gaussian_filter(expected, 0.8, truncate=3.0), atol=1e-6)


def test_low_resolution_keeps_the_grid_and_loses_detail():
    ramp = np.tile(np.arange(16, dtype=np.float32), (1, 16, 1))
    stripes = np.tile(np.array([0, 1], np.float32), (1, 16, 8))
    params = {"zoom": [1.0, 0.5]}
    coarse = room.RandomLowResolution.apply(sample_of(ramp), params)["img"]
    assert coarse.shape == ramp.shape
    assert np.abs(coarse - ramp).max() <= 1
    assert np.ptp(room.RandomLowResolution.apply(sample_of(stripes), params)["img"]) < 0.5
    np.testing.assert_array_equal(room.RandomLowResolution.apply(sample_of(ramp), {"zoom": [1.0, 1.0]})["img"], ramp)


def test_draws_stay_in_their_ranges():
    rng, sample = np.random.default_rng(0), sample_of(np.zeros((1, 4, 4, 4), np.float32))
    for _ in range(50):
        assert 0.5 <= room.RandomGamma((0.5, 2.0)).draw(sample, rng)["gamma"] <= 2
        assert -0.2 <= room.RandomBrightness(0.2).draw(sample, rng)["shift"] <= 0.2
        assert 0.7 <= room.RandomContrast(0.3).draw(sample, rng)["factor"] <= 1.3
        assert 0 <= room.RandomGaussianNoise(0.4).draw(sample, rng)["std"] <= 0.4
        assert room.RandomGaussianBlur(0.7).draw(sample, rng)["sigma_vox"] == 0.7
    happened = [room.RandomGamma(prob=0.3).draw(sample, rng) is not None for _ in range(500)]
    assert 100 < sum(happened) < 200
    assert room.RandomGamma(prob=0.0).draw(sample, rng) is None


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: room.Window(0, 0), "positive width; found level 0, width 0"),
        (lambda: room.ZScore(mask="brain"), "mask must be one of all, nonzero, positive; found 'brain'"),
        (lambda: room.PercentileScale(99, 1), "0 <= lower < upper <= 100; found lower 99, upper 1"),
        (lambda: room.TypeConvert(image="uint8"), "image must be a floating type; found 'uint8'"),
        (lambda: room.TypeConvert(label="float32"), "label must be an integer type; found 'float32'"),
        (lambda: room.TypeConvert(image="real"), "image 'real' is no NumPy type"),
        (lambda: room.RandomGamma((0, 1)), "gamma must be above 0"),
        (lambda: room.RandomGamma(prob=2), "RandomGamma: prob must be between 0 and 1; found 2"),
        (lambda: room.RandomContrast(1.5), "factor must not go below 0.0; found 1.5"),
        (lambda: room.RandomBrightness((1, 0)), "shift must be finite with low <= high"),
        (lambda: room.RandomBrightness((1, 2, 3)), r"shift must be one number or \(low, high\)"),
        (lambda: room.RandomLowResolution((0.5, 1.5)), "zoom must lie above 0 and not above 1"),
    ],
)
def test_impossible_arguments_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_transform_without_an_image_says_so():
    with pytest.raises(DataError, match=r"no image yet \('img'\); put a loading transform first"):
        room.Window(0, 1)({})
    with pytest.raises(DataError, match=r"'img' must be \(C, Z, Y, X\) or \(C, Y, X\); found shape \(4, 4\)"):
        room.RandomGaussianBlur()({"img": np.zeros((4, 4)), "rng": np.random.default_rng(0)})
