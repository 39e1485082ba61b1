"""The warp against scipy's map_coordinates and MONAI's affine transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import Affine
from scipy import ndimage

from itkit.io.warp import rotation_matrix, spline_basis
from itkit.ops.warp import Warp


def positions(size_in, size_out, matrix, centre, control):
    """Input position of every output voxel, written out plainly."""
    voxels = np.stack(np.meshgrid(*map(np.arange, size_out), indexing="ij"), -1).astype(float)
    where = (voxels - (np.array(size_out) - 1) / 2) @ matrix.T + centre
    if control is not None:
        bases = [spline_basis(n, c) for n, c in zip(size_out, control.shape, strict=False)]
        letters = "zyx"[-len(size_out) :], "abc"[: len(size_out)]
        factors = ",".join(o + c for o, c in zip(*letters, strict=True))
        where = where + np.einsum(f"{factors},{letters[1]}k->{letters[0]}k", *bases, control)
    return np.moveaxis(where, -1, 0)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("bend", [False, True])
@pytest.mark.parametrize("size_out", [(20, 17, 23), (7, 9, 30), (2, 3, 4)])
def test_image_and_label_equal_map_coordinates(axes, bend, size_out):
    rng = np.random.default_rng(0)
    size_in, size_out = (20, 17, 23)[-axes:], size_out[-axes:]
    image = rng.standard_normal(size_in, np.float32)
    label = rng.integers(0, 5, size_in)
    matrix = rotation_matrix((20.0, 10.0, -30.0), axes) * 1.1
    centre = np.array(size_in) / 2 + 0.3
    control = rng.standard_normal((5, 4, 6)[-axes:] + (axes,)) * 5 if bend else None
    warp = Warp(size_in, size_out, matrix, centre=centre, control=control)
    where = positions(size_in, size_out, matrix, centre, control)
    expected = ndimage.map_coordinates(image, where, order=1, mode="nearest")
    np.testing.assert_allclose(warp.image(image[None])[0], expected, atol=1e-4)
    nearest = ndimage.map_coordinates(label, where, order=0, mode="nearest")
    assert (warp.label(label) != nearest).mean() < 2e-3  # positions half-way between voxels may round either way


def test_rotation_equals_monai():
    image = np.random.default_rng(0).standard_normal((1, 21, 21), np.float32)
    ours = Warp((21, 21), (21, 21), rotation_matrix((25.0,), 2).T).image(image)
    theirs = Affine(rotate_params=-np.deg2rad(25.0), padding_mode="border", image_only=True)(torch.from_numpy(image))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)
