"""DICOM-SEG: what is completed and said, what is refused and how, and what other programs' files may do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from dicom_phantom import enhanced, save, write_series

from itkit.errors import DataError, GeometryError, MissingDependency, UsageError
from itkit.io.dicom import find_series
from itkit.io.dicom_seg import (
    PRIVATE_SCHEME,
    SegmentCode,
    read_dicom_seg,
    read_segment_codes,
    standard_codes,
    write_dicom_seg,
)
from itkit.io.resampling import resample_to_spacing
from itkit.io.volumes import Volume

CLASSES = ("background", "Liver", "left kidney")
SIZE = (4, 5, 6)
PATIENT = {
    "PatientName": "A^B", "PatientBirthDate": "19700101", "PatientSex": "F", "StudyDate": "20260101", "StudyTime": "101010",
    "StudyID": "7", "AccessionNumber": "9", "ReferringPhysicianName": "C", "PositionReferenceIndicator": "",
    "FrameOfReferenceUID": "1.2.3.4",
}  # fmt: skip


def series_of(folder: Path, array=None, **tags):
    write_series(folder, np.zeros(SIZE, np.int16) if array is None else array, **{**PATIENT, **tags})
    (series,) = find_series(folder)
    return series


def label_of(series, array) -> Volume:
    grid = series.geometry
    return Volume(np.asarray(array), grid.spacing_zyx, grid.origin_xyz, grid.direction_xyz)


def some_labels() -> np.ndarray:
    array = np.zeros(SIZE, np.uint8)
    array[1:3, 1:4, 2:5], array[2, 0, 0] = 1, 2
    return array


@pytest.fixture
def series(tmp_path):
    return series_of(tmp_path / "s")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / "seg.dcm"


class TestNotes:
    def test_a_complete_series_with_known_classes_needs_none(self, series, path):
        assert write_dicom_seg(path, label_of(series, some_labels() > 0), series, CLASSES[:2]) == ()

    def test_what_is_missing_is_completed_in_memory_and_said(self, tmp_path, path):
        series = series_of(
            tmp_path / "s",
            PatientBirthDate=None,
            StudyID=None,
            FrameOfReferenceUID=None,
            SliceThickness=None,
            Modality=None,
        )
        before = [file.read_bytes() for file in series.paths]
        notes = write_dicom_seg(path, label_of(series, some_labels()), series, CLASSES)
        assert notes == (
            "the series lacks PatientBirthDate, StudyID, SliceThickness, Modality; written empty, as the standard allows.",
            "the series has no FrameOfReferenceUID; one was made from its SeriesInstanceUID.",
            "no standard code is called 'left kidney'; the scheme 99ITKIT is used. Say which codes they have in a file of codes.",
        )
        assert [file.read_bytes() for file in series.paths] == before
        data = pydicom.dcmread(path)
        assert "PatientBirthDate" in data
        assert data.PatientBirthDate in (None, "")
        first = data.FrameOfReferenceUID
        write_dicom_seg(path, label_of(series, some_labels()), series, CLASSES)
        assert pydicom.dcmread(path).FrameOfReferenceUID == first

    def test_values_that_the_standard_forbids_are_left_out_and_said(self, tmp_path, path):
        with pytest.warns(UserWarning, match="Invalid value"):  # pydicom writes them, and says so
            series = series_of(tmp_path / "s", PatientSex="FEMALE", StudyDate="spring", StudyTime="99")
        notes = write_dicom_seg(path, label_of(series, some_labels() > 0), series, CLASSES[:2])
        assert notes == (
            "the series has values of PatientSex, StudyDate, StudyTime that the standard forbids; written empty.",
        )
        assert not pydicom.dcmread(path).PatientSex

    def test_empty_classes_stay_described(self, series, path):
        notes = write_dicom_seg(path, label_of(series, some_labels() * (some_labels() == 1)), series, CLASSES)
        assert "no voxel is 'left kidney'; the segments are described and empty." in notes
        back, names = read_dicom_seg(path, series)
        assert names == CLASSES
        assert back.array.max() == 1

    def test_no_class_at_all(self, series, path, caplog):
        notes = write_dicom_seg(path, label_of(series, np.zeros(SIZE, np.uint8)), series, CLASSES)
        assert "no class has a voxel; the segmentation describes them and marks nothing." in notes
        back, names = read_dicom_seg(path, series)
        assert names == CLASSES
        assert not back.array.any()
        assert back.geometry == series.geometry
        assert not caplog.records


class TestContent:
    def test_more_than_255_classes(self, series, path):
        array = np.zeros(SIZE, np.int32)
        array[0, 0, 0], array[1, 2, 3], array[3, 4, 5], array[2, 2, 2] = 1, 255, 256, 300
        names = ["background", *(f"class {number}" for number in range(1, 301))]
        write_dicom_seg(path, label_of(series, array), series, names)
        back, found = read_dicom_seg(path, series)
        np.testing.assert_array_equal(back.array, array)
        assert back.array.dtype == np.uint16
        assert list(found) == names

    def test_256_classes_with_the_last_one_there(self, series, path):
        array = np.zeros(SIZE, np.uint8)
        array[1, 2, 3] = 255
        write_dicom_seg(path, label_of(series, array), series, [f"c{number}" for number in range(256)])
        np.testing.assert_array_equal(read_dicom_seg(path, series)[0].array, array)

    def test_letters_of_any_script(self, tmp_path, path):
        series = series_of(tmp_path / "s", SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
        names = ("background", "左腎", "Großhirn")
        write_dicom_seg(path, label_of(series, some_labels()), series, names, algorithm="Ünet")
        assert read_dicom_seg(path)[1] == names
        data = pydicom.dcmread(path)
        assert (data.PatientName, data.SeriesDescription) == ("Müller^Jörg", "Ünet")

    def test_what_is_said_of_the_algorithm(self, series, path):
        write_dicom_seg(
            path, label_of(series, some_labels()), series, CLASSES,
            algorithm="1.0.X/unet", algorithm_version="0.3", description="kidneys",
        )  # fmt: skip
        data = pydicom.dcmread(path)
        (how,) = data.SegmentSequence[1].SegmentationAlgorithmIdentificationSequence
        assert (how.AlgorithmName, how.AlgorithmVersion) == ("1.0.X/unet", "0.3")
        assert data.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
        assert (data.SeriesDescription, data.SeriesNumber, data.Manufacturer) == ("kidneys", 1003, "itkit")

    def test_thickness_and_distance_of_slices_are_told_apart(self, tmp_path, path):
        series = series_of(tmp_path / "s", SliceThickness=2)  # slices of 2 mm, 2.5 mm apart
        write_dicom_seg(path, label_of(series, some_labels()), series, CLASSES)
        (measures,) = pydicom.dcmread(path).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
        assert (measures.SliceThickness, measures.SpacingBetweenSlices) == (2, 2.5)
        assert list(measures.PixelSpacing) == [0.75, 0.5]

    def test_a_file_is_replaced_whole_or_stays(self, series, path, monkeypatch):
        write_dicom_seg(path, label_of(series, some_labels()), series, CLASSES)
        before = path.read_bytes()

        def fails(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("highdicom.seg.Segmentation.save_as", fails)
        with pytest.raises(DataError, match=r"seg\.dcm: cannot be written \(No space left on device\)"):
            write_dicom_seg(path, label_of(series, some_labels()), series, CLASSES)
        assert path.read_bytes() == before
        assert [file.name for file in path.parent.iterdir()] == ["seg.dcm"]


class TestCodes:
    def test_standard_names_whatever_their_letters(self):
        codes = standard_codes(
            ["LIVER", "spinal_cord", "necrosis", "left kidney", "a name longer than sixteen", "a name longer than six"]
        )
        assert codes["LIVER"] == SegmentCode(("10200004", "SCT", "Liver"))
        assert codes["spinal_cord"].type == ("2748008", "SCT", "Spinal cord")
        assert codes["necrosis"].category[0] == "49755003"
        assert codes["left kidney"].type == ("left_kidney", PRIVATE_SCHEME, "left kidney")
        long, other = (codes[name].type[0] for name in ("a name longer than sixteen", "a name longer than six"))
        assert long != other
        assert max(map(len, (long, other))) <= 16

    def test_from_a_file(self, tmp_path, series, path):
        chosen = {
            "left kidney": {"type": ["18639004", "SCT", "Left kidney"], "region": ["818983003", "SCT", "Abdomen"]},
        }
        (tmp_path / "codes.json").write_text(json.dumps(chosen))
        codes = read_segment_codes(tmp_path / "codes.json", CLASSES)
        assert write_dicom_seg(path, label_of(series, some_labels()), series, CLASSES, codes=codes) == ()
        liver, kidney = pydicom.dcmread(path).SegmentSequence
        assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
        assert kidney.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Left kidney"
        assert kidney.AnatomicRegionSequence[0].CodeValue == "818983003"
        (tmp_path / "codes.json").write_text('{"Liver": ["1", "99A", "L"]}')
        assert read_segment_codes(tmp_path / "codes.json", CLASSES)["Liver"].type == ("1", "99A", "L")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", r"codes\.json: is no JSON"),
            ("[]", "holds no object of class names and codes"),
            (
                '{"Lever": ["1", "2", "3"]}',
                r"there is no class 'Lever'; found 'background', 'Liver', 'left kidney'\. Did you mean Liver",
            ),
            ('{"Liver": ["1", "2"]}', r"'Liver': type is not as it must be; a code is three texts"),
            ('{"Liver": {"category": ["1", "2", "3"]}}', "'Liver': type is not"),
            ('{"Liver": {"type": ["1", "2", "3"], "colour": 1}}', "'Liver': colour is not"),
        ],
    )
    def test_a_file_that_says_nothing_usable(self, tmp_path, text, message):
        (tmp_path / "codes.json").write_text(text)
        with pytest.raises(DataError, match=message):
            read_segment_codes(tmp_path / "codes.json", CLASSES)

    def test_no_file(self, tmp_path):
        with pytest.raises(DataError, match=r"none\.json: cannot be read \(No such file"):
            read_segment_codes(tmp_path / "none.json", CLASSES)


class TestRefusedWriting:
    def refuses(self, error, message, path, label, series, classes=CLASSES):
        with pytest.raises(error, match=message):
            write_dicom_seg(path, label, series, classes)
        assert not path.exists()
        assert not (path.parent.exists() and list(path.parent.iterdir()))

    def test_another_grid(self, series, path):
        finer = resample_to_spacing(label_of(series, some_labels()), (2.0, 0.75, 0.5), kind="label")
        message = (
            r"the labels do not lie on the grid of series 'phantom': labels have size \(5, 5, 6\), image has \(4, 5, 6\) "
            r"\(Z, Y, X\)\. Resample them to the series first"
        )
        self.refuses(GeometryError, message, path, finer, series)

    def test_another_place(self, series, path):
        grid = series.geometry
        moved = Volume(some_labels(), grid.spacing_zyx, (0.0, 0.0, 0.0), grid.direction_xyz)
        self.refuses(GeometryError, r"labels have origin \(0, 0, 0\), image has \(10, -20, 30\)", path, moved, series)

    def test_a_missing_slice(self, tmp_path, path):
        series = series_of(tmp_path / "s", places=[0, 1, 3, 4])
        label = Volume(some_labels(), (2.5, 0.75, 0.5), (10.0, -20.0, 30.0))
        self.refuses(DataError, "series 'phantom': 1 slice is missing, first after 32.50 mm", path, label, series)

    def test_labels_beyond_the_classes(self, series, path):
        label = label_of(series, some_labels().astype(np.int16) * 2)
        self.refuses(DataError, r"labels go from 0 to 4, but there are 3 classes \(0 to 2\)", path, label, series)
        label = label_of(series, -some_labels().astype(np.int16))
        self.refuses(DataError, r"labels go from -2 to 0", path, label, series)

    def test_no_labels(self, series, path):
        self.refuses(
            DataError,
            "labels are whole numbers, found float32",
            path,
            label_of(series, some_labels().astype("f4")),
            series,
        )
        self.refuses(
            DataError, r"the array's shape is \(1, 4, 5, 6\)", path, label_of(series, some_labels()[None]), series
        )

    @pytest.mark.parametrize(
        ("classes", "message"),
        [
            (("background",), "1 to 65535 segments besides the background, found 1 classes"),
            (("background", "x" * 65, "b"), "class 1 'x{65}': a segment's name has 1 to 64 letters"),
            (("background", "a\\b", "b"), r"class 1 'a\\\\b': .* no backslash"),
            (("background", " ", "b"), "class 1 ' '"),
            (("background", "a", "a"), r"two classes are called 'a' \(1 and 2\)"),
        ],
    )
    def test_names(self, series, path, classes, message):
        self.refuses(UsageError, message, path, label_of(series, some_labels()), series, classes)

    @pytest.mark.parametrize("name", ["SOPInstanceUID", "StudyInstanceUID"])
    def test_a_source_without_a_name_cannot_be_referred_to(self, series, path, name):
        data = pydicom.dcmread(series.paths[2])
        del data[name]
        data.save_as(series.paths[2])
        self.refuses(
            DataError,
            rf"\.dcm: has no {name}, so a segmentation cannot refer to it",
            path,
            label_of(series, some_labels()),
            series,
        )

    def test_a_source_that_is_gone(self, series, path):
        series.paths[1].unlink()
        self.refuses(
            DataError,
            r"\.dcm: the header cannot be read \(FileNotFoundError",
            path,
            label_of(series, some_labels()),
            series,
        )

    def test_frames_in_several_files(self, tmp_path, path):
        for name, first in (("a", 0), ("b", 2)):
            data = enhanced(np.zeros((2, 5, 6), np.int16), order=[0, 1])
            data.SeriesInstanceUID = "1.2.3"
            for number, group in enumerate(data.PerFrameFunctionalGroupsSequence):
                group.PlanePositionSequence[0].ImagePositionPatient = [1, 2, 3 + 2.5 * (first + number)]
            save(data, tmp_path / "s" / f"{name}.dcm")
        (series,) = find_series(tmp_path / "s")
        self.refuses(DataError, "its frames lie in 2 files", path, label_of(series, some_labels()), series)

    def test_what_highdicom_refuses_is_said_with_the_series(self, series, path):
        for file in series.paths[:2]:
            data = pydicom.dcmread(file)
            data.StudyInstanceUID = "1.2.3.4.5"
            data.save_as(file)
        message = r"s: no segmentation can be made over series 'phantom' \(ValueError: "
        self.refuses(DataError, message, path, label_of(series, some_labels()), series)

    def test_highdicom_is_not_there(self, series, path, monkeypatch):
        monkeypatch.setitem(sys.modules, "highdicom", None)
        with pytest.raises(
            MissingDependency, match=r"highdicom is needed for writing DICOM-SEG .* 'itkit\[dicomseg\]'"
        ):
            write_dicom_seg(path, label_of(series, some_labels()), series, CLASSES)


class TestReading:
    @pytest.fixture
    def written(self, series, path):
        write_dicom_seg(path, label_of(series, some_labels()), series, CLASSES)
        return path

    def changed(self, path, change):
        data = pydicom.dcmread(path)
        change(data)
        data.save_as(path)
        return path

    def test_without_the_series_the_grid_is_that_of_the_frames(self, written, series):
        back, names = read_dicom_seg(written)
        np.testing.assert_array_equal(back.array, some_labels()[1:3])
        np.testing.assert_allclose(back.spacing_zyx, series.geometry.spacing_zyx)
        np.testing.assert_allclose(back.origin_xyz, (10, -20, 32.5))
        assert names == CLASSES

    def test_a_slice_between_two_frames_stays_empty(self, series, path):
        array = np.zeros(SIZE, np.uint8)
        array[0, 0, 0] = array[3, 1, 1] = 1
        write_dicom_seg(path, label_of(series, array), series, CLASSES)
        np.testing.assert_array_equal(read_dicom_seg(path)[0].array, array)

    def test_segments_that_another_program_numbers_with_gaps(self, written, series):
        def renumber(data):
            data.SegmentSequence[1].SegmentNumber = 4
            for group in data.PerFrameFunctionalGroupsSequence:
                number = group.SegmentIdentificationSequence[0]
                number.ReferencedSegmentNumber = 4 if number.ReferencedSegmentNumber == 2 else 1

        back, names = read_dicom_seg(self.changed(written, renumber), series)
        np.testing.assert_array_equal(back.array, np.array([0, 1, 4], np.uint8)[some_labels()])
        assert names == ("background", "Liver", "", "", "left kidney")

    def test_segments_that_overlap(self, written, series):
        def overlap(data):
            pixels = np.array(data.pixel_array)
            pixels[:] = 1
            data.PixelData = np.packbits(pixels.ravel(), bitorder="little").tobytes()

        with pytest.raises(DataError, match=r"seg\.dcm: segments 1 and 2 overlap in 30 voxels of one slice"):
            read_dicom_seg(self.changed(written, overlap), series)

    def test_another_series(self, written, tmp_path):
        other = series_of(tmp_path / "other", origin=(10.0, -20.0, 31.0))
        with pytest.raises(
            GeometryError,
            match=r"frame 1 at \[.*\] mm \(X, Y, Z\) lies on no slice of series 'phantom'; the nearest is 1 mm",
        ):
            read_dicom_seg(written, other)
        other = series_of(tmp_path / "small", np.zeros((4, 5, 5), np.int16))
        with pytest.raises(
            GeometryError,
            match=r"not like the slices of series 'phantom': segmentation has size \(1, 5, 6\), image has \(1, 5, 5\)",
        ):
            read_dicom_seg(written, other)

    def test_frames_that_form_no_grid(self, written):
        def shift(data):
            data.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient[0] += 3

        with pytest.raises(
            GeometryError, match=r"frame \d lies 3 mm beside the grid of the others \(planes 2\.5 mm apart\)"
        ):
            read_dicom_seg(self.changed(written, shift))

    def test_frames_of_two_orientations(self, written):
        def turn(data):
            shared = data.SharedFunctionalGroupsSequence[0]
            group = data.PerFrameFunctionalGroupsSequence[0]
            group.PlaneOrientationSequence = pydicom.Sequence([pydicom.Dataset()])
            group.PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 1, 0, 0]
            assert shared.PlaneOrientationSequence

        with pytest.raises(GeometryError, match="differ in orientation or pixel spacing"):
            read_dicom_seg(self.changed(written, turn))

    def test_files_that_are_none(self, written, series, tmp_path):
        with pytest.raises(DataError, match=r"none\.dcm: cannot be read \(No such file"):
            read_dicom_seg(tmp_path / "none.dcm")
        (tmp_path / "text.dcm").write_text("no DICOM")
        with pytest.raises(DataError, match=r"text\.dcm: is no DICOM file that can be understood"):
            read_dicom_seg(tmp_path / "text.dcm")
        with pytest.raises(
            DataError, match=r"is no binary DICOM segmentation \(SOP class MR Image Storage, segmentation type none\)"
        ):
            read_dicom_seg(series.paths[0])

        def fractional(data):
            data.SegmentationType = "FRACTIONAL"

        with pytest.raises(DataError, match="segmentation type FRACTIONAL"):
            read_dicom_seg(self.changed(written, fractional))

    def test_damaged_files(self, written, series):
        def nameless(data):
            del data.SegmentSequence

        good = written.read_bytes()
        with pytest.raises(DataError, match=r"lacks what a segmentation must say \(AttributeError"):
            read_dicom_seg(self.changed(written, nameless))
        written.write_bytes(good)

        def shortened(data):
            data.PixelData = data.PixelData[:2]

        with pytest.raises(DataError, match="the pixels cannot be read .*2 bytes for 3 frames of 30 bits"):
            read_dicom_seg(self.changed(written, shortened), series)
        written.write_bytes(good[:-6])
        with pytest.raises(DataError, match="seg.dcm: "):
            read_dicom_seg(written, series)

    def test_pydicom_is_not_there(self, written, monkeypatch):
        monkeypatch.setitem(sys.modules, "pydicom", None)
        with pytest.raises(MissingDependency, match="pydicom is needed for reading DICOM-SEG"):
            read_dicom_seg(written)
