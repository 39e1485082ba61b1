"""Intensity formulas in closed form: values, types, constant images, inputs left alone."""

from __future__ import annotations

import numpy as np
import pytest

from itkit.errors import UsageError
from itkit.io.intensity import clip_percentiles, percentile_scale, window, zscore


def test_window_by_hand():
    hu = np.array([-1000, -160, 40, 140, 240, 3000], np.int16)
    out = window(hu, level=40, width=400)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, [0, 0, 0.5, 0.75, 1, 1], atol=1e-7)
    assert hu.tolist() == [-1000, -160, 40, 140, 240, 3000]
    # An odd width must not lose half a unit.
    np.testing.assert_allclose(window(np.array([0, 1, 2, 3]), level=1.5, width=3), [0, 1 / 3, 2 / 3, 1], atol=1e-7)


def test_zscore_by_hand():
    array = np.array([2, 4, 4, 4, 5, 5, 7, 9], np.uint8)
    np.testing.assert_allclose(zscore(array), (array - 5.0) / 2.0, rtol=1e-6)
    mask = array <= 4
    masked = zscore(array, mask)
    np.testing.assert_allclose(masked[mask].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(masked[mask].std(), 1, rtol=1e-6)
    np.testing.assert_array_equal(zscore(array, np.zeros(8, bool)), zscore(array))
    assert zscore(array).dtype == np.float32


@pytest.mark.parametrize("value", [0, 7, 1.3e6, -1000.1])
def test_constant_images_become_zero(value):
    array = np.full((2, 3, 4), value)
    assert np.abs(zscore(array)).max() < 1e-6
    assert percentile_scale(array).tolist() == np.zeros((2, 3, 4)).tolist()
    np.testing.assert_array_equal(clip_percentiles(array), array)


def test_percentiles_by_hand():
    array = np.arange(101, dtype=np.int32)
    np.testing.assert_allclose(percentile_scale(array, 10, 60)[[0, 10, 35, 60, 100]], [0, 0, 0.5, 1, 1], atol=1e-7)
    np.testing.assert_allclose(percentile_scale(array, 10, 60, clip=False)[[0, 100]], [-0.2, 1.8], rtol=1e-6)
    clipped = clip_percentiles(array, 10, 60)
    assert clipped.dtype == np.int32
    assert (clipped.min(), clipped.max()) == (10, 60)
    assert percentile_scale(array, 0, 100, mask=array < 11)[10] == 1
    assert array.tolist() == list(range(101))


def test_large_integers_keep_their_differences():
    array = np.array([2**24, 2**24 + 1, 2**24 + 2], np.int64)
    np.testing.assert_allclose(window(array, 2**24 + 1, 2), [0, 0.5, 1])


def test_senseless_arguments_are_refused():
    with pytest.raises(UsageError, match="positive width; got level 0, width 0"):
        window(np.zeros(3), 0, 0)
    with pytest.raises(UsageError, match="0 <= lower < upper <= 100; got lower 60"):
        percentile_scale(np.zeros(3), 60, 40)
