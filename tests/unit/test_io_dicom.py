"""DICOM folders: series are separated and sorted by place, every fault is named with its figures, values are right."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pydicom = pytest.importorskip("pydicom")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from dicom_phantom import enhanced, picture, save, write_series
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

from itkit.errors import DataError, MissingDependency
from itkit.io.dcm_toolkit import find_series, read_dicom_series, read_series, write_image
from itkit.io.volumes import Volume, read_volume

PHANTOM = np.random.default_rng(0).integers(-500, 3000, (6, 5, 7)).astype(np.int16)


def by_simpleitk(folder, uid="") -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(os.fspath(folder), uid))
    return reader.Execute()


def same_as_simpleitk(volume: Volume, image: sitk.Image) -> None:
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(volume.spacing_zyx, image.GetSpacing()[::-1], rtol=1e-6)
    np.testing.assert_allclose(volume.origin_xyz, image.GetOrigin(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(volume.direction_xyz, image.GetDirection(), atol=1e-6)


def problems_of(folder) -> str:
    (series,) = find_series(folder)
    assert series.problems
    with pytest.raises(DataError, match="series 'phantom': ") as caught:
        read_series(series)
    text = " ".join(series.problems)
    assert text in str(caught.value)
    return text


@pytest.mark.parametrize("name", ["hippocampus_crop", "brain_T1post"])
def test_real_series_are_simpleitks_to_the_bit(shared_data, name, tmp_path):
    folder = shared_data(f"dicom/{name}")
    (series,) = find_series(folder)
    assert (series.problems, len(series.paths)) == ((), {"hippocampus_crop": 32, "brain_T1post": 22}[name])
    volume, image = read_series(series), by_simpleitk(folder)
    assert volume.array.dtype == series.dtype == np.int16
    same_as_simpleitk(volume, image)
    write_image(volume, tmp_path / "a.nrrd")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nrrd").array, volume.array)


AXES = [sign * np.eye(3)[axis] for axis in range(3) for sign in (1, -1)]
COSINES = [(row, column) for row, column in itertools.product(AXES, AXES) if not row @ column]


@pytest.mark.parametrize("row,column", COSINES, ids=str)
def test_all_direction_cosines(tmp_path, row, column):
    write_series(tmp_path, PHANTOM, orientation=(*row.tolist(), *column.tolist()))
    volume = read_dicom_series(tmp_path)
    np.testing.assert_array_equal(volume.array, PHANTOM)
    assert volume.spacing_zyx == pytest.approx((2.5, 0.75, 0.5))
    assert volume.origin_xyz == pytest.approx((10, -20, 30))
    np.testing.assert_array_equal(
        np.reshape(volume.direction_xyz, (3, 3)), np.stack([row, column, np.cross(row, column)]).T
    )
    same_as_simpleitk(volume, by_simpleitk(tmp_path))


def test_oblique_slices(tmp_path):
    turned = sitk.Euler3DTransform()
    turned.SetRotation(0.4, -1.1, 2.5)
    row, column, _ = np.reshape(turned.GetMatrix(), (3, 3)).T
    write_series(tmp_path, PHANTOM, orientation=(*np.round(row, 6).tolist(), *np.round(column, 6).tolist()))
    volume = read_dicom_series(tmp_path)
    same_as_simpleitk(volume, by_simpleitk(tmp_path))
    np.testing.assert_allclose(volume.direction_xyz, turned.GetMatrix(), atol=2e-6)


def test_mixed_folders_are_separated(tmp_path):
    first, second = generate_uid(), generate_uid()
    write_series(tmp_path / "a", PHANTOM, series=first)
    write_series(tmp_path / "a" / "deep", PHANTOM + 1, series=second, SeriesNumber=2)
    write_series(tmp_path / "b", PHANTOM[:, :4], series=first)
    write_series(tmp_path / "c", PHANTOM[:2], series=first, orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0))
    found = find_series(tmp_path)
    assert [(s.uid, len(s.slices), s.slices[0].size_yx) for s in found] == [
        (second, 6, (5, 7)), (first, 6, (5, 7)), (first, 6, (4, 7)), (first, 2, (5, 7)),
    ]  # fmt: skip
    assert [s.problems for s in found] == [()] * 4
    np.testing.assert_array_equal(read_series(found[0]).array, PHANTOM + 1)
    np.testing.assert_array_equal(read_dicom_series(tmp_path, second).array, PHANTOM + 1)
    with pytest.raises(DataError, match=f"holds 4 series to choose from: phantom {second} .6 slices"):
        read_dicom_series(tmp_path)
    with pytest.raises(DataError, match="has no series 1.2.3; it holds: phantom"):
        read_dicom_series(tmp_path, "1.2.3")


def test_what_is_no_picture_is_listed_with_the_reason(tmp_path):
    write_series(tmp_path, PHANTOM)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    structures = picture(
        PHANTOM[0], series=generate_uid(), Rows=None, Columns=None, PixelData=None, Modality="RTSTRUCT"
    )
    save(structures, tmp_path / "rt.dcm")
    os.symlink(tmp_path, tmp_path / "loop")
    os.symlink(tmp_path / "0000.dcm", tmp_path / "again.dcm")
    skipped = []
    (series,) = find_series(tmp_path, skipped=skipped)
    assert (len(series.slices), series.problems) == (6, ())
    assert {path.name: reason for path, reason in skipped} == {
        "notes.txt": "is no DICOM file.",
        "empty": "is no DICOM file.",
        "rt.dcm": "holds no picture (modality RTSTRUCT).",
    }


def test_folders_without_a_series(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find_series(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no DICOM series.$"):
        read_dicom_series(tmp_path)
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(DataError, match="First of 1 other files: a.txt: is no DICOM file."):
        read_dicom_series(tmp_path)


@pytest.mark.parametrize("places,text", [
    ([0, 1, 2, 4, 5, 6], "1 slice is missing, first after 35.00 mm: the gap is 5.00 mm, usual are 2.50 mm."),
    ([0, 1, 2, 5, 6, 8], "3 slices are missing, first after 35.00 mm: the gap is 7.50 mm"),
    ([0, 1, 1, 2, 3, 4], "1 slices lie where another one does, first at 32.50 mm: "),
    ([0, 1, 2, 3.4, 4.4, 5.4], "irregular slice spacing: from 2.500 to 3.500 mm, usual 2.500 mm."),
    ([0, 1, 2, 3, 3.98, 4.98], "irregular slice spacing: from 2.450 to 2.500 mm"),
    ([0, 0, 0, 0, 0, 0], "all 6 slices lie in one place."),
    ([0, 1, 1, 2, 4, 5], "1 slices lie where another"),
])  # fmt: skip
def test_gaps(tmp_path, places, text):
    write_series(tmp_path, PHANTOM, places=places)
    assert text in problems_of(tmp_path)


def test_several_faults_are_all_named(tmp_path):
    write_series(tmp_path, PHANTOM, places=[0, 1, 1, 2, 4, 5], each={0: {"PixelSpacing": [0.75, 0.6]}})
    text = problems_of(tmp_path)
    for part in ("lie where another", "slice is missing", "mixed pixel spacings: 0.75 × 0.5, 0.75 × 0.6 mm (Y × X)."):
        assert part in text


def test_small_differences_of_gaps_are_rounding(tmp_path):
    write_series(tmp_path, PHANTOM, places=[0, 1.004, 2, 3.003, 4, 5])
    (series,) = find_series(tmp_path)
    assert series.problems == ()
    assert series.geometry.spacing_zyx[0] == pytest.approx(2.5)


def test_mixed_slice_spacing(tmp_path):
    write_series(tmp_path, np.repeat(PHANTOM, 2, axis=0)[:10], places=[0, 1, 2, 3, 4, 5, 7, 9, 11, 13])
    assert "mixed slice spacing: 2.5 mm (5×), 5 mm (4×)." in problems_of(tmp_path)


def test_what_tells_pictures_of_one_place_apart(tmp_path):
    uid = generate_uid()
    write_series(tmp_path / "a", PHANTOM, series=uid, EchoTime=30)
    write_series(tmp_path / "b", PHANTOM, series=uid, EchoTime=90)
    assert "6 slices lie where another one does, first at 30.00 mm" in problems_of(tmp_path)
    assert "(EchoTime 30, EchoTime 90)" in problems_of(tmp_path)


@pytest.mark.parametrize("tilt_deg,fine", [(0.0, True), (0.05, True), (0.2, False), (15.0, False)])
def test_gantry_tilt(tmp_path, tilt_deg, fine):
    aside = 2.5 * np.tan(np.radians(tilt_deg))
    write_series(tmp_path, PHANTOM, step=(0.0, aside, 2.5))
    (series,) = find_series(tmp_path)
    if fine:
        assert series.problems == ()
        assert series.notes == ()
    else:
        text = f"the stack leans by {tilt_deg:.2f}° (gantry tilt): {5 * aside:.2f} mm sideways over its length."
        assert text in problems_of(tmp_path)


def test_a_drift_of_rounding_is_a_note(tmp_path):
    write_series(tmp_path, np.repeat(PHANTOM, 4, axis=0), step=(0.004, 0.0, 2.5))
    (series,) = find_series(tmp_path)
    assert series.problems == ()
    assert series.notes == ("the slices drift sideways by 0.09 mm over the stack (0.09°).",)


@pytest.mark.parametrize("tags,text", [
    ({"ImagePositionPatient": None}, "6 of 6 slices do not say where they lie."),
    ({"ImageOrientationPatient": None}, "6 of 6 slices do not say where they lie."),
    ({"PixelSpacing": None}, "do not say how large a pixel is"),
    ({"PixelSpacing": [0, 1]}, r"spacing (0.0, 1.0) mm (Y, X) is not positive"),
    ({"ImageOrientationPatient": [1, 0, 0, 0.5, 1, 0]}, "not at a right angle (cosine 0.447)"),
    ({"RescaleSlope": 0, "RescaleIntercept": 0}, "a rescale slope is 0"),
    ({"PhotometricInterpretation": "PALETTE COLOR"}, "the pixels are colours (PALETTE COLOR)"),
    ({"ModalityLUTSequence": []}, "a look-up table"),
    ({"BitsAllocated": 64, "BitsStored": 64}, "pixels of 64 bits (64 stored)"),
    ({"PixelRepresentation": None}, "segmentations and parametric maps are not read"),
])  # fmt: skip
def test_headers_that_make_no_volume(tmp_path, tags, text):
    write_series(tmp_path, PHANTOM, **tags)
    assert text in problems_of(tmp_path)


def test_slices_that_differ_in_kind(tmp_path):
    write_series(tmp_path / "a", PHANTOM, each={3: {"PhotometricInterpretation": "MONOCHROME1"}})
    assert "MONOCHROME1 and MONOCHROME2 slices are mixed." in problems_of(tmp_path / "a")
    write_series(tmp_path / "b", PHANTOM, each={3: {"PixelRepresentation": 0}})
    assert "slices store numbers in 2 ways" in problems_of(tmp_path / "b")
    write_series(tmp_path / "c", PHANTOM, each={3: {"ImageOrientationPatient": [1, 0.005, 0, 0, 1, 0]}})
    assert "the orientation of the slices differs by up to 0.005 (cosines)." in problems_of(tmp_path / "c")


def test_monochrome1_keeps_its_numbers(tmp_path):
    write_series(tmp_path, PHANTOM, PhotometricInterpretation="MONOCHROME1")
    (series,) = find_series(tmp_path)
    assert series.notes == ("MONOCHROME1: a large number means dark; the numbers are kept.",)
    np.testing.assert_array_equal(read_series(series).array, PHANTOM)


@pytest.mark.parametrize("tags,dtype", [
    ({}, "int16"),
    ({"RescaleSlope": 1, "RescaleIntercept": 0}, "int16"),
    ({"RescaleSlope": 1, "RescaleIntercept": -1024}, "int32"),
    ({"BitsStored": 12, "HighBit": 11, "RescaleSlope": 1, "RescaleIntercept": -1024}, "int16"),
    ({"BitsStored": 12, "HighBit": 11, "RescaleSlope": 20, "RescaleIntercept": 0}, "int32"),
    ({"RescaleSlope": 0.1, "RescaleIntercept": 3}, "float32"),
    ({"RescaleSlope": 1, "RescaleIntercept": 0.5}, "float32"),
])  # fmt: skip
def test_rescaling_and_its_type(tmp_path, tags, dtype):
    pixels = PHANTOM % 2048
    write_series(tmp_path, pixels, **tags)
    (series,) = find_series(tmp_path)
    volume = read_series(series)
    assert volume.array.dtype == series.dtype == np.dtype(dtype)
    wanted = pixels * np.float64(tags.get("RescaleSlope", 1)) + tags.get("RescaleIntercept", 0)
    np.testing.assert_array_equal(volume.array, wanted.astype(dtype))
    np.testing.assert_allclose(volume.array, sitk.GetArrayFromImage(by_simpleitk(tmp_path)), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "int32"])
def test_stored_types_are_kept(tmp_path, dtype):
    info = np.iinfo(dtype)
    pixels = np.random.default_rng(0).integers(info.min, info.max, (3, 5, 7), dtype, endpoint=True)
    write_series(tmp_path, pixels)
    volume = read_dicom_series(tmp_path)
    assert volume.array.dtype == pixels.dtype
    np.testing.assert_array_equal(volume.array, pixels)


def test_each_slice_of_a_pet_has_its_own_slope(tmp_path):
    slopes = [0.5, 1.25, 2.0, 0.1, 7.5, 3.0]
    write_series(
        tmp_path, PHANTOM, Modality="PT", RescaleIntercept=0,
        each={k: {"RescaleSlope": slope} for k, slope in enumerate(slopes)},
    )  # fmt: skip
    volume = read_dicom_series(tmp_path)
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, PHANTOM * np.array(slopes)[:, None, None], rtol=1e-6)


def test_bits_above_the_stored_ones_are_removed(tmp_path):
    values = np.random.default_rng(0).integers(-2048, 2048, PHANTOM.shape).astype(np.int16)
    garbage = np.random.default_rng(1).integers(0, 16, PHANTOM.shape).astype(np.uint16) << 12
    write_series(tmp_path / "s", ((values.view(np.uint16) & 0xFFF) | garbage).view(np.int16), BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(read_dicom_series(tmp_path / "s").array, values)
    unsigned = (values.view(np.uint16) & 0xFFF) | garbage
    write_series(tmp_path / "u", unsigned, BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(read_dicom_series(tmp_path / "u").array, unsigned & 0xFFF)
    same_as_simpleitk(read_dicom_series(tmp_path / "u"), by_simpleitk(tmp_path / "u"))


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian], ids=lambda s: s.name
)
def test_plain_transfer_syntaxes(tmp_path, syntax):
    pixels = PHANTOM.astype(">i2") if syntax == ExplicitVRBigEndian else PHANTOM
    write_series(tmp_path, pixels, syntax=syntax)
    volume = read_dicom_series(tmp_path)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, PHANTOM)


def test_run_length_encoding_is_read_and_jpeg_says_what_to_install(tmp_path, monkeypatch):
    for path in write_series(tmp_path, PHANTOM):
        data = pydicom.dcmread(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data.compress(RLELossless)
        data.save_as(path)
    np.testing.assert_array_equal(read_dicom_series(tmp_path).array, PHANTOM)
    for path in tmp_path.iterdir():
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = JPEG2000Lossless
        data.save_as(path)
    if pydicom.pixels.get_decoder(JPEG2000Lossless).is_available:
        monkeypatch.setattr(type(pydicom.pixels.get_decoder(JPEG2000Lossless)), "is_available", False)
    assert (
        "JPEG 2000 Image Compression (Lossless Only); to read them: pip install pylibjpeg pylibjpeg-openjpeg"
        in problems_of(tmp_path)
    )
    for path in tmp_path.iterdir():
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
        data.save_as(path)
    assert "compressed as MPEG2 Main Profile / Main Level, which is not read" in problems_of(tmp_path)


def test_enhanced_files(tmp_path):
    save(enhanced(PHANTOM, order=[3, 0, 5, 1, 4, 2]), tmp_path / "a" / "multi.dcm")
    (series,) = find_series(tmp_path / "a")
    assert (series.problems, len(series.slices), len(series.paths)) == ((), 6, 1)
    volume = read_series(series)
    np.testing.assert_array_equal(volume.array, PHANTOM)
    assert (volume.spacing_zyx, volume.origin_xyz) == (pytest.approx((2.5, 0.75, 0.5)), (1.0, 2.0, 3.0))
    save(enhanced(PHANTOM, order=[3, 0, 5, 1, 4, 2], slopes=[1, 2, 3, 4, 5, 6.5]), tmp_path / "b" / "multi.dcm")
    scaled = read_dicom_series(tmp_path / "b")
    np.testing.assert_allclose(scaled.array, PHANTOM * np.array([1, 2, 3, 4, 5, 6.5])[:, None, None])
    bare = picture(PHANTOM, series=generate_uid(), ImageOrientationPatient=None, NumberOfFrames=6)
    save(bare, tmp_path / "c" / "multi.dcm")
    assert "6 of 6 slices do not say where they lie." in problems_of(tmp_path / "c")


def test_one_slice(tmp_path):
    write_series(tmp_path, PHANTOM[:1])
    (series,) = find_series(tmp_path)
    assert series.notes == ("one slice only; its thickness of 2 mm is written.",)
    assert read_series(series).spacing_zyx == (2.0, 0.75, 0.5)


def test_damaged_files(tmp_path):
    paths = write_series(tmp_path, PHANTOM)
    content = paths[2].read_bytes()
    paths[2].write_bytes(content[:-20])
    (series,) = find_series(tmp_path)
    with pytest.raises(DataError, match=r"\d{4}.dcm: the pixels cannot be read"):
        read_series(series)
    paths[2].write_bytes(content[: len(content) // 2])
    skipped = []
    found = find_series(tmp_path, skipped=skipped)
    assert skipped or any(series.problems for series in found)


def test_a_header_that_asks_for_terabytes_costs_nothing(tmp_path):
    write_series(tmp_path, PHANTOM, Rows=65535, Columns=65535)
    assert "is truncated: it asks for 8,589,672,450 bytes of pixels." in problems_of(tmp_path)
    write_series(tmp_path / "frames", PHANTOM, NumberOfFrames=2_000_000_000)
    skipped = []
    assert find_series(tmp_path / "frames", skipped=skipped) == []
    assert "2,000,000,000 frames in a file of" in skipped[0][1]


def test_no_damage_makes_the_reader_lose_its_temper(tmp_path):
    paths = write_series(tmp_path, PHANTOM[:3])
    content, generator = paths[1].read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        for at in generator.integers(0, len(content), generator.integers(1, 5)):
            damaged[at] = generator.integers(0, 256)
        paths[1].write_bytes(bytes(damaged[: generator.integers(100, len(content) + 1)]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = find_series(tmp_path)
        for series in found:
            with contextlib.suppress(DataError):
                assert read_series(series).array.nbytes < 10_000


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    write_series(tmp_path, PHANTOM)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingDependency, match=r"pydicom is needed for reading DICOM .*pip install 'itkit\[dicom\]'"):
        find_series(tmp_path)
