"""Resampling against SimpleITK (one intensity unit, 1e-5 of floats), SciPy, and arithmetic by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from itkit.errors import GeometryError, UsageError
from itkit.io import interpolation
from itkit.io.geometry import Geometry, index_to_world
from itkit.io.interpolation import distinct_values, linear_taps, resample_labels_separable
from itkit.io.orientation import ORIENTATIONS, reorient
from itkit.io.resampling import (
    antialias_sigma_vox,
    resample_to_grid,
    resample_to_size,
    resample_to_spacing,
    size_grid,
    spacing_grid,
)
from itkit.io.volumes import Volume, to_image

INTERPOLATORS = {"image": sitk.sitkLinear, "label": sitk.sitkNearestNeighbor}


def by_simpleitk(volume: Volume, grid: Geometry, kind: str, fill=None) -> np.ndarray:
    """The same in float64 (images), so that rounding is not compared; without `fill` with one more voxel on all sides.

    (SimpleITK's own extrapolator takes the nearest voxel along all axes where one lies outside.)
    """
    array = volume.array.astype(np.float64) if kind == "image" else volume.array
    if fill is None:
        origin = index_to_world(volume.geometry) @ [-1, -1, -1, 1]
        array = np.pad(array, 1, mode="edge")
        volume = Volume(array, volume.spacing_zyx, tuple(origin[:3].tolist()), volume.direction_xyz)
    resampler = sitk.ResampleImageFilter()
    resampler.SetInterpolator(INTERPOLATORS[kind])
    resampler.SetDefaultPixelValue(fill or 0)
    resampler.SetSize([int(count) for count in grid.size_zyx[::-1]])
    resampler.SetOutputSpacing(grid.spacing_zyx[::-1])
    resampler.SetOutputOrigin(grid.origin_xyz)
    resampler.SetOutputDirection(grid.direction_xyz)
    image = to_image(Volume(array, volume.spacing_zyx, volume.origin_xyz, volume.direction_xyz))
    return sitk.GetArrayFromImage(resampler.Execute(image))


def noise(shape, dtype="int16", seed=0) -> np.ndarray:
    dtype, generator = np.dtype(dtype), np.random.default_rng(seed)
    if dtype.kind == "f":
        return generator.normal(0, 1000, shape).astype(dtype)
    info = np.iinfo(dtype)
    return generator.integers(max(info.min, -(2**52)), min(info.max, 2**52), shape, dtype)


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    if ours.dtype.kind == "f":
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
    else:
        assert np.abs(ours.astype(np.float64) - theirs).max() <= max(0.5 + 1e-2, 1e-14 * np.abs(theirs).max())


@pytest.fixture(params=[1 << 18, 40], ids=["one slab", "many slabs"])
def _slabs(request, monkeypatch):
    monkeypatch.setattr(interpolation, "_SLAB_VOXELS", request.param)


@pytest.mark.usefixtures("_slabs")
@pytest.mark.parametrize(
    "dtype",
    ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"],
)
@pytest.mark.parametrize("spacing", [(2.5, 0.4, 1.7), (0.3, 2.2, 0.9), (0.7, None, 5.0), (31.0, 0.33, 40.0)])
def test_to_spacing_images(dtype, spacing):
    volume = reorient(Volume(noise((7, 9, 12), dtype), (1.5, 0.8, 1.1), (5.0, -6.0, 7.0)), "PSR")
    grid = spacing_grid(volume.geometry, spacing)
    ours = resample_to_spacing(volume, spacing, kind="image")
    assert ours.geometry == grid
    assert ours.array.dtype == np.dtype(dtype)
    close(ours.array, by_simpleitk(volume, grid, "image"))


@pytest.mark.usefixtures("_slabs")
@pytest.mark.parametrize("size", [(3, 20, 5), (20, 3, None), (1, 1, 1), (7, 18, 36)])
@pytest.mark.parametrize("kind", ["image", "label"])
def test_to_size(size, kind):
    volume = reorient(Volume(noise((7, 9, 12)), (1.5, 0.8, 1.1), (5.0, -6.0, 7.0)), "IRA")
    grid = size_grid(volume.geometry, size)
    ours = resample_to_size(volume, size, kind=kind)
    assert ours.geometry == grid
    theirs = by_simpleitk(volume, grid, kind)
    if kind == "image":
        close(ours.array, theirs)
    else:
        # Half way between two voxels rounding errors decide there; ours goes up.
        assert (ours.array == theirs).mean() > 0.99 or size in ((1, 1, 1), (7, 18, 36))
    # The edges of the field of view stay where they are.
    for corner in itertools.product((0, 1), repeat=3):
        edges = [
            index_to_world(g) @ [*[c * n - 0.5 for c, n in zip(corner, g.size_zyx[::-1], strict=True)], 1]
            for g in (volume.geometry, grid)
        ]
        np.testing.assert_allclose(*edges, atol=1e-9)


@settings(max_examples=500, deadline=None)
@given(st.tuples(*[st.integers(1, 8)] * 3), st.tuples(*[st.floats(0.4, 4)] * 3), st.tuples(*[st.floats(0.4, 4)] * 3))
def test_labels_to_spacing_but_for_ties(shape, old, new):
    volume = Volume(noise(shape, "int32"), old)
    ours = resample_to_spacing(volume, new, kind="label")
    theirs = by_simpleitk(volume, ours.geometry, "label")
    positions = [np.arange(n) * (b / a) for n, a, b in zip(ours.size_zyx, old, new, strict=True)]
    tied = [np.abs(p % 1 - 0.5) < 1e-6 for p in positions]
    clear = ~(tied[0][:, None, None] | tied[1][:, None] | tied[2])
    np.testing.assert_array_equal(ours.array[clear], theirs[clear])


def test_half_way_goes_up_whatever_the_rounding_errors():
    # 0.3 / 0.2 is a little less than 1.5 in floating point.
    volume = Volume(np.arange(300, dtype=np.int32).reshape(1, 1, 300), (1, 1, 0.2))
    ours = resample_to_spacing(volume, (None, None, 0.3), kind="label").array.ravel()
    assert ours.tolist() == [(3 * k + 1) // 2 for k in range(200)]


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_to_a_parallel_grid_of_any_orientation(code):
    volume = reorient(Volume(noise((7, 9, 12)), (1.5, 0.8, 1.1), (5.0, -6.0, 7.0)), "PSR")
    target = reorient(Volume(np.zeros((6, 11, 9), np.uint8), (1.21, 1.33, 0.71), (3.013, -5.531, 8.172)), code).geometry
    for kind in ("image", "label"):
        ours = resample_to_grid(volume, target, kind=kind, fill=-99)
        assert ours.geometry == target
        theirs = by_simpleitk(volume, target, kind, fill=-99)
        assert 0.05 < (theirs == -99).mean() < 0.95
        close(ours.array, theirs)


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.floats(-180, 180)] * 3), st.sampled_from(["image", "label"]), st.sampled_from(["int16", "float32"])
)
def test_to_an_oblique_grid(degrees, kind, dtype):
    turned = sitk.Euler3DTransform()
    turned.SetRotation(*np.radians(degrees).tolist())
    array = (noise((7, 9, 12), dtype) / 20).astype(
        dtype
    )  # a step of CT at most; grids that are almost parallel count as such
    volume = Volume(array, (1.5, 0.8, 1.1), (5.0, -6.0, 7.0))
    target = Geometry((6, 8, 10), (1.0, 1.1, 0.9), (6.0, -3.0, 9.0), turned.GetMatrix())
    ours = resample_to_grid(volume, target, kind=kind, fill=-99)
    assert (ours.geometry, ours.array.dtype) == (target, np.dtype(dtype))
    theirs = by_simpleitk(volume, target, kind, fill=-99)
    if kind == "image":
        assert np.abs(ours.array - theirs).max() <= 0.9
    else:
        assert (ours.array == theirs).mean() > 0.99


def test_a_hardly_turned_grid_is_parallel_and_a_little_more_is_not():
    volume = Volume(noise((20, 20, 20), "float64"))
    for radians, same in ((1e-6, True), (1e-3, False)):
        c, s = np.cos(radians), np.sin(radians)
        target = Geometry((20, 20, 20), (1.0, 1.0, 1.0), direction_xyz=(c, -s, 0.0, s, c, 0.0, 0.0, 0.0, 1.0))
        array = resample_to_grid(volume, target, kind="image").array
        assert np.array_equal(array, volume.array) == same
        np.testing.assert_allclose(array, by_simpleitk(volume, target, "image", fill=0), atol=0.2)


def test_own_grid_is_the_identity_and_a_far_one_only_fill():
    volume = reorient(Volume(noise((4, 5, 6), "uint16"), (1.5, 0.8, 1.1), (5.0, -6.0, 7.0)), "PSR")
    for kind in ("image", "label", "label_linear"):
        np.testing.assert_array_equal(resample_to_grid(volume, volume, kind=kind).array, volume.array)
        far = Geometry((2, 3, 4), (1.0, 1.0, 1.0), (900.0, 0.0, 0.0))
        assert (resample_to_grid(volume, far, kind=kind, fill=7).array == 7).all()


def test_a_box_goes_there_and_back():
    volume = reorient(Volume(noise((6, 7, 8)), (1.5, 0.8, 1.1), (5.0, -6.0, 7.0)), "ASL")
    origin = index_to_world(volume.geometry) @ [1, 2, 3, 1]
    box = Volume(volume.array[3:5, 2:6, 1:7], volume.spacing_zyx, tuple(origin[:3]), volume.direction_xyz)
    np.testing.assert_array_equal(resample_to_grid(volume, box, kind="image").array, box.array)
    back = resample_to_grid(box, volume, kind="label", fill=-5)
    np.testing.assert_array_equal(back.array[3:5, 2:6, 1:7], box.array)
    assert (back.array == -5).sum() == back.array.size - box.array.size


@pytest.mark.parametrize(
    "dtype,low",
    [("int32", 2**24), ("uint32", 2**32 - 9), ("int64", 2**53), ("int64", 2**63 - 9), ("uint64", 2**64 - 9)],
)
def test_large_integers_keep_their_last_digit(dtype, low):
    values = [low + k for k in (1, 3, 7, 5)]
    volume = Volume(np.array(values, dtype).reshape(1, 1, 4))
    twice = resample_to_spacing(volume, (None, None, 0.5), kind="image").array.ravel()
    assert [int(value) - low for value in twice] == [1, 2, 3, 5, 7, 6, 5, 5]
    labels = resample_to_spacing(volume, (None, None, 0.5), kind="label_linear").array.ravel()
    assert set(labels.tolist()) <= set(values)


def test_not_finite_voxels_spread_only_where_they_have_a_share():
    array = np.zeros((1, 1, 6), np.float32)
    array[..., 2], array[..., 5] = np.nan, np.inf
    half = resample_to_spacing(Volume(array), (None, None, 0.5), kind="image").array.ravel()
    assert np.isnan(half).tolist() == [3 <= k <= 5 for k in range(12)]
    assert np.isinf(half).tolist() == [k >= 9 for k in range(12)]
    same = resample_to_size(Volume(array), (2, 1, 6), kind="image").array
    np.testing.assert_array_equal(same, np.repeat(array, 2, axis=0))


@pytest.mark.parametrize("spacing", [(2.0, 3.0, 4.5), (5.0, 1.0, 0.5)])
def test_antialiasing_is_a_gaussian_before(spacing):
    old = (1.0, 1.5, 1.0)
    volume = Volume(noise((30, 32, 34), "float64"), old)
    sigmas = [antialias_sigma_vox(a, b) for a, b in zip(old, spacing, strict=True)]
    smooth = volume.array
    for axis, sigma in enumerate(sigmas):
        if sigma:
            smooth = ndimage.gaussian_filter1d(smooth, sigma, axis=axis, mode="nearest", radius=int(np.ceil(4 * sigma)))
    wanted = resample_to_spacing(Volume(smooth, old), spacing, kind="image").array
    ours = resample_to_spacing(volume, spacing, kind="image", antialias=True).array
    # At the ends a position just outside of the last voxel is the only difference.
    np.testing.assert_allclose(ours, wanted, atol=1e-9 * 1000)
    assert ours.std() < resample_to_spacing(volume, spacing, kind="image").array.std()


def test_the_sigma_by_hand():
    assert antialias_sigma_vox(1, 1) == antialias_sigma_vox(2, 1) == 0
    # A voxel of 2 mm blurs like a Gaussian of 2 mm at half height: 2 / 2.3548 mm.
    assert antialias_sigma_vox(1, 2) == pytest.approx(np.sqrt(2**2 - 1**2) / 2.35482, rel=1e-5)
    constant = Volume(np.full((9, 9, 9), 77, np.int16))
    assert (resample_to_spacing(constant, (3, 2.5, 4), kind="image", antialias=True).array == 77).all()
    aliased = Volume(np.tile(np.array([0, 1000], np.int16), (1, 1, 32)))
    assert np.ptp(resample_to_spacing(aliased, (1, 1, 2), kind="image").array) == 0
    middle = resample_to_spacing(aliased, (1, 1, 4), kind="image", antialias=True).array[..., 2:-2]
    assert abs(middle.astype(int) - 500).max() < 30


def brute_force(array: np.ndarray, positions) -> np.ndarray:
    """One full volume per class, interpolated by SciPy; the smaller label wins ties."""
    grid = np.meshgrid(*positions, indexing="ij")
    labels = np.unique(array)
    shares = [
        ndimage.map_coordinates((array == label).astype(np.float64), grid, order=1, mode="nearest") for label in labels
    ]
    shares = np.round(np.stack(shares), 5)
    return labels[np.argmax(shares, axis=0)]


@settings(max_examples=500, deadline=None)
@given(
    st.tuples(*[st.integers(1, 7)] * 3),
    st.tuples(*[st.integers(1, 12)] * 3),
    st.integers(1, 6),
    st.sampled_from(["uint8", "int16", "int64", "float32"]),
    st.integers(0, 99),
)
def test_label_linear_is_the_largest_share(shape, size, classes, dtype, seed):
    generator = np.random.default_rng(seed)
    values = np.array([0, 3, 7, 100, -1 if dtype != "uint8" else 9, 117])[:classes]
    array = values[generator.integers(0, classes, shape)].astype(dtype)
    positions = [np.linspace(0, n - 1, m) if m > 1 else np.zeros(1) for n, m in zip(shape, size, strict=True)]
    taps = tuple(linear_taps(p, n) for p, n in zip(positions, shape, strict=True))
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(interpolation, "_SLAB_VOXELS", 5)
        ours = resample_labels_separable(array, taps)
    assert ours.dtype == array.dtype
    np.testing.assert_array_equal(ours, brute_force(array, positions))


def test_label_linear_smooths_what_nearest_steps():
    z, y, x = np.ogrid[:24, :24, :24]
    truth = (((z - 11.5) ** 2 + (y - 11.5) ** 2 + (x - 11.5) ** 2) < 81).astype(np.uint8)
    coarse = Volume(truth[::3, ::3, ::3].copy(), (3.0, 3.0, 3.0))
    errors = {
        kind: (resample_to_spacing(coarse, (1, 1, 1), kind=kind).array[:22, :22, :22] != truth[:22, :22, :22]).mean()
        for kind in ("label", "label_linear")
    }
    assert errors["label_linear"] < 0.8 * errors["label"]


def test_label_linear_on_an_oblique_grid():
    volume = Volume(np.random.default_rng(0).integers(0, 4, (7, 8, 9)).astype(np.uint8))
    c, s = np.cos(0.3), np.sin(0.3)
    target = Geometry((5, 6, 7), (1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (c, -s, 0.0, s, c, 0.0, 0.0, 0.0, 1.0))
    ours = resample_to_grid(volume, target, kind="label_linear", fill=9).array
    matrix = np.linalg.inv(index_to_world(volume.geometry)) @ index_to_world(target)
    index = np.stack([*np.meshgrid(*[np.arange(n) for n in (7, 6, 5)], indexing="ij"), np.ones((7, 6, 5))])
    places = np.tensordot(matrix, index, 1)[2::-1].transpose(0, 3, 2, 1)
    shares = np.stack(
        [ndimage.map_coordinates((volume.array == k) * 1.0, places, order=1, mode="nearest") for k in range(4)]
    )
    ranked = np.sort(shares, axis=0)
    inside = ((places > -0.49) & (places < np.array([6.49, 7.49, 8.49])[:, None, None, None])).all(axis=0)
    clear = inside & (ranked[-1] - ranked[-2] > 1e-4)
    np.testing.assert_array_equal(ours[clear], shares.argmax(axis=0)[clear])
    outside = ((places < -0.51) | (places > np.array([6.51, 7.51, 8.51])[:, None, None, None])).any(axis=0)
    assert outside.any()
    assert (ours[outside] == 9).all()


def test_channels_and_inputs_are_left_alone():
    array = noise((3, 4, 5, 6))
    before = array.copy()
    array.setflags(write=False)
    for action in (
        lambda v: resample_to_spacing(v, (0.7, 1.3, 1), kind="image"),
        lambda v: resample_to_size(v, (3, 9, 6), kind="label"),
        lambda v: resample_to_size(v, (3, 9, 6), kind="label_linear"),
        lambda v: resample_to_grid(v, Geometry((5, 5, 5), (1.0, 0.8, 1.2), (-0.3, 0.2, 0.1)), kind="image"),
    ):
        together = action(Volume(array)).array
        for channel, alone in zip(together, array, strict=True):
            np.testing.assert_array_equal(channel, action(Volume(alone)).array)
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "float32"])
def test_distinct_values_are_numpys(dtype):
    for low, high in ((0, 3), (0, 200), (-100, 100), (-30000, 30000)):
        if np.dtype(dtype) == np.uint8 and low < 0 or high > 200 and dtype == "uint8":
            continue
        array = np.random.default_rng(0).integers(low, high, (20, 20, 20)).astype(dtype)
        np.testing.assert_array_equal(distinct_values(array), np.unique(array))
        assert distinct_values(array).dtype == array.dtype
    array = np.array([-(2**62), 2**62, 5, 5]).repeat(2000).reshape(20, 20, 20)
    np.testing.assert_array_equal(distinct_values(array), np.unique(array))


def test_what_makes_no_sense_is_refused():
    volume = Volume(np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(UsageError, match="kind is 'image', 'label' or 'label_linear', not 'mask'"):
        resample_to_grid(volume, volume, kind="mask")
    with pytest.raises(UsageError, match="antialias is for images; kind is 'label'"):
        resample_to_spacing(volume, (2, 2, 2), kind="label", antialias=True)
    for size in ((0, 1, 1), (1.5, 1, 1), (-1, None, None)):
        with pytest.raises(UsageError, match="size .* is not made of positive whole numbers"):
            resample_to_size(volume, size, kind="image")
    for fill in (-1, 256, 0.5, float("nan")):
        with pytest.raises(UsageError, match="voxels of type uint8 cannot hold the fill value"):
            resample_to_grid(volume, volume, kind="image", fill=fill)
    with pytest.raises(GeometryError, match="not orthonormal"):
        resample_to_grid(volume, Geometry((2, 2, 2), (1.0, 1.0, 1.0), direction_xyz=(0.0,) * 9), kind="image")
