"""DICOM-SEG: a label volume written over the series that it was made from, and read back onto that series' grid."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from itkit import __version__
from itkit._support.files import replace_when_complete
from itkit._support.optional import require
from itkit._support.suggestions import did_you_mean
from itkit.errors import DataError, GeometryError, UsageError
from itkit.io.claims import require_memory
from itkit.io.dicom import ORIENTATION_ATOL_EQUAL, PIXEL_SPACING_RTOL, SAME_PLACE_MM, DicomSeries
from itkit.io.geometry import Geometry, Match, compare_geometries
from itkit.io.orientation import orientation, reorient
from itkit.io.volumes import Volume

PRIVATE_SCHEME = "99ITKIT"
"""Coding scheme of classes that no standard code is known for; the standard keeps names that begin with 99 for this."""
SERIES_NUMBER_ABOVE = 1000
"""The segmentation's SeriesNumber is that of its source plus this."""
PLACE_RTOL = 0.1
"""How far a frame may lie from a slice, as a part of the distance of slices, and still be a picture of it."""
_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.66.4"
_MOST_SEGMENTS = 65535
_TEXT_LENGTH, _CODE_LENGTH = 64, 16
"""Letters that a segment's label (LO) and a code (SH) may have."""
_EMPTY_IF_UNKNOWN = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "ReferringPhysicianName", "PositionReferenceIndicator", "SliceThickness", "Modality",
)  # fmt: skip
"""What the writer asks a source for. All but the modality may be empty, says the standard (type 2), but must be there."""
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_STANDARD = (
    (("123037004", "SCT", "Anatomical Structure"), "cid7192"),
    (("85756007", "SCT", "Tissue"), "cid7191"),
    (("49755003", "SCT", "Morphologically Altered Structure"), "cid7194"),
)
"""Category of a segment, and the standard's group of codes (PS3.16) whose names are looked up for it."""

Code = tuple[str, str, str]


@dataclass(frozen=True)
class SegmentCode:
    """What a class is, in the words of a coding scheme.

    Attributes:
        type: What was segmented: code value, scheme and meaning, e.g. ``("10200004", "SCT", "Liver")``.
        category: What kind of thing it is, in the same form.
        region: The part of the body it lies in, in the same form; None: not said.
    """

    type: Code
    category: Code = _STANDARD[0][0]
    region: Code | None = None


def standard_codes(classes: Sequence[str]) -> dict[str, SegmentCode]:
    """Return a code for each class: SNOMED CT's where the class is called as the standard calls a structure, else a private one.

    Letter case, blanks and underscores make no difference: ``"Hippocampus"`` is found, ``"left_kidney"`` is not, for a part of
    a name says too little to choose a clinical code by. `read_segment_codes` reads codes that a person has chosen.

    Raises:
        MissingDependency: If pydicom is not installed.
    """
    codes = require("pydicom.sr.codedict", extra="dicomseg", purpose="writing DICOM-SEG").codes
    known: dict[str, SegmentCode] = {}
    for category, group in _STANDARD:
        for code in getattr(codes, group).concepts.values():
            known.setdefault(
                _letters(code.meaning), SegmentCode((code.value, code.scheme_designator, code.meaning), category)
            )
    return {name: known.get(_letters(name)) or SegmentCode(_private_code(name)) for name in classes}


def read_segment_codes(path: str | os.PathLike, classes: Sequence[str]) -> dict[str, SegmentCode]:
    """Read which codes classes have from a JSON file, and take `standard_codes` for those that it leaves out.

    The file holds an object: class name -> ``{"type": [value, scheme, meaning], "category": [...], "region": [...]}``, where
    category and region may be left out.

    Raises:
        DataError: If the file cannot be read, names no class of `classes` (the nearest is named), or holds no code.
        MissingDependency: If pydicom is not installed.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error}).", path) from error
    except ValueError as error:
        raise DataError(f"is no JSON ({error}).", path) from error
    if not isinstance(document, dict):
        raise DataError("holds no object of class names and codes.", path)
    codes = standard_codes(classes)
    for name, entry in document.items():
        if name not in codes:
            raise DataError(
                f"there is no class {name!r}; found {', '.join(map(repr, classes))}.{did_you_mean(name, classes)}", path
            )
        parts = dict(entry) if isinstance(entry, dict) else {"type": entry}
        unknown = set(parts) - {"type", "category", "region"}
        wrong = unknown or {key for key, value in parts.items() if not _is_code(value)}
        if wrong or "type" not in parts:
            raise DataError(
                f"{name!r}: {', '.join(sorted(wrong)) or 'type'} is not as it must be; a code is three texts, [value, scheme, "
                'meaning], e.g. {"type": ["10200004", "SCT", "Liver"]}; category and region may follow.',
                path,
            )
        codes[name] = SegmentCode(**{key: tuple(value) for key, value in parts.items()})
    return codes


def write_dicom_seg(
    path: str | os.PathLike,
    label: Volume,
    series: DicomSeries,
    classes: Sequence[str],
    *,
    codes: Mapping[str, SegmentCode] | None = None,
    algorithm: str = "itkit",
    algorithm_version: str = __version__,
    description: str | None = None,
) -> tuple[str, ...]:
    """Write `label` as a binary DICOM segmentation of `series`. All of the file is written or nothing.

    Segment n is class n; class 0 is the background and gets none. Each frame lies where its source slice lies, names that
    slice, and has the source's orientation and pixels. Frames without a voxel are left out; a class without a voxel stays
    described, so that a reader sees that it was looked for.

    Attributes that the standard wants in every file and that the series lacks are completed empty, in memory alone.

    Args:
        path: The file; an existing one is replaced when the new one is complete.
        label: Whole numbers below ``len(classes)``, (Z, Y, X), on the grid of the series, its axes in any order and sense.
        series: A sound series of `itkit.io.dicom.find_series`.
        classes: Name of each label, the background first. At most 64 letters each.
        codes: Class name -> code, as `read_segment_codes` gives them. None: `standard_codes`.
        algorithm: Name of what made the labels, e.g. ``"1.0.Hippocampus/unet_small"``.
        algorithm_version: Its version.
        description: Of the whole segmentation (SeriesDescription). None: the algorithm's name.

    Returns:
        What is worth knowing: which attributes were completed, which classes have no standard code, which are empty.

    Raises:
        DataError: If the series has problems, the labels are none of the classes, an attribute that cannot be completed is
            missing, or the file cannot be written.
        GeometryError: If the labels lie on another grid than the series.
        UsageError: If the classes' names do not fit into a segmentation.
        MissingDependency: If highdicom is not installed.
    """
    highdicom = require("highdicom", extra="dicomseg", purpose="writing DICOM-SEG")
    _require_names(classes)
    _require_sound(series)
    label = _on_grid_of(series, label)
    array = _segments(label.array, len(classes))
    sources, notes = _sources(series)
    notes += _empty_classes(array, classes)
    codes = standard_codes(classes) if codes is None else codes
    private = [name for name in classes[1:] if codes[name].type[1] == PRIVATE_SCHEME]
    if private:
        notes.append(
            f"no standard code is called {_listed(private)}; the scheme {PRIVATE_SCHEME} is used. Say which codes they have in a "
            "file of codes."
        )
    array = _in_order_of_frames(array, series)
    try:
        with warnings.catch_warnings(), _silent(highdicom):
            warnings.simplefilter("ignore")
            made = highdicom.seg.Segmentation(
                source_images=sources,
                pixel_array=array,
                segmentation_type="BINARY",
                segment_descriptions=_descriptions(highdicom, classes, codes, algorithm, algorithm_version),
                series_instance_uid=highdicom.UID(),
                series_number=(series.number or 0) + SERIES_NUMBER_ABOVE,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer="itkit",
                manufacturer_model_name=algorithm[:_TEXT_LENGTH],
                software_versions=f"itkit {__version__}"[:_TEXT_LENGTH],
                device_serial_number="0",
                content_label="SEGMENTATION",
                content_description=(description or algorithm)[:_TEXT_LENGTH],
                series_description=(description or algorithm)[:_TEXT_LENGTH],
                **_planes(highdicom, sources, series),
            )
            _encode_texts(made)
    except Exception as error:  # highdicom raises whatever a source's attributes lead it to
        raise DataError(
            f"no segmentation can be made over series {series.description or series.uid!r} "
            f"({type(error).__name__}: {error}).",
            series.slices[0].path.parent,
        ) from error
    try:
        with replace_when_complete(path) as temporary:
            made.save_as(temporary, enforce_file_format=True)
    except OSError as error:
        raise DataError(f"cannot be written ({error.strerror or error}).", path) from error
    return tuple(notes)


def read_dicom_seg(path: str | os.PathLike, series: DicomSeries | None = None) -> tuple[Volume, tuple[str, ...]]:
    """Return the segments of a binary DICOM segmentation as one label volume, and the names of its classes.

    Args:
        path: The file.
        series: The series whose grid the volume gets. None: the grid that the frames themselves lie on, from the first slice
            with a segment to the last.

    Returns:
        The volume, uint8 (uint16 beyond segment 255), where label n is segment n; and names, ``"background"`` first. A number
        between segments that none of them has is called ``""``.

    Raises:
        DataError: If the file is missing, damaged, no binary segmentation, or two of its segments overlap.
        GeometryError: If its frames form no grid, or do not lie on slices of `series`.
        MissingDependency: If pydicom is not installed.
    """
    pydicom = require("pydicom", extra="dicom", purpose="reading DICOM-SEG")
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(path)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error}).", path) from error
    except Exception as error:  # pydicom raises whatever damaged bytes lead it to
        raise DataError(f"is no DICOM file that can be understood ({type(error).__name__}: {error}).", path) from error
    kind = data.get("SegmentationType", "none")
    if data.get("SOPClassUID") != _SOP_CLASS or kind != "BINARY":
        raise DataError(
            f"is no binary DICOM segmentation (SOP class {getattr(data.get('SOPClassUID'), 'name', 'none')}, segmentation type "
            f"{kind}).",
            path,
        )
    try:
        names = {int(segment.SegmentNumber): str(segment.SegmentLabel) for segment in data.SegmentSequence}
        frames = [_frame(data, number) for number in range(int(data.NumberOfFrames))]
        numbers = [frame.segment for frame in frames]
        last = max([*names, *numbers])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"lacks what a segmentation must say ({type(error).__name__}: {error}).", path) from error
    _require_alike(frames, path)
    size_yx = (int(data.Rows), int(data.Columns))
    grid, planes = (
        _planes_of_frames(frames, size_yx, path) if series is None else _planes_in(series, frames, size_yx, path)
    )
    dtype = np.uint8 if last <= 255 else np.uint16
    require_memory(int(np.prod(grid.size_zyx)) * np.dtype(dtype).itemsize, path)
    array = np.zeros(grid.size_zyx, dtype)
    for pixels, plane, segment in zip(_pixels(pydicom, data, len(frames), path), planes, numbers, strict=True):
        inside = pixels.reshape(size_yx).astype(bool)
        other = array[plane][inside & (array[plane] != 0) & (array[plane] != segment)]
        if other.size:
            raise DataError(
                f"segments {int(other[0])} and {segment} overlap in {other.size} voxels of one slice; one label map cannot hold "
                "both.",
                path,
            )
        array[plane][inside] = segment
    volume = Volume(array, grid.spacing_zyx, grid.origin_xyz, grid.direction_xyz)
    return volume, ("background", *(names.get(number, "") for number in range(1, last + 1)))


# ------------------------------------------------------------------------------------------------------------ writing


def _require_names(classes: Sequence[str]) -> None:
    if not 2 <= len(classes) <= _MOST_SEGMENTS + 1:
        raise UsageError(
            f"a segmentation has 1 to {_MOST_SEGMENTS} segments besides the background, found {len(classes)} classes in all."
        )
    for number, name in enumerate(classes):
        if not name.strip() or len(name) > _TEXT_LENGTH or re.search(r"[\\\x00-\x1f\x7f]", name):
            raise UsageError(
                f"class {number} {name!r}: a segment's name has 1 to {_TEXT_LENGTH} letters, no backslash and no line break."
            )
        if name in classes[:number]:
            raise UsageError(f"two classes are called {name!r} ({classes.index(name)} and {number}).")


def _require_sound(series: DicomSeries) -> None:
    where = series.slices[0].path.parent if series.slices else None
    name = f"series {series.description or series.uid!r}"
    if series.problems or series.geometry is None:
        raise DataError(f"{name}: {' '.join(series.problems)}", where)
    if any(picture.frame is not None for picture in series.slices) and len(series.paths) > 1:
        raise DataError(
            f"{name}: its frames lie in {len(series.paths)} files; a segmentation can only refer to one file of frames, or to "
            "files of one slice.",
            where,
        )


def _on_grid_of(series: DicomSeries, label: Volume) -> Volume:
    """Return `label` with the axes of the series; only their order and sense may differ."""
    if label.array.ndim != 3:
        raise DataError(f"labels have the axes (Z, Y, X); the array's shape is {label.array.shape}.")
    turned = reorient(label, orientation(series.geometry))
    match, difference = compare_geometries(series.geometry, turned.geometry)
    if match is not Match.EQUAL:
        raise GeometryError(
            f"the labels do not lie on the grid of series {series.description or series.uid!r}: labels have {difference}. "
            "Resample them to the series first (itk_resample).",
            series.slices[0].path.parent,
        )
    return turned


def _segments(array: np.ndarray, count: int) -> np.ndarray:
    """Return labels as the unsigned type that the writer takes."""
    if array.dtype.kind not in "biu":
        raise DataError(f"labels are whole numbers, found {array.dtype}.")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= count:
        raise DataError(f"labels go from {low} to {high}, but there are {count} classes (0 to {count - 1}).")
    return array.astype(np.uint8 if count <= 256 else np.uint16)


def _empty_classes(array: np.ndarray, classes: Sequence[str]) -> list[str]:
    there = np.bincount(array.ravel(), minlength=len(classes)) > 0
    empty = [name for name, found in zip(classes[1:], there[1:], strict=True) if not found]
    if not empty:
        return []
    if len(empty) == len(classes) - 1:
        return ["no class has a voxel; the segmentation describes them and marks nothing."]
    return [f"no voxel is {_listed(empty)}; the segments are described and empty."]


def _sources(series: DicomSeries) -> tuple[list[Any], list[str]]:
    """Return the headers of the series, completed in memory, in the order of its files; and what was completed."""
    pydicom = require("pydicom", extra="dicomseg", purpose="writing DICOM-SEG")
    headers, missing, wrong = [], {}, {}
    for path in series.paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                header = pydicom.dcmread(path, stop_before_pixels=True)
            except Exception as error:  # pydicom raises whatever damaged bytes lead it to
                raise DataError(f"the header cannot be read ({type(error).__name__}: {error}).", path) from error
            for name in _NEEDED:
                if not header.get(name):
                    raise DataError(f"has no {name}, so a segmentation cannot refer to it.", path)
            for name in _EMPTY_IF_UNKNOWN:
                if name not in header:
                    missing[name] = missing.get(name, 0) + 1
                    setattr(header, name, None)
                elif not _is_valid(pydicom, header, name):
                    wrong[name] = wrong.get(name, 0) + 1
                    setattr(header, name, None)
        if not header.get("FrameOfReferenceUID"):
            missing["FrameOfReferenceUID"] = missing.get("FrameOfReferenceUID", 0) + 1
            header.FrameOfReferenceUID = pydicom.uid.generate_uid(entropy_srcs=["frame of reference", series.uid])
        headers.append(header)
    notes = []
    made = missing.pop("FrameOfReferenceUID", 0)
    if missing:
        notes.append(f"the series lacks {', '.join(missing)}; written empty, as the standard allows.")
    if wrong:
        notes.append(f"the series has values of {', '.join(wrong)} that the standard forbids; written empty.")
    if made:
        notes.append("the series has no FrameOfReferenceUID; one was made from its SeriesInstanceUID.")
    return headers, notes


def _is_valid(pydicom, header, name: str) -> bool:
    value = str(header.get(name) or "")
    if name == "PatientSex":
        return value in ("", "M", "F", "O")
    kind = {"StudyDate": "DA", "PatientBirthDate": "DA", "StudyTime": "TM"}.get(name)
    if kind is None or not value:
        return True
    try:
        getattr(pydicom.valuerep, kind)(value)
    except ValueError:
        return False
    return True


def _in_order_of_frames(array: np.ndarray, series: DicomSeries) -> np.ndarray:
    """Return the planes of `array`, which are in the order of places, as the source's file has its frames."""
    if series.slices[0].frame is None:
        return array
    ordered = np.zeros((max(picture.frame for picture in series.slices) + 1, *array.shape[1:]), array.dtype)
    for plane, picture in zip(array, series.slices, strict=True):
        ordered[picture.frame] = plane
    return ordered


def _planes(highdicom, sources: Sequence[Any], series: DicomSeries) -> dict[str, Any]:
    """Say where each frame lies. Frames of one file lie where the file says; slices of several where each of them says."""
    if series.slices[0].frame is not None:
        return {}
    grid = series.geometry
    written = sources[0].get("SliceThickness")
    return {
        "pixel_measures": highdicom.PixelMeasuresSequence(
            pixel_spacing=series.slices[0].spacing_yx,
            slice_thickness=float(written) if written else grid.spacing_zyx[0],
            spacing_between_slices=grid.spacing_zyx[0],
        ),
        "plane_orientation": highdicom.PlaneOrientationSequence("PATIENT", series.slices[0].orientation),
        "plane_positions": [
            highdicom.PlanePositionSequence("PATIENT", picture.position_xyz) for picture in series.slices
        ],
    }


def _descriptions(
    highdicom, classes: Sequence[str], codes: Mapping[str, SegmentCode], algorithm: str, version: str
) -> list[Any]:
    def concept(code: Code):
        return highdicom.sr.CodedConcept(*code)

    how = highdicom.AlgorithmIdentificationSequence(
        name=algorithm[:_TEXT_LENGTH],
        version=version[:_TEXT_LENGTH],
        family=concept(("123110", "DCM", "Artificial Intelligence")),
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=concept(codes[name].category),
            segmented_property_type=concept(codes[name].type),
            algorithm_type="AUTOMATIC",
            algorithm_identification=how,
            anatomic_regions=[concept(codes[name].region)] if codes[name].region else None,
        )
        for number, name in enumerate(classes)
        if number
    ]


def _encode_texts(made: Any) -> None:
    """Let the file hold the letters of any script; what is ASCII alone needs no statement."""
    texts = [str(made.get(name) or "") for name in ("PatientName", "PatientID", "StudyID", "ReferringPhysicianName")]
    texts += [
        str(made.get(name) or "") for name in ("SeriesDescription", "ContentDescription", "ManufacturerModelName")
    ]
    texts += [str(segment.SegmentLabel) for segment in made.SegmentSequence]
    if not all(text.isascii() for text in texts):
        for name in ("PatientName", "ReferringPhysicianName"):
            if made.get(name):
                setattr(made, name, str(made.get(name)))
        made.SpecificCharacterSet = "ISO_IR 192"


@contextlib.contextmanager
def _silent(highdicom) -> Iterator[None]:
    """Keep the library from logging what the notes say."""
    import logging

    logger = logging.getLogger(highdicom.__name__)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _private_code(name: str) -> Code:
    """A code value for a name: itself if it is short, else its beginning and a part of its SHA-256, so that none is met twice."""
    short = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")
    if not short or len(short) > _CODE_LENGTH or not name.isascii():
        short = f"{short[:9]}_{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return short, PRIVATE_SCHEME, name


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().casefold()


def _is_code(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(text, str) and text for text in value)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:8]))
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


# ------------------------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True)
class _Frame:
    """One frame: its segment and its place."""

    segment: int
    position_xyz: np.ndarray
    orientation: np.ndarray
    spacing_yx: np.ndarray
    thickness_mm: float | None


def _frame(data: Any, number: int) -> _Frame:
    own, shared = data.PerFrameFunctionalGroupsSequence[number], data.SharedFunctionalGroupsSequence[0]

    def of(sequence: str, name: str):
        return getattr((own.get(sequence) or getattr(shared, sequence))[0], name)

    measures = (own.get("PixelMeasuresSequence") or shared.PixelMeasuresSequence)[0]
    between = measures.get("SpacingBetweenSlices") or measures.get("SliceThickness")
    return _Frame(
        int(of("SegmentIdentificationSequence", "ReferencedSegmentNumber")),
        np.array(of("PlanePositionSequence", "ImagePositionPatient"), float),
        np.array(of("PlaneOrientationSequence", "ImageOrientationPatient"), float),
        np.array(measures.PixelSpacing, float),
        float(between) if between else None,
    )


def _pixels(pydicom, data: Any, count: int, path: Path) -> Iterator[np.ndarray]:
    """Yield the frames one after the other; all at once they may take many times the memory of the label map."""
    try:
        if data.BitsAllocated != 1 or data.file_meta.TransferSyntaxUID.is_compressed:
            yield from pydicom.pixels.iter_pixels(data, raw=True, indices=range(count))
            return
        # Bits of one frame go on in the byte in which those of the last one end (PS3.5, 8.1.1).
        size, stored = int(data.Rows) * int(data.Columns), np.frombuffer(data.PixelData, np.uint8)
        if stored.size * 8 < size * count:
            raise ValueError(f"{stored.size:,} bytes for {count} frames of {size:,} bits")
        for first in range(0, size * count, size):
            bits = np.unpackbits(stored[first // 8 : (first + size + 7) // 8], bitorder="little")
            yield bits[first % 8 : first % 8 + size]
    except Exception as error:  # pydicom and its decoders raise whatever damaged bytes lead them to
        raise DataError(f"the pixels cannot be read ({type(error).__name__}: {error}).", path) from error


def _require_alike(frames: Sequence[_Frame], path: Path) -> None:
    first = frames[0]
    for frame in frames:
        turned = np.abs(frame.orientation - first.orientation).max() > ORIENTATION_ATOL_EQUAL
        if turned or np.abs(frame.spacing_yx - first.spacing_yx).max() > PIXEL_SPACING_RTOL * first.spacing_yx.min():
            raise GeometryError("its frames differ in orientation or pixel spacing; they form no grid.", path)


def _axes(frame: _Frame) -> np.ndarray:
    """Directions of a row, a column and the normal as the columns of a matrix."""
    row, column = frame.orientation[:3], frame.orientation[3:]
    return np.stack([row, column, np.cross(row, column)], axis=1)


def _planes_of_frames(frames: Sequence[_Frame], size_yx: tuple[int, int], path: Path) -> tuple[Geometry, list[int]]:
    """Return the smallest grid that holds all frames, and the plane of each."""
    first, axes = frames[0], _axes(frames[0])
    places = np.array([frame.position_xyz for frame in frames])
    along = places @ axes[:, 2]
    lowest = places[int(np.argmin(along))]
    gaps = np.diff(np.sort(along))
    gaps = gaps[gaps > SAME_PLACE_MM]
    thickness = first.thickness_mm or (float(gaps.min()) if gaps.size else 1.0)
    if gaps.size:  # a written distance may be rounded, or that of another kind
        thickness = min(thickness, float(gaps.min()))
        thickness = float(np.ptp(along)) / max(1, round(float(np.ptp(along)) / thickness))
    planes = np.rint((along - along.min()) / thickness).astype(int)
    apart = np.linalg.norm(places - (lowest + planes[:, None] * thickness * axes[:, 2]), axis=1)
    if apart.max() > PLACE_RTOL * thickness:
        raise GeometryError(
            f"frame {int(apart.argmax()) + 1} lies {apart.max():.3g} mm beside the grid of the others (planes {thickness:.4g} mm "
            "apart).",
            path,
        )
    spacing = (thickness, *first.spacing_yx.tolist())
    direction = tuple((axes + 0.0).ravel().tolist())
    return Geometry((int(planes.max()) + 1, *size_yx), spacing, tuple(lowest.tolist()), direction), planes.tolist()


def _planes_in(
    series: DicomSeries, frames: Sequence[_Frame], size_yx: tuple[int, int], path: Path
) -> tuple[Geometry, list[int]]:
    """Return the grid of `series`, and which of its planes each frame lies on."""
    _require_sound(series)
    target, name = series.geometry, f"series {series.description or series.uid!r}"
    frame_like, slice_like = (
        Geometry((1, *size), (1.0, *spacing), direction_xyz=direction)
        for size, spacing, direction in (
            (size_yx, frames[0].spacing_yx.tolist(), tuple(_axes(frames[0]).ravel().tolist())),
            (target.size_zyx[1:], target.spacing_zyx[1:], target.direction_xyz),
        )
    )
    match, difference = compare_geometries(slice_like, frame_like)
    if match is Match.ERROR:
        raise GeometryError(f"its frames are not like the slices of {name}: segmentation has {difference}.", path)
    places = np.array([picture.position_xyz for picture in series.slices])
    planes = []
    for number, frame in enumerate(frames):
        distances = np.linalg.norm(places - frame.position_xyz, axis=1)
        if distances.min() > PLACE_RTOL * min(target.spacing_zyx):
            raise GeometryError(
                f"frame {number + 1} at {np.round(frame.position_xyz, 3).tolist()} mm (X, Y, Z) lies on no slice of {name}; the "
                f"nearest is {distances.min():.3g} mm away.",
                path,
            )
        planes.append(int(distances.argmin()))
    return target, planes
