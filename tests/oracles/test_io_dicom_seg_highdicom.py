"""A segmentation lies where its labels lay: judged by highdicom, by pydicom alone, and by our own reader."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from dicom_phantom import enhanced, save, write_series

from itkit.io.dicom import find_series, read_series
from itkit.io.dicom_seg import read_dicom_seg, write_dicom_seg
from itkit.io.geometry import index_to_world
from itkit.io.orientation import ORIENTATIONS, reorient
from itkit.io.volumes import Volume

CLASSES = ("background", "small", "large", "nowhere")
SIZE = (5, 6, 7)
AXES = [np.array(axis, float) for axis in itertools.chain(np.eye(3), -np.eye(3))]
ORIENTATIONS_IN_PLANE = [
    (*row, *column) for row, column in itertools.product(AXES, AXES) if abs(row @ column) < 0.5
]  # 24: every axis order and every combination of signs


def labels() -> np.ndarray:
    """A phantom that no turn and no mirror takes to itself."""
    array = np.zeros(SIZE, np.uint8)
    array[1:4, 1:3, 2:6] = 2
    array[1, 1, 2] = array[2, 1, 2] = array[1, 2, 2] = array[1, 1, 3] = array[3, 4, 5] = 1
    return array


def oblique() -> tuple[float, ...]:
    a, b = np.deg2rad(17), np.deg2rad(-31)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return (*turn[:, 0], *turn[:, 1])


def places(array: np.ndarray, value: int, matrix: np.ndarray) -> np.ndarray:
    """Where the voxels with `value` lie in mm, sorted; `matrix` takes (x, y, z, 1) there."""
    found = np.argwhere(array == value)[:, ::-1]
    world = (np.c_[found, np.ones(len(found))] @ matrix.T)[:, :3]
    return world[np.lexsort(np.round(world, 3).T)]


def places_by_pydicom(path: Path, number: int) -> np.ndarray:
    """The same, from the attributes of the frames and the equation of the standard (PS3.3, C.7.6.2.1.1)."""
    data = pydicom.dcmread(path)
    shared, world = data.SharedFunctionalGroupsSequence[0], []
    for pixels, group in zip(np.atleast_3d(data.pixel_array), data.PerFrameFunctionalGroupsSequence, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber != number:
            continue
        plane = (group.get("PlaneOrientationSequence") or shared.PlaneOrientationSequence)[0]
        cosines = np.array(plane.ImageOrientationPatient, float)
        measures = (group.get("PixelMeasuresSequence") or shared.PixelMeasuresSequence)[0]
        between_rows, between_columns = (float(value) for value in measures.PixelSpacing)
        corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(pixels):
            world.append(corner + cosines[:3] * between_columns * column + cosines[3:] * between_rows * row)
    world = np.reshape(world, (-1, 3))
    return world[np.lexsort(np.round(world, 3).T)]


def check(path: Path, series, label: Volume) -> None:
    """All three readers put each class where `label` has it, and every frame names the slice that lies there."""
    ours, names = read_dicom_seg(path, series)
    assert names == CLASSES
    theirs = highdicom.seg.segread(path).get_volume(combine_segments=True)
    swap = np.eye(4)[[2, 1, 0, 3]]  # highdicom counts (slice, row, column)
    for value in (1, 2):
        expected = places(label.array, value, index_to_world(label.geometry))
        assert len(expected) == (label.array == value).sum() > 0
        np.testing.assert_allclose(places(ours.array, value, index_to_world(ours.geometry)), expected, atol=2e-3)
        np.testing.assert_allclose(places(theirs.array, value, theirs.affine @ swap), expected, atol=2e-3)
        np.testing.assert_allclose(places_by_pydicom(path, value), expected, atol=2e-3)
    data = pydicom.dcmread(path)
    sources = {}
    for source in map(pydicom.dcmread, series.paths):
        sources[source.SOPInstanceUID] = source
    for group in data.PerFrameFunctionalGroupsSequence:
        (reference,) = group.DerivationImageSequence[0].SourceImageSequence
        source = sources[reference.ReferencedSOPInstanceUID]
        if "ReferencedFrameNumber" in reference:
            frame = source.PerFrameFunctionalGroupsSequence[reference.ReferencedFrameNumber - 1]
            position = frame.PlanePositionSequence[0].ImagePositionPatient
        else:
            position = source.ImagePositionPatient
        np.testing.assert_allclose(group.PlanePositionSequence[0].ImagePositionPatient, position, atol=1e-6)
    assert {
        item.ReferencedSOPInstanceUID for item in data.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    } == set(sources)
    assert data.FrameOfReferenceUID
    assert data.Modality == "SEG"
    assert data.SegmentationType == "BINARY"


@pytest.mark.parametrize("orientation", [*ORIENTATIONS_IN_PLANE, oblique()])
def test_every_order_and_sign_of_the_axes(tmp_path, orientation):
    for name, gap in (("up", 2.5), ("down", -2.5)):
        pixels = np.random.default_rng(0).integers(0, 100, SIZE).astype(np.int16)
        write_series(tmp_path / name, pixels, orientation=orientation, gap=gap, FrameOfReferenceUID="1.2.3")
        (series,) = find_series(tmp_path / name)
        grid = series.geometry
        label = Volume(labels(), grid.spacing_zyx, grid.origin_xyz, grid.direction_xyz)
        write_dicom_seg(tmp_path / f"{name}.dcm", label, series, CLASSES)
        check(tmp_path / f"{name}.dcm", series, label)
        back, _ = read_dicom_seg(tmp_path / f"{name}.dcm", series)
        np.testing.assert_array_equal(back.array, label.array)
        assert back.geometry == grid
        assert back.array.dtype == np.uint8


def test_labels_with_turned_axes_are_written_at_the_same_place(tmp_path):
    write_series(tmp_path / "s", np.zeros(SIZE, np.int16), orientation=oblique())
    (series,) = find_series(tmp_path / "s")
    grid = series.geometry
    label = Volume(labels().astype(np.int64), grid.spacing_zyx, grid.origin_xyz, grid.direction_xyz)
    for code in ORIENTATIONS[::7]:
        write_dicom_seg(tmp_path / "seg.dcm", reorient(label, code), series, CLASSES)
        check(tmp_path / "seg.dcm", series, label)


def test_frames_of_one_file_in_any_order(tmp_path):
    data = enhanced(np.zeros(SIZE, np.int16), order=[3, 0, 4, 2, 1])
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    save(data, tmp_path / "s" / "enhanced.dcm")
    (series,) = find_series(tmp_path / "s")
    assert not series.problems
    grid = series.geometry
    label = Volume(labels(), grid.spacing_zyx, grid.origin_xyz, grid.direction_xyz)
    write_dicom_seg(tmp_path / "seg.dcm", label, series, CLASSES)
    check(tmp_path / "seg.dcm", series, label)


@pytest.mark.parametrize("name", ["hippocampus_crop", "brain_T1post"])
def test_real_series(shared_data, tmp_path, name):
    (series,) = find_series(shared_data("dicom") / name)
    volume = read_series(series)
    array = (volume.array > np.percentile(volume.array, 90)).astype(np.uint8)
    array[:, : array.shape[1] // 3] *= 2
    label = Volume(array, volume.spacing_zyx, volume.origin_xyz, volume.direction_xyz)
    notes = write_dicom_seg(tmp_path / "seg.dcm", label, series, ("background", "Hippocampus", "large", "nowhere"))
    lacking = "the series lacks PatientBirthDate, PatientSex; written empty, as the standard allows."
    assert (lacking in notes) == (name == "hippocampus_crop")
    back, _ = read_dicom_seg(tmp_path / "seg.dcm", series)
    np.testing.assert_array_equal(back.array, array)
    theirs = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    first = int(np.flatnonzero(array.any((1, 2)))[0])
    own = (
        theirs.array[::-1]
        if theirs.affine[:3, 0] @ np.reshape(volume.direction_xyz, (3, 3))[:, 2] < 0
        else theirs.array
    )
    np.testing.assert_array_equal(own, array[first : first + len(own)])
    source, made = pydicom.dcmread(series.paths[0]), pydicom.dcmread(tmp_path / "seg.dcm")
    for attribute in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert made[attribute].value == source[attribute].value
    assert made.SeriesInstanceUID != source.SeriesInstanceUID
    assert made.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue == "5366008"
