"""`itk_convert dicom`: one volume a series, in the right order and place, and nothing repaired in silence."""

from __future__ import annotations

import csv
import os
import re
import shutil

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tool_data import ledger

from itkit.errors import UsageError
from itkit.io.volumes import read_volume
from itkit.process.convert.dicom import ConvertDicom, clean_word, make_name, name_series


def write_series(
    folder, *, number=1, places=range(5), patient="P1", description="Thorax axial", uid=None, seed=0, slope=1.0,
    intercept=-1024.0, modality="CT", spacing=(0.5, 0.5), lean=0.0, **tags,
):  # fmt: skip
    """Write slices of 4 x 6 pixels at `places` (mm along z), in an order of file names that is not theirs.

    Returns:
        The values (Z, Y, X) in the order of their places.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    uid = uid or pydicom.uid.generate_uid(entropy_srcs=[str(folder), str(number), patient])
    pixels = rng.integers(0, 2000, (len(list(places)), 4, 6)).astype(np.uint16)
    for index, (where, picture) in enumerate(zip(places, pixels, strict=True)):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(
            entropy_srcs=[str(folder), uid, str(index)]
        )
        data.PatientName, data.PatientID, data.PatientBirthDate = "Doe^Jane", patient, "19700102"
        data.StudyDate, data.StudyInstanceUID, data.SeriesInstanceUID = "20200119", "1.2.3", uid
        data.SeriesNumber, data.SeriesDescription, data.Modality = number, description, modality
        data.PatientPosition, data.InstanceNumber = "HFS", 99 - index
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 4, 6, 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.PixelSpacing, data.SliceThickness = list(spacing), 1.0
        data.ImagePositionPatient = [-3.0, 4.0 + lean * where, float(where)]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.RescaleSlope, data.RescaleIntercept = slope, intercept
        data.PixelData = picture.tobytes()
        for key, value in tags.items():
            setattr(data, key, value)
        data.save_as(folder / f"{(index * 7) % 11:02d}_{number}_{patient}.dcm", enforce_file_format=True)
    return pixels.astype(np.float64) * slope + intercept


def rows_of(folder):
    with open(folder / "series.csv", encoding="utf-8", newline="") as stream:
        return {row["case"]: row for row in csv.DictReader(stream)}


def test_mixed_series_are_told_apart_and_sorted_by_place(tool, tmp_path):
    source, out = tmp_path / "raw", tmp_path / "out"
    first = write_series(source / "cd", places=[10, 12, 14, 8, 6])
    second = write_series(source / "cd", number=2, description="Abdomen/üpper", seed=1, slope=0.5)
    third = write_series(source / "deep/er", patient="P2", seed=2)
    (source / "cd/readme.txt").write_text("hello")
    code, said, notes = tool("itk_convert", "dicom", source, out)
    assert (code, notes.splitlines()[-1]) == (0, f"itk_convert: 3 done, 0 up to date, 0 failed; {out}")
    assert "3 series of 2 patient(s)" in said
    assert "no pictures: 1 files, first" in said
    names = ["P1_20200119_1_Thorax-axial", "P1_20200119_2_Abdomen-üpper", "P2_20200119_1_Thorax-axial"]
    assert sorted(path.name for path in (out / "image").iterdir()) == [f"{name}.mha" for name in names]
    order = np.argsort([10, 12, 14, 8, 6])
    for name, values, dtype, origin_z in zip(
        names, (first[order], second, third), ("int16", "float32", "int16"), (6, 0, 0), strict=True
    ):
        volume = read_volume(out / "image" / f"{name}.mha")
        assert volume.array.dtype == dtype
        np.testing.assert_array_equal(volume.array, values)
        assert volume.origin_xyz == (-3.0, 4.0, origin_z)
    assert read_volume(out / "image" / f"{names[0]}.mha").spacing_zyx == (2.0, 0.5, 0.5)
    row = rows_of(out)[names[1]]
    assert {key: row[key] for key in ("state", "patient_id", "study_date", "series_number", "slices", "size_zyx")} == {
        "state": "done", "patient_id": "P1", "study_date": "20200119", "series_number": "2", "slices": "5",
        "size_zyx": "5 4 6",
    }  # fmt: skip
    assert (row["rescale_slope"], row["rescale_intercept"], row["dtype"], row["patient_position"]) == (
        "0.5", "-1024", "float32", "HFS",
    )  # fmt: skip
    assert "0 done, 3 up to date" in tool("itk_convert", "dicom", source, out)[2]


def test_no_name_and_no_birth_date_is_written(tool, tmp_path):
    write_series(tmp_path / "raw", description="Secret trial")
    assert tool("itk_convert", "dicom", tmp_path / "raw", tmp_path / "out")[0] == 0
    code, _, _ = tool("itk_convert", "dicom", tmp_path / "raw", tmp_path / "hash", "--name-by", "hash")
    assert code == 0
    for folder, words in (
        ("out", (b"Doe", b"Jane", b"19700102")),
        ("hash", (b"Doe", b"20200119", b"Secret", b"1.2.3")),
    ):
        for path in (tmp_path / folder).rglob("*"):
            assert path.is_dir() or not any(word in path.read_bytes() for word in words), path
    (name,) = rows_of(tmp_path / "hash")
    assert len(name) == 12
    assert "patient_id" not in str(ledger(tmp_path / "hash")[name]["record"].get("P1", ""))
    assert ledger(tmp_path / "hash")[name]["record"]["patient_id"] == ""


@pytest.mark.parametrize("case,words", [
    ({"places": [0, 1, 2, 4, 5]}, "1 slice is missing, first after 2.00 mm: the gap is 2.00 mm, usual are 1.00 mm."),
    ({"places": [0, 1, 2, 2, 3]}, "1 slices lie where another one does, first at 2.00 mm"),
    ({"lean": 0.2}, "the stack leans by 11.31° (gantry tilt): 0.80 mm sideways over its length."),
    ({"places": [0, 1, 2, 3, 5, 7, 9]}, "mixed slice spacing: 1 mm (3×), 2 mm (3×)."),
    ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "the pixels are colours (RGB)"),
])  # fmt: skip
def test_a_series_without_an_honest_grid_fails_with_figures(tool, tmp_path, case, words):
    write_series(tmp_path / "raw/bad", **case)
    write_series(tmp_path / "raw/good", number=2)
    code, _, said = tool("itk_convert", "dicom", tmp_path / "raw", tmp_path / "out")
    assert (code, words in said) == (1, True), said
    assert "1 done, 0 up to date, 1 failed" in said
    row = rows_of(tmp_path / "out")["P1_20200119_1_Thorax-axial"]
    assert (row["state"], row["file"], words in row["reason"]) == ("failed", "", True)
    assert (row["patient_id"], int(row["slices"])) == ("P1", len(case.get("places", range(5))))
    assert [path.name for path in (tmp_path / "out/image").iterdir()] == ["P1_20200119_2_Thorax-axial.mha"]


def test_a_repaired_series_is_done_and_the_table_complete(tool, tmp_path):
    write_series(tmp_path / "raw/a", places=[0, 1, 2, 4])
    write_series(tmp_path / "raw/b", number=2)
    assert tool("itk_convert", "dicom", tmp_path / "raw", tmp_path / "out")[0] == 1
    shutil.rmtree(tmp_path / "raw/a")
    write_series(tmp_path / "raw/a", places=[0, 1, 2, 3])
    code, _, said = tool("itk_convert", "dicom", tmp_path / "raw", tmp_path / "out")
    assert (code, "1 done, 1 up to date, 0 failed" in said) == (0, True)
    assert [row["state"] for row in rows_of(tmp_path / "out").values()] == ["done", "done"]


def test_series_that_share_a_name_keep_apart(tool, tmp_path):
    values = {}
    for seed, uid in enumerate(("1.2.3.4", "1.2.3.5")):
        values[uid] = write_series(tmp_path / "raw" / uid, uid=uid, seed=seed)
    write_series(tmp_path / "raw/turned", uid="1.2.3.5", seed=9, ImageOrientationPatient=[0, 1, 0, 0, 0, 1], places=[3])
    assert tool("itk_convert", "dicom", tmp_path / "raw", tmp_path / "out")[0] == 0
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 3
    assert all(name.startswith("P1_20200119_1_Thorax-axial_") for name in rows)
    (plain,) = [name for name, row in rows.items() if row["series_uid"] == "1.2.3.4"]
    np.testing.assert_array_equal(read_volume(tmp_path / f"out/image/{plain}.mha").array, values["1.2.3.4"])
    assert tool("itk_convert", "dicom", tmp_path / "raw", tmp_path / "uid", "--name-by", "uid")[0] == 0
    assert sorted(rows_of(tmp_path / "uid")) == ["1.2.3.4", "1.2.3.5_1", "1.2.3.5_2"]


def test_some_series_are_passed_over(tool, tmp_path):
    write_series(tmp_path / "raw/ct")
    write_series(tmp_path / "raw/scout", number=2, places=[0])
    write_series(tmp_path / "raw/mr", number=3, modality="MR")
    code, said, _ = tool("itk_convert", "dicom", tmp_path / "raw", tmp_path / "out", "--only", "ct", "--min-slices", 2)
    assert code == 0
    assert "passed over: 2 series of other modalities or with fewer slices" in said
    assert list(rows_of(tmp_path / "out")) == ["P1_20200119_1_Thorax-axial"]
    code, _, said = tool("itk_convert", "dicom", tmp_path / "raw", tmp_path / "x", "--only", "US")
    assert (code, "holds no DICOM series to convert; 3 series were passed over" in said) == (1, True)


def test_folders_without_dicom_and_senseless_words(tool, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/notes.txt").write_text("x")
    code, _, said = tool("itk_convert", "dicom", tmp_path / "raw", tmp_path / "out")
    assert (code, "holds no DICOM series to convert. First of 1 other files: notes.txt: is no DICOM file." in said) == (
        1,
        True,
    )
    assert tool("itk_convert", "dicom", tmp_path / "gone", tmp_path / "out")[0] == 1
    assert tool("itk_convert", "dicom", tmp_path / "raw", tmp_path / "raw/out")[0] == 2
    with pytest.raises(UsageError, match="the format is one of mha, .*, not 'dcm'"):
        ConvertDicom("a", "b", format="dcm")
    with pytest.raises(UsageError, match="--name-by is one of patient, uid, hash, not 'name'"):
        ConvertDicom("a", "b", name_by="name")


def test_a_table_that_is_not_ours_stays(tool, tmp_path):
    write_series(tmp_path / "raw")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/series.csv").write_text("mine")
    code, _, said = tool("itk_convert", "dicom", tmp_path / "raw", tmp_path / "out")
    assert (code, "series.csv: exists and is not, or no longer, as `itk_convert dicom` wrote it" in said) == (1, True)
    assert (tmp_path / "out/series.csv").read_text() == "mine"


def test_memory_is_planned_from_the_grid(tmp_path):
    write_series(tmp_path / "raw")
    operation = ConvertDicom(str(tmp_path / "raw"), str(tmp_path / "out"))
    (task,) = operation.tasks()
    assert operation.memory_bytes(task) == 4 * 5 * 4 * 6 * 2


@given(st.text(max_size=60), st.text(max_size=60))
def test_law_names_are_names(first, second):
    name = make_name((first, second, "7"))
    assert name.endswith("7")
    assert len(name.encode()) <= 150
    assert os.path.basename(name) == name
    assert not name.startswith((".", "-"))
    assert clean_word(clean_word(first)) == clean_word(first)


@given(st.lists(st.tuples(st.sampled_from(("a", "A", "b_1", "b")), st.sampled_from(("1", "2", "3"))), max_size=8))
def test_law_names_of_series_are_unique_and_as_they_were_where_they_can_be(named):
    names = name_series(named)
    assert len({name.casefold() for name in names}) == len(names)
    for (name, _), unique in zip(named, names, strict=True):
        shared = sum(other.casefold() == name.casefold() for other, _ in named) > 1
        assert unique.startswith(name + "_") if shared else unique == name


def test_the_real_series_as_simpleitk_reads_it(shared_data, tool, tmp_path):
    import SimpleITK as sitk

    source = shared_data("dicom")
    assert tool("itk_convert", "dicom", source, tmp_path / "out", "--format", "nrrd")[0] == 0
    rows = rows_of(tmp_path / "out")
    assert {name: (row["slices"], row["modality"]) for name, row in rows.items()} == {
        "PGBM-002_20200119_12_T1post": ("22", "MR"), "PGBM-002_20200119_HippoCrop": ("32", "MR"),
    }  # fmt: skip
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(source / "brain_T1post")))
    theirs, ours = reader.Execute(), read_volume(tmp_path / "out/image/PGBM-002_20200119_12_T1post.nrrd")
    np.testing.assert_array_equal(ours.array, sitk.GetArrayFromImage(theirs))
    np.testing.assert_allclose(ours.origin_xyz, theirs.GetOrigin(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.spacing_zyx[::-1], theirs.GetSpacing(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.direction_xyz, theirs.GetDirection(), rtol=0, atol=1e-6)


def _emptied(path):
    path.write_bytes(b"")


def _cut(path):
    path.write_bytes(path.read_bytes()[:200])


def _overwritten(path):
    path.write_bytes(b"x" * 4000)


@pytest.mark.parametrize("damage", [_emptied, _cut, _overwritten])
def test_a_damaged_slice_at_the_end_is_not_left_out_in_silence(tool, tmp_path, damage):
    write_series(tmp_path / "raw")
    last = max((tmp_path / "raw").iterdir(), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    damage(last)
    code, _, said = tool("itk_convert", "dicom", tmp_path / "raw", tmp_path / "out")
    assert code == 1
    assert f"{last.name} lies beside the slices and may be one of them" in said
    assert not (tmp_path / "out/image").exists()


def test_a_damaged_file_among_several_series_fails_for_itself(tool, tmp_path):
    write_series(tmp_path / "raw", number=1)
    write_series(tmp_path / "raw", number=2)
    _cut(tmp_path / "raw/00_1_P1.dcm")
    (tmp_path / "raw/readme.txt").write_text("hello")
    code, _, said = tool("itk_convert", "dicom", tmp_path / "raw", tmp_path / "out")
    assert code == 1
    assert "2 done, 0 up to date, 1 failed" in said
    assert re.search(r"FAILED  damaged/00_1_P1.dcm: .*the file is truncated. It may belong to any series", said)
    assert said.count("note") == 2
    assert [row["state"] for row in rows_of(tmp_path / "out").values()] == ["done", "done"]


def test_a_folder_that_cannot_be_listed_is_named(tool, tmp_path, monkeypatch):
    write_series(tmp_path / "raw/a")
    walk = os.walk

    def shut(top, onerror=None, **options):
        if onerror is not None:
            onerror(PermissionError(13, "Permission denied", str(tmp_path / "raw/b")))
        return walk(top, onerror=onerror, **options)

    monkeypatch.setattr("itkit.io.dicom.os.walk", shut)
    code, _, said = tool("itk_convert", "dicom", tmp_path / "raw", tmp_path / "out")
    assert code == 1
    assert "FAILED  damaged/b: " in said
    assert "cannot be listed (Permission denied)." in said
    assert "1 done, 0 up to date, 1 failed" in said
