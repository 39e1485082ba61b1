"""NIfTI, both versions, against nibabel and SimpleITK: which place in space counts, and that ours is written rightly."""

from __future__ import annotations

import gzip
import itertools
import os
import struct

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from itkit.errors import DataError, GeometryError
from itkit.io.geometry import index_to_world
from itkit.io.nii_toolkit import read_nifti, write_nifti
from itkit.io.volumes import Volume, read_header, read_volume, write_volume

nibabel = pytest.importorskip("nibabel")
TO_LPS = np.diag([-1.0, -1, 1, 1])


def turn(axis: int, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix, (i, j) = np.eye(3), [(1, 2), (0, 2), (0, 1)][axis]
    matrix[i, i], matrix[j, j], matrix[i, j], matrix[j, i] = c, c, -s, s
    return matrix


def affine(rotation, spacing, origin) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation * spacing, origin
    return matrix


SFORM = affine(turn(0, 20), (1.5, 2.5, 3.5), (10, 20, 30))
QFORM = affine(turn(1, 30), (1.5, 2.5, 3.5), (-1, -2, -3))


def save(path, sform, sform_code, qform, qform_code, *, pixdim=None, edit=None):
    image = nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), np.eye(4))
    image.set_sform(sform, sform_code)
    image.set_qform(qform, qform_code)
    if pixdim is not None:
        image.header["pixdim"][1:4] = pixdim
    nibabel.save(image, path)
    if edit is not None:
        content = bytearray(path.read_bytes())
        edit(content)
        path.write_bytes(content)


def same_place_as_simpleitk(path):
    image, header = sitk.ReadImage(os.fspath(path)), read_header(path)
    np.testing.assert_allclose(header.geometry.spacing_zyx, image.GetSpacing()[::-1], rtol=1e-6)
    np.testing.assert_allclose(header.geometry.origin_xyz, image.GetOrigin(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(header.geometry.direction_xyz, image.GetDirection(), atol=2e-6)
    return header


@pytest.mark.parametrize("sform_code,qform_code", itertools.product(range(5), range(5)))
def test_the_choice_of_sform_or_qform_is_simpleitks(tmp_path, sform_code, qform_code):
    save(tmp_path / "a.nii", SFORM, sform_code, QFORM, qform_code)
    header = same_place_as_simpleitk(tmp_path / "a.nii")
    chosen = "sform" if sform_code == 1 or (sform_code and not qform_code) else "qform" if qform_code else None
    np.testing.assert_allclose(
        header.geometry.origin_xyz, {"sform": (-10, -20, 30), "qform": (1, 2, -3), None: (0, 0, 0)}[chosen], atol=1e-6
    )
    if sform_code and qform_code:
        corners = np.array([[*corner, 1] for corner in itertools.product((0, 3), (0, 4), (0, 5))])
        apart = np.linalg.norm(corners @ (SFORM - QFORM).T, axis=1).max()
        assert header.notes == (f"sform and qform place a voxel up to {apart:.3g} mm apart; the {chosen} is used.",)
    elif chosen is None:
        assert "there is neither sform nor qform" in header.notes[0]
    else:
        assert header.notes == ()


@pytest.mark.parametrize("handedness", [5, 0, -1])
def test_the_sign_of_the_third_axis_is_simpleitks(tmp_path, handedness):
    save(tmp_path / "a.nii", None, 0, QFORM, 1, edit=lambda b: struct.pack_into("<f", b, 76, handedness))
    same_place_as_simpleitk(tmp_path / "a.nii")


@pytest.mark.parametrize("units,factor", [(0, 1), (1, 1000), (2, 1), (3, 0.001), (10, 1), (11, 0.001)])
def test_units_of_length_are_simpleitks(tmp_path, units, factor):
    def edit(content):
        content[123] = units

    save(tmp_path / "a.nii", SFORM, 1, SFORM, 1, edit=edit)
    header = same_place_as_simpleitk(tmp_path / "a.nii")
    assert header.geometry.spacing_zyx == pytest.approx((3.5 * factor, 2.5 * factor, 1.5 * factor))
    assert bool(header.notes) == (factor != 1)


def test_pixdim_is_the_spacing_and_a_note_says_where_the_sform_disagrees(tmp_path):
    save(tmp_path / "a.nii", SFORM, 1, SFORM, 1, pixdim=(7, 2.5, 3.5))
    header = same_place_as_simpleitk(tmp_path / "a.nii")
    assert header.geometry.spacing_zyx == (3.5, 2.5, 7.0)
    assert any("columns are (3.5, 2.5, 1.5) mm long (Z, Y, X), pixdim says otherwise" in note for note in header.notes)


@pytest.mark.parametrize("shear", [5e-5, 3e-4, 0.3])
def test_a_leaning_sform_gives_way_to_a_qform(tmp_path, shear):
    leaning = SFORM.copy()
    leaning[0, 1] += shear * 2.5
    straight = affine(turn(0, 20), (1.5, 2.5, 3.5), (10, 20, 30))
    save(tmp_path / "a.nii", leaning, 1, straight, 1, pixdim=(1.5, 2.5, 3.5))
    header = same_place_as_simpleitk(tmp_path / "a.nii")
    assert any("the sform is not orthonormal" in note for note in header.notes) == (shear > 1e-4)


def test_a_leaning_sform_alone_is_read_within_the_tolerance_and_else_refused(tmp_path):
    for shear, fine in ((5e-4, True), (5e-3, False)):
        leaning = SFORM.copy()
        leaning[0, 1] += shear * 2.5
        save(tmp_path / "a.nii", leaning, 1, None, 0, pixdim=(1.5, 2.5, 3.5))
        if fine:
            np.testing.assert_allclose(index_to_world(read_header(tmp_path / "a.nii")), TO_LPS @ leaning, atol=1e-4)
        else:
            with pytest.raises(GeometryError, match="a.nii: direction .* is not orthonormal"):
                read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i8", "f4", "f8"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_version_2(tmp_path, order, dtype, suffix):
    array = np.random.default_rng(0).integers(0, 100, (4, 5, 6)).astype(order + dtype)
    header = nibabel.Nifti2Image.header_class(endianness=order)
    header.set_data_dtype(order + dtype)
    image = nibabel.Nifti2Image(array, SFORM, header, dtype=order + dtype)
    image.set_qform(SFORM, 1)
    image.set_sform(SFORM, 1)
    path = tmp_path / f"a{suffix}"
    nibabel.save(image, path)
    assert nibabel.load(path).header["sizeof_hdr"] == 540
    volume = read_nifti(path)
    np.testing.assert_array_equal(volume.array, array.T)
    assert volume.array.dtype == np.dtype(dtype)
    np.testing.assert_allclose(index_to_world(volume.geometry), TO_LPS @ SFORM, atol=1e-6)
    content = path.read_bytes() if suffix == ".nii" else gzip.decompress(path.read_bytes())
    path.write_bytes(content[:-1] if suffix == ".nii" else gzip.compress(content[:-1]))
    with pytest.raises(DataError, match="asks for"):
        read_nifti(path)


@pytest.mark.parametrize("stored", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("slope,intercept", [(0.37, -3.3), (1, 1024), (-2, 0)])
def test_scaled_numbers_are_simpleitks_to_the_bit(tmp_path, stored, slope, intercept):
    array = np.random.default_rng(0).integers(0, 120, (4, 5, 6)).astype(stored)
    nibabel.save(nibabel.Nifti1Image(array, SFORM, dtype=stored), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<2f", content, 112, slope, intercept)
    (tmp_path / "a.nii").write_bytes(content)
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(os.fspath(tmp_path / "a.nii")))
    ours = read_volume(tmp_path / "a.nii")
    assert ours.array.dtype == theirs.dtype == read_header(tmp_path / "a.nii").dtype
    np.testing.assert_array_equal(ours.array, theirs)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1),
    st.booleans(),
    st.tuples(*[st.floats(0.2, 9)] * 3),
    st.tuples(*[st.floats(-900, 900)] * 3),
)
def test_both_places_of_our_files_are_right(tmp_path_factory, quaternion, mirrored, spacing, origin):
    a, b, c, d = np.array(quaternion) / np.linalg.norm(quaternion)
    rotation = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
    ])  # fmt: skip
    if mirrored:
        rotation[:, 1] *= -1
    path = tmp_path_factory.mktemp("nii") / "a.nii"
    volume = Volume(np.zeros((2, 3, 4), np.uint8), spacing, origin, tuple(rotation.ravel().tolist()))
    write_volume(path, volume)
    image, wanted = nibabel.load(path), TO_LPS @ index_to_world(volume.geometry)
    np.testing.assert_allclose(image.get_sform(), wanted, rtol=1e-6, atol=1e-6)
    # The first part of the quaternion is not stored; near half turns, where it is small, 32 bits leave half of its digits.
    stored = [float(image.header[f"quatern_{part}"]) for part in "bcd"]
    first = np.sqrt(max(1 - np.square(stored).sum(), 0))
    np.testing.assert_allclose(image.get_qform(), wanted, rtol=1e-6, atol=9 * 2e-6 / max(first, 1e-3))
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    found = read_header(path)
    assert found.notes == () or first < 0.1
    np.testing.assert_allclose(index_to_world(found), index_to_world(volume.geometry), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "f4", "f8"]
)
def test_nibabel_and_simpleitk_read_our_files(tmp_path, dtype):
    array = np.random.default_rng(0).integers(0, 100, (4, 5, 6)).astype(dtype)
    path = tmp_path / "a.nii.gz"
    write_nifti(path, Volume(array, (3, 2, 1)))
    image = nibabel.load(path)
    assert image.get_data_dtype() == array.dtype
    np.testing.assert_array_equal(np.asanyarray(image.dataobj).T, array)
    assert image.header.get_xyzt_units() == ("mm", "sec")
    theirs = sitk.ReadImage(os.fspath(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(theirs), array)
    assert nibabel.Nifti1Header.diagnose_binaryblock(gzip.decompress(path.read_bytes())[:348]) == ""


def test_channels_on_the_fourth_axis(tmp_path):
    array = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    write_nifti(tmp_path / "a.nii.gz", Volume(array), series=True)
    image = nibabel.load(tmp_path / "a.nii.gz")
    assert image.shape == (6, 5, 4, 2)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, array)
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii.gz").array, array)
    write_nifti(tmp_path / "b.nii.gz", Volume(array))
    assert nibabel.load(tmp_path / "b.nii.gz").shape == (6, 5, 4, 1, 2)
    assert sitk.ReadImage(os.fspath(tmp_path / "b.nii.gz")).GetNumberOfComponentsPerPixel() == 2


def test_what_nifti_cannot_hold_and_other_names_are_refused(tmp_path):
    with pytest.raises(DataError, match="an axis of 32,768 voxels; NIfTI-1 counts to 32,767"):
        write_nifti(tmp_path / "a.nii", Volume(np.zeros((1, 1, 32768), np.uint8)))
    for action in (lambda: write_nifti(tmp_path / "a.mha", Volume(np.zeros((1, 1, 1)))), lambda: read_nifti("a.mha")):
        with pytest.raises(DataError, match="it ends with .nii or .nii.gz"):
            action()
    assert list(tmp_path.iterdir()) == []
