"""The reader against SimpleITK and nibabel, to the bit."""

from __future__ import annotations

import os

import numpy as np
import pytest
import SimpleITK as sitk

from itkit.io.orientation import ORIENTATIONS, orientation, reorient
from itkit.io.volumes import Volume, read_volume, write_volume

nibabel = pytest.importorskip("nibabel")


def same_as_simpleitk(path):
    image = sitk.ReadImage(os.fspath(path))
    volume = read_volume(path)
    theirs = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        theirs = np.moveaxis(theirs, -1, 0)
    assert volume.array.dtype == theirs.dtype
    np.testing.assert_array_equal(volume.array, theirs)
    assert volume.spacing_zyx == tuple(reversed(image.GetSpacing()[:3]))
    assert volume.origin_xyz == image.GetOrigin()[:3]
    return volume, image


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nii", ".nii.gz", ".nrrd"])
@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_files_by_simpleitk(tmp_path, suffix, vector, compressed):
    array = np.random.default_rng(0).normal(0, 99, (5, 6, 7) + ((3,) if vector else ())).astype(np.float32)
    image = sitk.GetImageFromArray(array, isVector=vector)
    image.SetSpacing((0.7, 1 / 3, 2.1))
    image.SetOrigin((-1 / 7, 4, 5))
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(image, os.fspath(path), compressed)
    same_as_simpleitk(path)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "<u2", "<i4", "<u4", "<i8", "<f4", ">f4", "<f8"])
def test_files_by_nibabel(tmp_path, dtype):
    dtype = np.dtype(dtype)
    array = np.random.default_rng(0).integers(0, 100, (4, 5, 6)).astype(dtype)
    affine = np.array([[0, -2.0, 0, 9], [1.5, 0, 0, 8], [0, 0, 3, 7], [0, 0, 0, 1]])
    header = nibabel.Nifti1Image.header_class(endianness=">" if dtype.byteorder == ">" else "<")
    header.set_data_dtype(dtype)
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, affine, header, dtype=dtype), path)
    volume, _ = same_as_simpleitk(path)
    np.testing.assert_array_equal(volume.array, array.T)


def test_scaled_integers_follow_simpleitk(tmp_path):
    array = np.random.default_rng(0).integers(-500, 500, (4, 5, 6)).astype(np.int16)
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.header.set_slope_inter(2.5, -3)
    nibabel.save(image, tmp_path / "a.nii.gz")
    volume, _ = same_as_simpleitk(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(volume.array, nibabel.load(tmp_path / "a.nii.gz").get_fdata().T, rtol=1e-6)


def test_modalities_in_a_fourth_dimension(tmp_path):
    array = np.random.default_rng(0).normal(size=(4, 5, 6, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 2, 3, 1])), tmp_path / "a.nii.gz")
    volume, _ = same_as_simpleitk(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.array, array.transpose(3, 2, 1, 0))


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_orientation_letters_are_nibabels(tmp_path, code):
    volume = reorient(Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), (1.0, 2.0, 3.0), (5.0, 6.0, 7.0)), code)
    write_volume(tmp_path / "a.nii", volume)
    image = nibabel.load(tmp_path / "a.nii")
    assert "".join(nibabel.aff2axcodes(image.affine)) == code == orientation(volume)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, volume.array)


def test_real_hippocampus(shared_data):
    for path in sorted((shared_data("Task04_Hippocampus") / "imagesTr").glob("[!.]*.nii.gz"))[:5]:
        volume, _ = same_as_simpleitk(path)
        image = nibabel.load(path)
        np.testing.assert_array_equal(volume.array, np.asarray(image.dataobj).T)
        lps = np.diag([-1, -1, 1, 1]) @ image.affine
        np.testing.assert_allclose(volume.origin_xyz, lps[:3, 3], rtol=1e-6)
        spacing_xyz = np.array(volume.spacing_zyx[::-1])
        np.testing.assert_allclose(
            np.reshape(volume.direction_xyz, (3, 3)) * spacing_xyz, lps[:3, :3], rtol=1e-5, atol=1e-6
        )


def test_real_ct(shared_data):
    for path in sorted(shared_data("ct").glob("*.nii.gz")):
        same_as_simpleitk(path)
