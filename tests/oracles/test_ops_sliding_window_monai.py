"""The sliding window against MONAI's, with a network whose answer depends on where the window lies."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import sliding_window_inference as monai_window

from itkit.ops.sliding_window import sliding_window_inference


@pytest.mark.parametrize("size", [(20, 17, 23), (5, 30, 12)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_constant_blending_equals_monai(size, overlap):
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 3, 3, padding=1)
    )
    inputs = torch.randn(2, 1, *size)
    patch = (8, 12, 8)
    stride = [int(p * (1 - overlap)) for p in patch]
    with torch.no_grad():
        ours = sliding_window_inference(inputs, network, patch_size=patch, patch_stride=stride, forward_batch_windows=4)
        theirs = monai_window(inputs, patch, 4, network, overlap=overlap, mode="constant")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_gaussian_blending_equals_monai_where_neither_floor_is_reached():
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    inputs = torch.randn(1, 1, 40, 33)
    with torch.no_grad():
        ours = sliding_window_inference(
            inputs, network, patch_size=16, patch_stride=8, blending="gaussian", sigma_scale=0.25
        )
        theirs = monai_window(inputs, (16, 16), 4, network, overlap=0.5, mode="gaussian", sigma_scale=0.25)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3)
