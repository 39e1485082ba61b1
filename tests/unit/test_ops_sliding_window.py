"""Options of the sliding window, one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from itkit.errors import ConfigError
from itkit.ops.sliding_window import gaussian_profile, largest_class, sliding_window_inference


def two_channels(windows):
    return torch.cat([windows, -windows], dim=1)


def test_windows_are_shared_out_evenly_and_progress_is_told():
    seen, told = [], []

    def forward(windows):
        seen.append(windows.shape[0])
        return windows

    sliding_window_inference(
        torch.zeros(1, 1, 6, 6), forward, patch_size=2, patch_stride=2, forward_batch_windows=4,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert seen == [3, 3, 3]
    assert told == [(3, 9), (6, 9), (9, 9)]


@pytest.mark.parametrize("fill, expected", [(None, 2), (1, 1), (3, 3)])
def test_a_lone_window_is_filled_up(fill, expected):
    seen = []

    def forward(windows):
        seen.append(windows.shape[0])
        return windows

    inputs = torch.randn(1, 1, 4, 4)
    for patch in (None, 4):
        result = sliding_window_inference(inputs, forward, patch_size=patch, fill_batch_to=fill)
        torch.testing.assert_close(result, inputs)
    assert seen == [expected, expected]


def test_the_stride_is_half_the_patch_unless_told():
    counts = []
    sliding_window_inference(
        torch.zeros(1, 1, 9, 9), lambda w: counts.append(w.shape[0]) or w, patch_size=5, forward_batch_windows=99
    )
    assert counts == [9]  # starts 0, 3, 4 along each axis


def test_small_volumes_are_padded_on_both_sides_with_the_given_value():
    seen = []
    inputs = torch.ones(1, 1, 2, 3)
    result = sliding_window_inference(
        inputs, lambda w: seen.append(w.clone()) or w, patch_size=5, pad_value=7.0, fill_batch_to=1
    )
    expected = torch.full((5, 5), 7.0)
    expected[1:3, 1:4] = 1
    torch.testing.assert_close(seen[0][0, 0], expected)
    torch.testing.assert_close(result, inputs)


def test_accumulates_in_float32_whatever_the_network_returns():
    inputs = torch.randn(1, 1, 6, 6)
    for blending in ("constant", "gaussian"):
        result = sliding_window_inference(inputs, lambda w: w.bfloat16(), patch_size=4, blending=blending)
        assert result.dtype == torch.float32
    assert sliding_window_inference(inputs, lambda w: w.bfloat16()).dtype == torch.float32


def test_overlap_is_averaged_with_the_weights():
    inputs = torch.zeros(1, 1, 4, 6)
    number = iter(range(9))

    def forward(windows):  # window k answers k everywhere
        return torch.stack([torch.full_like(w, float(next(number))) for w in windows])

    plain = sliding_window_inference(inputs, forward, patch_size=4, patch_stride=2, fill_batch_to=1)
    torch.testing.assert_close(plain[0, 0, 0], torch.tensor([0.0, 0, 0.5, 0.5, 1, 1]))
    number = iter(range(9))
    soft = sliding_window_inference(
        inputs, forward, patch_size=4, patch_stride=2, blending="gaussian", sigma_scale=0.5, fill_batch_to=1
    )
    w = gaussian_profile(4, 0.5)
    expected = [0, 0, w[0] / (w[0] + w[2]), w[1] / (w[1] + w[3]), 1, 1]
    np.testing.assert_allclose(soft[0, 0, 0].numpy(), expected, rtol=1e-6)


def test_labels_instead_of_logits():
    inputs = torch.randn(2, 1, 7, 5)
    for patch in (None, 4):
        labels = sliding_window_inference(inputs, two_channels, patch_size=patch, argmax_batchsize=1)
        assert labels.shape == (2, 1, 7, 5)
        torch.testing.assert_close(labels, two_channels(inputs).argmax(1, keepdim=True).to(torch.uint8))


def test_many_classes_need_a_wider_type():
    assert largest_class(torch.eye(300)[:, :, None], 7).dtype == torch.int32
    assert largest_class(np.eye(300)[:, :, None], 7)[299, 0, 0] == 299


def test_inputs_are_left_alone():
    inputs = torch.randn(1, 1, 5, 5)
    kept = inputs.clone()
    sliding_window_inference(inputs, two_channels, patch_size=3, blending="gaussian")
    torch.testing.assert_close(inputs, kept, rtol=0, atol=0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"patch_stride": 5}, "stride 5 is larger than the patch of 4"),
        ({"patch_size": (4, 4, 4)}, r"patch_size \(4, 4, 4\) has 3 entries for 2 spatial axes"),
        ({"blending": "linear"}, "blending 'linear' is unknown; choose one of constant, gaussian"),
        ({"forward_batch_windows": 0}, "forward_batch_windows must be at least 1"),
        ({"argmax_batchsize": 0}, "argmax_batchsize must be at least 1"),
        ({"fill_batch_to": 0}, "fill_batch_to must be at least 1"),
        ({"blending": "gaussian", "sigma_scale": 0.0}, "sigma_scale must be positive"),
        ({"forward": lambda w: w[..., ::2]}, r"returned shape \(2, 1, 4, 2\) .* must be \(2, 'K', 4, 4\)"),
        ({"forward": lambda w: [w, w]}, "returned a list .* deep supervision"),
        ({"argmax_batchsize": 1}, "at least two classes"),
        ({"inputs": torch.zeros(1, 8, 8)}, r"needs inputs \(N, C, Y, X\)"),
    ],
)
def test_what_cannot_work_is_refused(change, message):
    arguments = {"inputs": torch.zeros(1, 1, 8, 8), "forward": lambda w: w, "patch_size": 4, **change}
    with pytest.raises(ConfigError, match=message):
        sliding_window_inference(arguments.pop("inputs"), arguments.pop("forward"), **arguments)
