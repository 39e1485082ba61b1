"""Laws of resampling, orientation and the reader, over volumes that hypothesis invents."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itkit.errors import DataError, GeometryError, UsageError
from itkit.io.orientation import ORIENTATIONS, orientation, reorient
from itkit.io.resampling import resample_to_spacing
from itkit.io.volumes import Volume, read_volume, write_volume

spacings = st.tuples(*[st.floats(0.3, 5)] * 3)


@st.composite
def volumes(draw, dtype=None):
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    dtype = dtype or draw(st.sampled_from(["uint8", "int16", "int64", "float32"]))
    array = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 100, shape).astype(dtype)
    code = draw(st.sampled_from(ORIENTATIONS))
    origin = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return reorient(Volume(array, draw(spacings), origin), code)


def centre_of(volume, index_zyx):
    """Physical centre (X, Y, Z) of a voxel, by the definition."""
    direction = np.reshape(volume.direction_xyz, (3, 3))
    return np.add(volume.origin_xyz, direction @ (np.array(index_zyx[::-1]) * np.array(volume.spacing_zyx[::-1])))


@settings(max_examples=40, deadline=None)
@given(volumes(), st.sampled_from(["image", "label"]))
def test_resampling_to_the_own_spacing_is_the_identity(volume, kind):
    same = resample_to_spacing(volume, (None, volume.spacing_zyx[1], None), kind=kind)
    np.testing.assert_array_equal(same.array, volume.array)
    assert same.array.dtype == volume.array.dtype
    assert same.geometry == volume.geometry
    assert same.array is not volume.array


@settings(max_examples=40, deadline=None)
@given(volumes(), spacings)
def test_label_resampling_invents_no_class_and_keeps_the_place(volume, spacing):
    out = resample_to_spacing(volume, spacing, kind="label")
    assert set(np.unique(out.array)) <= set(np.unique(volume.array))
    assert out.array.dtype == volume.array.dtype
    assert out.size_zyx == tuple(
        max(1, round(n * old / new)) for n, old, new in zip(volume.size_zyx, volume.spacing_zyx, spacing, strict=True)
    )
    assert (out.origin_xyz, out.direction_xyz) == (volume.origin_xyz, volume.direction_xyz)


@settings(max_examples=40, deadline=None)
@given(volumes(), spacings)
def test_image_resampling_stays_within_the_values(volume, spacing):
    out = resample_to_spacing(volume, spacing, kind="image")
    assert out.array.dtype == volume.array.dtype
    assert out.array.min() >= volume.array.min() - 1e-4
    assert out.array.max() <= volume.array.max() + 1e-4


def test_linear_resampling_rounds_instead_of_cutting():
    volume = Volume(np.array([0, 3, 6], np.int16).reshape(1, 1, 3))
    assert resample_to_spacing(volume, (None, None, 0.75), kind="image").array.ravel().tolist() == [0, 2, 4, 6]


def test_channels_are_resampled_alike():
    array = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    together = resample_to_spacing(Volume(array), (0.7, 1.3, 1), kind="image")
    for channel, alone in zip(together.array, array, strict=True):
        np.testing.assert_allclose(channel, resample_to_spacing(Volume(alone), (0.7, 1.3, 1), kind="image").array)


@settings(max_examples=60, deadline=None)
@given(volumes(), st.sampled_from(ORIENTATIONS))
def test_orient_there_and_back_is_the_identity(volume, code):
    there = reorient(volume, code)
    assert orientation(there) == code
    back = reorient(there, orientation(volume))
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.origin_xyz, volume.origin_xyz, atol=1e-9)
    assert back.spacing_zyx == volume.spacing_zyx
    assert back.direction_xyz == volume.direction_xyz


@settings(max_examples=30, deadline=None)
@given(volumes("int64"), st.sampled_from(ORIENTATIONS))
def test_a_reoriented_voxel_stays_where_it_is(volume, code):
    marked = Volume(np.arange(volume.array.size).reshape(volume.size_zyx), *_place(volume))
    turned = reorient(marked, code)
    for value in (0, marked.array.size // 2, marked.array.size - 1):
        before, after = (np.argwhere(v.array == value)[0] for v in (marked, turned))
        np.testing.assert_allclose(centre_of(turned, after), centre_of(marked, before), atol=1e-6)


def _place(volume):
    return volume.spacing_zyx, volume.origin_xyz, volume.direction_xyz


def test_channels_survive_reorientation():
    array = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    for channels in (array, array[:1]):
        turned = reorient(Volume(channels), "IRP")
        assert turned.array.ndim == 4
        for got, alone in zip(turned.array, channels, strict=True):
            np.testing.assert_array_equal(got, reorient(Volume(alone), "IRP").array)


def test_there_are_48_codes_and_no_other():
    assert len(set(ORIENTATIONS)) == 48
    with pytest.raises(UsageError, match="'LLS' is none of the 48"):
        reorient(Volume(np.zeros((2, 2, 2))), "LLS")
    with pytest.raises(UsageError, match="kind is 'image', 'label' or 'label_linear', not 'mask'"):
        resample_to_spacing(Volume(np.zeros((2, 2, 2))), (1, 1, 1), kind="mask")
    with pytest.raises(GeometryError, match="spacing"):
        resample_to_spacing(Volume(np.zeros((2, 2, 2))), (1, 0, 1), kind="label")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([".mha", ".nii", ".nii.gz", ".nrrd"]), st.data())
def test_no_damage_makes_the_reader_lose_its_temper(tmp_path_factory, suffix, data):
    path = tmp_path_factory.mktemp("fuzz") / f"a{suffix}"
    write_volume(path, Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    bytes_of_voxels = 0
    with contextlib.suppress(DataError):
        bytes_of_voxels = read_volume(path).array.nbytes
    assert bytes_of_voxels <= 10_000
