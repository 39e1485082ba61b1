"""DICOM folders: which series are there, what is wrong with them, and each sound one as a volume."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from itkit._support.optional import require
from itkit.errors import DataError
from itkit.io.claims import require_memory
from itkit.io.geometry import Geometry
from itkit.io.volumes import Volume

ORIENTATION_ATOL_SAME, ORIENTATION_ATOL_EQUAL = 1e-2, 1e-3
"""Direction cosines that differ by more than the first make two series; by more than the second, a problem of one."""
PIXEL_SPACING_RTOL = 1e-3
"""Relative difference of in-plane spacings within one volume."""
SLICE_RTOL = 1e-2
"""Difference of two gaps between slices, as a part of the usual gap."""
SAME_PLACE_MM = 1e-2
"""Slices nearer than this (and than `SLICE_RTOL` of the usual gap) lie in one place."""
TILT_DEG = 0.1
"""Angle between the way from slice to slice and the slices' normal above which the stack leans (gantry tilt)."""

_TAGS = (
    "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "SeriesNumber", "SeriesDescription", "Modality", "ImageType",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "PixelSpacing", "ImagerPixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "EchoTime", "AcquisitionNumber",
    "TemporalPositionIdentifier", "DiffusionBValue", "TriggerTime", "AcquisitionTime", "SOPClassUID",
)  # fmt: skip
_TELL_APART = (
    "EchoTime", "DiffusionBValue", "TemporalPositionIdentifier", "TriggerTime", "AcquisitionNumber", "AcquisitionTime",
    "ImageType",
)  # fmt: skip
"""What usually differs between several pictures of one place, best known first."""
_PACKAGES = {
    "1.2.840.10008.1.2.4.50": "pylibjpeg pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.51": "pylibjpeg pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.57": "pylibjpeg pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.70": "pylibjpeg pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.80": "pylibjpeg pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.81": "pylibjpeg pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.90": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg pylibjpeg-openjpeg",
}
"""What decodes a transfer syntax."""


@dataclass(frozen=True)
class Slice:
    """One picture of a series.

    Attributes:
        path: Its file.
        frame: Its number in a multi-frame file, from 0; None for a file of one picture.
        size_yx: Rows and columns.
        position_xyz: Centre of its first pixel in mm, patient's frame (LPS); None if not written.
        orientation: Direction cosines of a row (X, Y, Z) and of a column; None if not written.
        spacing_yx: Distance of pixel centres in mm: between rows, between columns; None if not written.
        slope: Stored number times this ...
        intercept: ... plus this is the value.
        marks: What may tell it from another picture of the same place.
    """

    path: Path
    frame: int | None
    size_yx: tuple[int, int]
    position_xyz: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing_yx: tuple[float, ...] | None
    slope: float
    intercept: float
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Facts:
    """What one file says of all its pictures, understood and turned into plain values."""

    path: Path
    uid: str
    study_uid: str
    patient: str
    number: int | None
    description: str
    modality: str
    colours: str
    lut: bool
    kind: tuple[int, int, int | None]
    pixel_bytes: int
    thickness_mm: float | None
    syntax: Any


@dataclass(frozen=True)
class DicomSeries:
    """Pictures of one series, one orientation and one matrix, sorted by their place along their normal.

    Attributes:
        uid: SeriesInstanceUID.
        study_uid: StudyInstanceUID.
        patient: PatientID.
        number: SeriesNumber, or None.
        description: SeriesDescription.
        modality: ``"CT"``, ``"MR"``, ``"PT"``, ...
        slices: The pictures.
        geometry: The grid that they form; None if they form none.
        problems: Why `read_series` refuses it, with figures; empty for a sound series.
        notes: What is worth knowing although it can be read.
        dtype: Type of the values that reading gives; None if that cannot be told.
    """

    uid: str
    study_uid: str
    patient: str
    number: int | None
    description: str
    modality: str
    slices: tuple[Slice, ...]
    geometry: Geometry | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    dtype: np.dtype | None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, in the order of the slices, each once."""
        return tuple(dict.fromkeys(picture.path for picture in self.slices))


def find_series(
    folder: str | os.PathLike,
    *,
    skipped: list[tuple[Path, str]] | None = None,
    damaged: list[tuple[Path, str]] | None = None,
) -> list[DicomSeries]:
    """Return the series in `folder` and all folders below it.

    Pictures belong together if they have the same SeriesInstanceUID, matrix and orientation; their order is that of their
    places along the normal of the slices, never that of file names or instance numbers. Only headers are read.

    Args:
        folder: A folder of any depth. Links are followed, each real file is read once.
        skipped: Takes (path, reason) of each file that is no DICOM picture, those of `damaged` included.
        damaged: Takes (path, reason) of each file that may be a slice and cannot be read, and of folders that cannot be
            listed. Where one series alone lies in the file's folder, it is a problem of that series instead; elsewhere a
            note of each series beside it.

    Returns:
        Sound and unsound series, by patient, study and number. Empty if there is none.

    Raises:
        DataError: If `folder` is none.
        MissingDependency: If pydicom is not installed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("no such folder.", folder)
    pydicom = require("pydicom", extra="dicom", purpose="reading DICOM")
    groups: dict[tuple, list[tuple[Slice, _Facts]]] = {}
    skipped, suspects = [] if skipped is None else skipped, []
    for path in _files(folder, suspects):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
                pictures = list(_pictures(header, path))
                facts, modality = _facts(header, path) if pictures else None, header.get("Modality", "unknown")
                cut = not pictures and _should_be_picture(header)
        except pydicom.errors.InvalidDicomError:
            skipped.append((path, "is no DICOM file."))
            continue
        except OSError as error:
            suspects.append((path, f"cannot be read ({error.strerror or error})."))
            continue
        except Exception as error:  # pydicom raises whatever damaged bytes lead it to
            suspects.append((path, f"the header cannot be understood ({type(error).__name__}: {error})."))
            continue
        if cut:
            suspects.append((path, "the header ends before the size of the picture; the file is truncated."))
        elif not pictures:
            skipped.append((path, f"holds no picture (modality {modality})."))
        for picture in pictures:
            groups.setdefault(_group_of(picture, facts, groups), []).append((picture, facts))
    series = [_series_of(group) for group in groups.values()]
    suspects += _overwritten(series, skipped)
    skipped += [suspect for suspect in suspects if suspect not in skipped]
    series = _blamed(series, suspects, [] if damaged is None else damaged)
    return sorted(series, key=lambda s: (s.patient, s.study_uid, s.number or 0, s.uid, str(s.slices[0].path)))


def read_series(series: DicomSeries) -> Volume:
    """Return the pixels of `series` as a volume in SimpleITK's frame (LPS, as DICOM's).

    Rescale slope and intercept of each slice are applied. The type of voxel is the stored one if there is nothing to
    rescale; int16 (int32 where the range of the stored bits asks for it) if all slopes and intercepts are whole numbers;
    else float32 (float64 for more than 24 stored bits). MONOCHROME1 pictures keep their numbers: large means dark there.

    Raises:
        DataError: If the series has problems (all are named), or a file is damaged.
        MissingDependency: If pydicom is not installed.
    """
    where = series.slices[0].path.parent if series.slices else None
    if series.problems or series.geometry is None or series.dtype is None:
        raise DataError(f"series {series.description or series.uid!r}: {' '.join(series.problems)}", where)
    pydicom = require("pydicom", extra="dicom", purpose="reading DICOM")
    size = series.geometry.size_zyx
    require_memory(math.prod(size) * series.dtype.itemsize, where)
    array = np.empty(size, series.dtype)
    opened: tuple[Path | None, np.ndarray | None] = (None, None)
    for number, picture in enumerate(series.slices):
        if opened[0] != picture.path:
            opened = (picture.path, _pixels(pydicom, picture.path))
        pixels = opened[1] if picture.frame is None else opened[1][picture.frame]
        if pixels.shape != size[1:]:
            raise DataError(f"the picture is {pixels.shape}, its header says {size[1:]} (Y, X).", picture.path)
        if (picture.slope, picture.intercept) != (1.0, 0.0):
            pixels = pixels.astype(np.float64) * picture.slope + picture.intercept
        array[number] = pixels
    grid = series.geometry
    return Volume(array, grid.spacing_zyx, grid.origin_xyz, grid.direction_xyz)


def read_dicom_series(folder: str | os.PathLike, uid: str | None = None) -> Volume:
    """Return the one series of `folder` as a volume.

    Args:
        folder: Searched with all folders below it.
        uid: SeriesInstanceUID; None if there is only one series.

    Raises:
        DataError: If there is no series, or more than one to choose from (they are listed), or the series has problems.
        MissingDependency: If pydicom is not installed.
    """
    skipped: list[tuple[Path, str]] = []
    found = find_series(folder, skipped=skipped)
    wanted = [series for series in found if uid is None or series.uid == uid]
    if len(wanted) == 1:
        return read_series(wanted[0])
    listed = "; ".join(f"{s.description or s.modality} {s.uid} ({len(s.slices)} slices)" for s in wanted or found)
    if wanted:
        raise DataError(
            f"holds {len(wanted)} series to choose from: {listed}. Name one, or read them by find_series.", folder
        )
    if found:
        raise DataError(f"has no series {uid}; it holds: {listed}.", folder)
    reason = f" First of {len(skipped)} other files: {skipped[0][0].name}: {skipped[0][1]}" if skipped else ""
    raise DataError(f"holds no DICOM series.{reason}", folder)


def _should_be_picture(header) -> bool:
    """Whether a header without rows and columns is the beginning of one that has them."""
    if "Modality" not in header:
        return True
    return header.Modality in ("CT", "MR", "PT") and "Image Storage" in getattr(header.get("SOPClassUID"), "name", "")


def _overwritten(series: Sequence[DicomSeries], skipped: Sequence[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """Files that are no DICOM but called like the slices beside them: emptied, or damaged in their first bytes."""
    beside = {(path.parent, path.suffix.lower()) for one in series for path in one.paths}
    folders = {folder for folder, _ in beside}
    found = []
    for path, reason in skipped:
        alike = path.suffix and (path.parent, path.suffix.lower()) in beside
        numbered = path.parent in folders and path.suffix[1:].isdigit()
        if reason.startswith("is no DICOM") and not path.name.startswith(".") and (alike or numbered):
            found.append((path, reason))
    return found


def _blamed(
    series: Sequence[DicomSeries], suspects: Sequence[tuple[Path, str]], damaged: list[tuple[Path, str]]
) -> list[DicomSeries]:
    """Return the series with what damaged files beside their slices mean for them; the others go to `damaged`."""
    beside: dict[Path, set[int]] = {}
    for number, one in enumerate(series):
        for path in one.paths:
            beside.setdefault(path.parent, set()).add(number)
    result = list(series)
    for path, reason in suspects:
        near = beside.get(path.parent, set())
        text = f"{path.name} lies beside the slices and may be one of them: {reason}"
        if len(near) != 1:
            damaged.append((path, reason))
        for number in near:
            key = "problems" if len(near) == 1 else "notes"
            result[number] = replace(result[number], **{key: (*getattr(result[number], key), text)})
    return result


def _files(folder: Path, unlisted: list[tuple[Path, str]]) -> Iterator[Path]:
    """Every real file below `folder`, once, in the order of names; folders that cannot be listed go to `unlisted`."""

    def note(error: OSError) -> None:
        unlisted.append((Path(error.filename), f"cannot be listed ({error.strerror})."))

    seen_folders, seen_files = set(), set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=note):
        real = os.path.realpath(root)
        if real in seen_folders:
            folders.clear()
            continue
        seen_folders.add(real)
        folders.sort()
        for name in sorted(names):
            path = os.path.join(root, name)
            real = os.path.realpath(path)
            if name.upper() != "DICOMDIR" and real not in seen_files and os.path.isfile(path):
                seen_files.add(real)
                yield Path(path)


def _pictures(header, path: Path) -> Iterator[Slice]:
    """The pictures of one file; none if it holds something else (a structure set, a report)."""
    if "Rows" not in header or "Columns" not in header:
        return
    size = (int(header.Rows), int(header.Columns))
    marks = tuple(_mark(header, name) for name in _TELL_APART)
    shared = _first(header.get("SharedFunctionalGroupsSequence"))
    frames = header.get("PerFrameFunctionalGroupsSequence")
    count = int(header.get("NumberOfFrames") or 1)
    if frames is None and count == 1:
        yield Slice(
            path, None, size,
            _floats(header.get("ImagePositionPatient"), 3), _floats(header.get("ImageOrientationPatient"), 6),
            _floats(header.get("PixelSpacing"), 2),
            float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0)), marks,
        )  # fmt: skip
        return
    if count > os.path.getsize(path):
        raise ValueError(f"{count:,} frames in a file of {os.path.getsize(path):,} bytes")
    for number in range(count):
        group = frames[number] if frames is not None and number < len(frames) else None

        def of(sequence: str, name: str, group=group):
            places = (_first(source.get(sequence)) for source in (group, shared) if source is not None)
            return next((place.get(name) for place in places if place is not None and name in place), None)

        slope = of("PixelValueTransformationSequence", "RescaleSlope")
        intercept = of("PixelValueTransformationSequence", "RescaleIntercept")
        yield Slice(
            path, number, size,
            _floats(of("PlanePositionSequence", "ImagePositionPatient"), 3),
            _floats(of("PlaneOrientationSequence", "ImageOrientationPatient"), 6),
            _floats(of("PixelMeasuresSequence", "PixelSpacing"), 2),
            1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept), marks,
        )  # fmt: skip


def _facts(header, path: Path) -> _Facts:
    """The other facts of a file with pictures; whatever is wrong with them is met here."""

    def text(name: str) -> str:
        return str(header.get(name) or "")

    def number(name: str, default: int = 0) -> int:
        value = header.get(name)
        return default if value is None or value == "" else int(value)

    written = header.get("SpacingBetweenSlices") or header.get("SliceThickness")
    allocated, syntax = number("BitsAllocated"), getattr(header.file_meta, "TransferSyntaxUID", None)
    if syntax is not None and not syntax.is_transfer_syntax:
        raise ValueError(f"transfer syntax {syntax} is unknown")
    return _Facts(
        path=path,
        uid=text("SeriesInstanceUID"),
        study_uid=text("StudyInstanceUID"),
        patient=text("PatientID"),
        number=None if header.get("SeriesNumber") in (None, "") else number("SeriesNumber"),
        description=text("SeriesDescription"),
        modality=text("Modality"),
        colours=text("PhotometricInterpretation") or "MONOCHROME2",
        lut="ModalityLUTSequence" in header,
        kind=(
            allocated,
            number("BitsStored", allocated),
            number("PixelRepresentation") if "PixelRepresentation" in header else None,
        ),
        pixel_bytes=number("Rows") * number("Columns") * number("NumberOfFrames", 1) * allocated // 8,
        thickness_mm=float(written) if written else None,
        syntax=syntax,
    )


def _group_of(picture: Slice, facts: _Facts, groups: dict) -> tuple:
    """The key of the group that `picture` belongs to, a new one if it is the first of its kind."""
    start = (facts.uid, picture.size_yx)
    orientation = picture.orientation
    for key in groups:
        known = key[2]
        if key[:2] == start and (known is None) == (orientation is None):
            apart = 0 if known is None else max(abs(a - b) for a, b in zip(known, orientation, strict=True))
            if apart <= ORIENTATION_ATOL_SAME:
                return key
    return (*start, orientation)


def _series_of(group: list[tuple[Slice, _Facts]]) -> DicomSeries:
    slices, files = [picture for picture, _ in group], list({facts.path: facts for _, facts in group}.values())
    first = files[0]
    problems, notes = _pixel_problems(files, slices)
    dtype = _dtype(first.kind, slices)
    if dtype is None:
        problems.append(
            f"pixels of {first.kind[0]} bits ({first.kind[1]} stored) are no whole numbers of 8, 16 or 32 bits; segmentations "
            "and parametric maps are not read."
        )
    geometry = None
    without = sum(picture.position_xyz is None or picture.orientation is None for picture in slices)
    if without:
        problems.append(f"{without} of {len(slices)} slices do not say where they lie.")
    elif any(picture.spacing_yx is None for picture in slices):
        problems.append("the slices do not say how large a pixel is (PixelSpacing).")
    else:
        slices, geometry, wrong, known = _stack(slices, first.thickness_mm)
        problems += wrong
        notes += known
    return DicomSeries(
        uid=first.uid,
        study_uid=first.study_uid,
        patient=first.patient,
        number=first.number,
        description=first.description,
        modality=first.modality,
        slices=tuple(slices),
        geometry=geometry,
        problems=tuple(problems),
        notes=tuple(notes),
        dtype=dtype,
    )


def _stack(
    slices: list[Slice], thickness_mm: float | None
) -> tuple[list[Slice], Geometry | None, list[str], list[str]]:
    """Sort `slices` along their normal; the grid they form, what is wrong with it, and what is worth knowing."""
    row, column = np.array(slices[0].orientation[:3]), np.array(slices[0].orientation[3:])
    row, column = row / (np.linalg.norm(row) or math.nan), column / (np.linalg.norm(column) or math.nan)
    if not abs(float(row @ column)) <= ORIENTATION_ATOL_EQUAL:
        return slices, None, [f"rows and columns are not at a right angle (cosine {float(row @ column):.3g})."], []
    column = column - row * (row @ column)
    column /= np.linalg.norm(column)
    normal = np.cross(row, column)
    # Equal places keep a stable order, so that the message is the same on every machine.
    slices = sorted(slices, key=lambda s: (float(normal @ s.position_xyz), str(s.path), s.frame or 0))
    places = np.array([picture.position_xyz for picture in slices])
    problems, notes = _in_plane_problems(slices), []
    wrong, thickness = _gap_problems(slices, places @ normal)
    problems += wrong
    way = places[-1] - places[0]
    if len(slices) == 1:
        thickness = thickness_mm or 1.0
        notes.append(
            f"one slice only; its thickness of {thickness:g} mm is {'written' if thickness_mm else 'assumed'}."
        )
    elif thickness > 0:
        tilt_deg = math.degrees(math.atan2(float(np.linalg.norm(np.cross(way, normal))), float(way @ normal)))
        aside = float(np.linalg.norm(way - normal * (way @ normal)))
        if tilt_deg > TILT_DEG:
            problems.append(
                f"the stack leans by {tilt_deg:.2f}° (gantry tilt): {aside:.2f} mm sideways over its length."
            )
        elif aside > 0.1 * min(slices[0].spacing_yx):
            notes.append(f"the slices drift sideways by {aside:.2f} mm over the stack ({tilt_deg:.2f}°).")
    if not thickness > 0 or not min(slices[0].spacing_yx) > 0:
        return slices, None, problems or [f"spacing {slices[0].spacing_yx} mm (Y, X) is not positive."], notes
    size = (len(slices), *slices[0].size_yx)
    geometry = Geometry(
        size,
        (thickness, *slices[0].spacing_yx),
        tuple(places[0].tolist()),
        tuple((np.stack([row, column, normal], axis=1) + 0.0).ravel().tolist()),
    )
    return slices, geometry, problems, notes


def _in_plane_problems(slices: list[Slice]) -> list[str]:
    problems = []
    spacings = np.array([picture.spacing_yx for picture in slices])
    if np.ptp(spacings, axis=0).max() > PIXEL_SPACING_RTOL * spacings.min():
        found = sorted({tuple(round(float(value), 4) for value in pair) for pair in spacings})
        problems.append(f"mixed pixel spacings: {', '.join(f'{y:g} × {x:g}' for y, x in found)} mm (Y × X).")
    apart = float(np.ptp(np.array([picture.orientation for picture in slices]), axis=0).max())
    if apart > ORIENTATION_ATOL_EQUAL:
        problems.append(f"the orientation of the slices differs by up to {apart:.2g} (cosines).")
    return problems


def _gap_problems(slices: list[Slice], places: np.ndarray) -> tuple[list[str], float]:
    """What is wrong with the gaps between sorted slices (in mm along the normal), and the mean gap."""
    if len(slices) < 2:
        return [], 0.0
    gaps, problems = np.diff(places), []
    real = gaps[gaps > SAME_PLACE_MM]
    if not len(real):
        return [f"all {len(slices)} slices lie in one place{_difference(slices)}."], 0.0
    usual = float(np.median(real))
    same = gaps <= min(SAME_PLACE_MM, SLICE_RTOL * usual)
    if same.any():
        at = int(np.argmax(same))
        problems.append(
            f"{int(same.sum())} slices lie where another one does, first at {places[at]:.2f} mm: {_name(slices[at])} and "
            f"{_name(slices[at + 1])}{_difference(slices[at : at + 2])}."
        )
    steps, at = gaps[~same], np.flatnonzero(~same)
    other = np.abs(steps - usual) > SLICE_RTOL * usual
    if other.any():
        several = np.round(steps[other] / usual)
        whole = (several >= 2) & (np.abs(steps[other] - several * usual) <= 0.1 * usual)
        values, counts = np.unique(np.round(steps, 2), return_counts=True)
        often = counts >= max(3, 0.1 * len(steps))
        if often.sum() > 1:
            listed = ", ".join(f"{v:g} mm ({n}×)" for v, n in zip(values[often], counts[often], strict=True))
            problems.append(f"mixed slice spacing: {listed}.")
        elif whole.all():
            missing = int((several - 1).sum())
            where = int(at[other][0])
            problems.append(
                f"{missing} slice{'s are' if missing > 1 else ' is'} missing, first after {places[where]:.2f} mm: the gap is "
                f"{steps[other][0]:.2f} mm, usual are {usual:.2f} mm."
            )
        else:
            problems.append(
                f"irregular slice spacing: from {steps.min():.3f} to {steps.max():.3f} mm, usual {usual:.3f} mm."
            )
    return problems, float((places[-1] - places[0]) / (len(slices) - 1))


def _pixel_problems(files: list[_Facts], slices: list[Slice]) -> tuple[list[str], list[str]]:
    """What keeps the pixels from being a volume of numbers, and what is worth knowing of them."""
    problems, notes = [], []
    colours, kinds = {facts.colours for facts in files}, {facts.kind for facts in files}
    if "MONOCHROME1" in colours:
        notes.append("MONOCHROME1: a large number means dark; the numbers are kept.")
    if colours - {"MONOCHROME1", "MONOCHROME2"}:
        problems.append(f"the pixels are colours ({', '.join(sorted(colours))}), not numbers of one quantity.")
    elif len(colours) > 1:
        problems.append("MONOCHROME1 and MONOCHROME2 slices are mixed.")
    if any(facts.lut for facts in files):
        problems.append(
            "a look-up table (ModalityLUTSequence) turns stored numbers into values; that is not supported."
        )
    if len(kinds) > 1:
        listed = ", ".join(str(kind) for kind in sorted(kinds, key=str))
        problems.append(f"slices store numbers in {len(kinds)} ways (bits allocated, bits stored, sign): {listed}.")
    if not all(math.isfinite(s.slope) and math.isfinite(s.intercept) and s.slope != 0 for s in slices):
        problems.append("a rescale slope is 0, or slope or intercept are not finite.")
    for facts in {str(facts.syntax): facts for facts in files}.values():
        problems += _decoder_problems(facts.syntax)
    for facts in files:
        plain = facts.syntax is None or not (facts.syntax.is_compressed or facts.syntax.is_deflated)
        if plain and os.path.getsize(facts.path) < facts.pixel_bytes:
            problems.append(f"{facts.path.name} is truncated: it asks for {facts.pixel_bytes:,} bytes of pixels.")
            break
    return problems, notes


def _decoder_problems(syntax) -> list[str]:
    if syntax is None or not syntax.is_compressed:
        return []
    decoders = require("pydicom.pixels", extra="dicom", purpose="reading DICOM")
    try:
        if decoders.get_decoder(syntax).is_available:
            return []
    except NotImplementedError:
        return [f"the pixels are compressed as {syntax.name}, which is not read. Save them uncompressed first."]
    packages = _PACKAGES.get(str(syntax), "pylibjpeg")
    return [f"the pixels are compressed as {syntax.name}; to read them: pip install {packages}"]


def _dtype(kind: tuple[int, int, int | None], slices: list[Slice]) -> np.dtype | None:
    """Type of the values, by the rule that `read_series` states."""
    allocated, bits, sign = kind
    signed = bool(sign)
    if allocated not in (8, 16, 32) or not 1 <= bits <= allocated or sign is None:
        return None
    scales = {(picture.slope, picture.intercept) for picture in slices}
    if scales == {(1.0, 0.0)}:
        return np.dtype(f"{'i' if signed else 'u'}{allocated // 8}")
    if all(math.isfinite(value) and value == int(value) for scale in scales for value in scale):
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        ends = [slope * end + intercept for slope, intercept in scales for end in (low, high)]
        kinds = (np.dtype(name) for name in ("int16", "int32", "int64"))
        fitting = (kind for kind in kinds if np.iinfo(kind).min <= min(ends) and max(ends) <= np.iinfo(kind).max)
        return next(fitting, np.dtype("float64"))
    return np.dtype("float64" if bits > 24 else "float32")


def _pixels(pydicom, path: Path) -> np.ndarray:
    """The stored numbers of one file; pydicom clears bits above the stored ones (old files keep overlays there)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(path).pixel_array
    except Exception as error:  # pydicom and its decoders raise whatever damaged bytes lead them to
        raise DataError(f"the pixels cannot be read ({type(error).__name__}: {error}).", path) from error


def _first(sequence):
    return sequence[0] if sequence else None


def _floats(values, count: int) -> tuple[float, ...] | None:
    if values is None or len(values) != count:
        return None
    numbers = tuple(float(value) for value in values)
    return numbers if all(math.isfinite(value) for value in numbers) else None


def _mark(header, name: str) -> str:
    value = header.get(name)
    return "" if value is None else f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"


def _name(picture: Slice) -> str:
    return picture.path.name if picture.frame is None else f"{picture.path.name} frame {picture.frame + 1}"


def _difference(slices: Sequence[Slice]) -> str:
    """What tells pictures of one place apart, as the end of a sentence."""
    for values in zip(*(picture.marks for picture in slices), strict=True):
        if len(set(values)) > 1:
            return f" ({', '.join(value or 'none' for value in list(dict.fromkeys(values))[:3])})"
    return ""
