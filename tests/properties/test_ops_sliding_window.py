"""Law: a network that looks at single voxels gives the same result by windows as at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itkit.ops.sliding_window import SMALLEST_WEIGHT, gaussian_profile, largest_class, sliding_window_inference


@st.composite
def tasks(draw):
    axes = draw(st.sampled_from([2, 3]))
    sizes = draw(st.lists(st.integers(1, 13), min_size=axes, max_size=axes))
    patch = draw(st.lists(st.integers(1, 9), min_size=axes, max_size=axes))
    stride = [draw(st.integers(1, p)) for p in patch]
    return sizes, patch, stride


def pointwise(windows):
    return torch.cat([windows * 2 - 1, windows**2, -windows], dim=1)


@settings(deadline=None, max_examples=60)
@given(tasks(), st.sampled_from(["constant", "gaussian"]), st.integers(1, 5), st.integers(1, 2), st.integers(0, 99))
def test_pointwise_network_is_the_same_by_windows(task, blending, batch, volumes, seed):
    sizes, patch, stride = task
    inputs = torch.randn(volumes, 1, *sizes, generator=torch.Generator().manual_seed(seed))
    options = {"patch_size": patch, "patch_stride": stride, "blending": blending, "forward_batch_windows": batch}
    result = sliding_window_inference(inputs, pointwise, **options)
    torch.testing.assert_close(result, pointwise(inputs), rtol=0, atol=0)

    as_numpy = sliding_window_inference(
        inputs.numpy(), lambda windows: np.concatenate([windows * 2 - 1, windows**2, -windows], axis=1), **options
    )
    np.testing.assert_allclose(as_numpy, result.numpy(), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(2, 6), st.integers(0, 99))
def test_labels_in_chunks_are_the_argmax(chunk, classes, seed):
    logits = torch.randint(
        -2, 3, (2, classes, 4, 5), generator=torch.Generator().manual_seed(seed)
    ).float()  # many ties
    expected = np.argmax(logits.numpy(), axis=1)[:, None]
    labels = largest_class(logits, chunk)
    assert labels.dtype == torch.uint8
    np.testing.assert_array_equal(labels.numpy(), expected)
    np.testing.assert_array_equal(largest_class(logits.numpy(), chunk), expected)


@given(st.integers(1, 400), st.floats(1e-4, 2))
def test_gaussian_weights_never_vanish(patch, sigma_scale):
    profile = gaussian_profile(patch, sigma_scale)
    assert profile.min() >= SMALLEST_WEIGHT
    assert profile.max() <= 1
    assert np.float32(profile.min()) ** 3 > np.finfo(np.float32).tiny
    np.testing.assert_allclose(profile, profile[::-1])


@pytest.mark.parametrize("size", [5, 8, 11])
def test_result_does_not_depend_on_the_batch_or_on_filling(size):
    conv = torch.nn.Conv3d(1, 2, 3, padding=1)
    inputs = torch.randn(1, 1, size, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        results = [
            sliding_window_inference(inputs, conv, patch_size=5, forward_batch_windows=n, fill_batch_to=fill)
            for n in (1, 2, 7)
            for fill in (None, 1, 4)
        ]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])
