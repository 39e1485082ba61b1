"""What goes into a file comes out again, for every orientation, format and type, through our reader and SimpleITK's."""

from __future__ import annotations

import os

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from itkit.io.geometry import Match, compare_geometries
from itkit.io.headers import FORMATS
from itkit.io.orientation import ORIENTATIONS, orientation, reorient
from itkit.io.volumes import STORABLE, Volume, read_header, read_volume, to_image, write_volume

SPACING, ORIGIN = (2.5, 1 / 3, 0.7421), (-123.456, 78.9, 1 / 7)


def extremes(dtype, channels=None) -> np.ndarray:
    """Random numbers of `dtype`, its smallest and largest among them."""
    generator, shape = np.random.default_rng(0), ((channels,) if channels else ()) + (3, 4, 5)
    if dtype.kind == "f":
        array = generator.normal(0, 1e6, shape).astype(dtype)
        array.flat[:3] = np.finfo(dtype).min, np.finfo(dtype).max, np.finfo(dtype).tiny
        return array
    info = np.iinfo(dtype)
    array = generator.integers(info.min, info.max, shape, dtype, endpoint=True)
    array.flat[:2] = info.min, info.max
    return array


def same_grid(found, wanted):
    """Geometry to 1e-6, as NIfTI's 32-bit floats allow."""
    np.testing.assert_allclose(found.spacing_zyx, wanted.spacing_zyx, rtol=1e-6)
    np.testing.assert_allclose(found.origin_xyz, wanted.origin_xyz, rtol=1e-6)
    np.testing.assert_allclose(found.direction_xyz, wanted.direction_xyz, atol=1e-6)
    assert compare_geometries(found, wanted)[0] is Match.EQUAL


@pytest.fixture(autouse=True, scope="module")
def _no_wait_for_the_disk():
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "fsync", lambda _: None)
    yield
    patch.undo()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("code", ORIENTATIONS)
def test_48_orientations(tmp_path, suffix, code):
    for dtype in STORABLE:
        start = Volume(extremes(dtype), SPACING, ORIGIN)
        volume = reorient(start, code)
        path = tmp_path / f"{dtype}{suffix}"
        write_volume(path, volume)
        ours, image = read_volume(path), sitk.ReadImage(os.fspath(path))
        for array in (ours.array, sitk.GetArrayFromImage(image)):
            assert array.dtype == dtype
            assert array.tobytes() == volume.array.tobytes()
        same_grid(ours, volume)
        np.testing.assert_allclose(image.GetSpacing()[::-1], volume.spacing_zyx, rtol=1e-6)
        np.testing.assert_allclose(image.GetOrigin(), volume.origin_xyz, rtol=1e-6)
        np.testing.assert_allclose(image.GetDirection(), volume.direction_xyz, atol=1e-6)
        if suffix not in (".nii", ".nii.gz"):
            assert ours.geometry == volume.geometry, "these formats keep every bit"
        back = reorient(ours, orientation(start))
        assert back.array.tobytes() == start.array.tobytes()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dtype", STORABLE, ids=str)
def test_files_of_simpleitk_and_their_headers(tmp_path, suffix, dtype):
    for code in ("LPS", "RAS", "PIR", "ASL"):
        volume = reorient(Volume(extremes(dtype), SPACING, ORIGIN), code)
        path = tmp_path / f"{code}{suffix}"
        sitk.WriteImage(to_image(volume), os.fspath(path), suffix != ".nii")
        ours = read_volume(path)
        assert ours.array.tobytes() == volume.array.tobytes()
        same_grid(ours, volume)
        header = read_header(path)
        assert (header.geometry, header.channels, header.dtype, header.notes) == (ours.geometry, None, dtype, ())


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_not_finite_stays_so(tmp_path, suffix, dtype):
    """SimpleITK's NIfTI reader makes NaN and infinity 0; ours keeps them."""
    array = np.array([np.nan, np.inf, -np.inf, -0.0, 1, 2], dtype).reshape(1, 2, 3)
    write_volume(tmp_path / f"a{suffix}", Volume(array))
    assert read_volume(tmp_path / f"a{suffix}").array.tobytes() == array.tobytes()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("channels", [1, 2, 3, 6])
@pytest.mark.parametrize("compress", [True, False])
def test_channels_through_simpleitk(tmp_path, suffix, channels, compress):
    volume = Volume(extremes(np.dtype("int16"), channels), SPACING, ORIGIN)
    path = tmp_path / f"a{suffix}"
    write_volume(path, volume, compress=compress)
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(os.fspath(path)))
    theirs = theirs.reshape(*volume.size_zyx, channels)
    np.testing.assert_array_equal(np.moveaxis(theirs, -1, 0), volume.array)
    if channels > 1 or suffix in (".nii", ".nii.gz"):
        np.testing.assert_array_equal(read_volume(path).array, volume.array)


def angles():
    return st.tuples(*[st.floats(-180, 180)] * 3)


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(FORMATS), angles(), st.tuples(*[st.floats(0.05, 20)] * 3), st.tuples(*[st.floats(-2e3, 2e3)] * 3)
)
def test_oblique_grids(tmp_path_factory, suffix, degrees, spacing, origin):
    turned = sitk.Euler3DTransform()
    turned.SetRotation(*np.radians(degrees).tolist())
    volume = Volume(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), spacing, origin, turned.GetMatrix())
    path = tmp_path_factory.mktemp("oblique") / f"a{suffix}"
    write_volume(path, volume)
    for grid in (read_volume(path), read_header(path).geometry):
        np.testing.assert_allclose(grid.spacing_zyx, spacing, rtol=1e-6)
        np.testing.assert_allclose(grid.origin_xyz, origin, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(grid.direction_xyz, volume.direction_xyz, atol=1e-6)
    image = sitk.ReadImage(os.fspath(path))
    np.testing.assert_allclose(image.GetOrigin(), origin, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(image.GetDirection(), volume.direction_xyz, atol=1e-6)


@settings(max_examples=500, deadline=None)
@given(angles(), st.sampled_from(ORIENTATIONS))
def test_reorientation_is_simpleitks(degrees, code):
    turned = sitk.Euler3DTransform()
    turned.SetRotation(*np.radians(degrees).tolist())
    largest = np.sort(np.abs(np.reshape(turned.GetMatrix(), (3, 3))), axis=0)
    if (largest[2] - largest[1]).min() < 1e-3:
        return  # half way between two axes anybody may choose
    volume = Volume(np.arange(60, dtype=np.int32).reshape(3, 4, 5), SPACING, ORIGIN, turned.GetMatrix())
    ours, theirs = reorient(volume, code), sitk.DICOMOrient(to_image(volume), code)
    assert orientation(volume) == sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(turned.GetMatrix())
    np.testing.assert_array_equal(ours.array, sitk.GetArrayFromImage(theirs))
    np.testing.assert_allclose(ours.spacing_zyx, theirs.GetSpacing()[::-1])
    np.testing.assert_allclose(ours.origin_xyz, theirs.GetOrigin(), atol=1e-9)
    np.testing.assert_allclose(ours.direction_xyz, theirs.GetDirection(), atol=1e-12)
