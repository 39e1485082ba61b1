"""Folding and unfolding against PyTorch's pixel shuffling (2D) and MONAI's (3D)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.utils import pixelshuffle, pixelunshuffle

from itkit.models.unet import depth_to_space, space_to_depth


def test_2d_is_pixel_unshuffle_of_torch():
    x = torch.randn(2, 3, 6, 9)
    assert torch.equal(space_to_depth(x, (3, 3)), F.pixel_unshuffle(x, 3))
    y = torch.randn(2, 8, 3, 5)
    assert torch.equal(depth_to_space(y, (2, 2)), F.pixel_shuffle(y, 2))


def test_3d_is_pixelunshuffle_of_monai():
    x = torch.randn(2, 3, 4, 6, 8)
    assert torch.equal(space_to_depth(x, (2, 2, 2)), pixelunshuffle(x, 3, 2))
    y = torch.randn(2, 16, 3, 5, 4)
    assert torch.equal(depth_to_space(y, (2, 2, 2)), pixelshuffle(y, 3, 2))
