"""Write small DICOM series with pydicom, sound ones and ones with every fault that folders have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def picture(pixels: np.ndarray, *, series: str, syntax=ExplicitVRLittleEndian, **tags) -> Dataset:
    """Return a DICOM picture of `pixels` (Y, X), or frames (N, Y, X); `tags` set or, with None, remove attributes."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = MRImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.SeriesInstanceUID, data.StudyInstanceUID, data.PatientID = series, generate_uid(entropy_srcs=["study"]), "P1"
    data.Modality, data.SeriesDescription, data.SeriesNumber = "MR", "phantom", 3
    data.PhotometricInterpretation, data.SamplesPerPixel = "MONOCHROME2", 1
    data.Rows, data.Columns = pixels.shape[-2:]
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.ImageOrientationPatient, data.PixelSpacing, data.SliceThickness = list(IDENTITY), [0.75, 0.5], 2
    data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    data["PixelData"].VR = "OW" if data.BitsAllocated > 8 else "OB"
    for name, value in tags.items():
        if value is None:
            data.pop(name, None)
        else:
            setattr(data, name, value)
    return data


def save(data: Dataset, path: Path) -> Path:
    """Write `data` as a DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    array: np.ndarray,
    *,
    series: str | None = None,
    orientation: tuple[float, ...] = IDENTITY,
    origin: tuple[float, ...] = (10.0, -20.0, 30.0),
    gap: float = 2.5,
    step: tuple[float, ...] | None = None,
    places: list[float] | None = None,
    each: dict[int, dict] | None = None,
    **tags,
) -> list[Path]:
    """Write `array` (Z, Y, X) as one file a slice, with names and instance numbers in a random order.

    Args:
        folder: Gets the files.
        array: Slices, along the normal.
        series: SeriesInstanceUID; None: a new one.
        orientation: Direction cosines of a row and of a column.
        origin: Place of the first slice's first pixel in mm.
        gap: Distance of slices in mm.
        step: Way from slice to slice; None: `gap` along the normal.
        places: Number of steps from the first slice to each; None: 0, 1, 2, ...
        each: Tags of single slices.
        **tags: Tags of all slices.
    """
    series = series or generate_uid()
    normal = np.cross(orientation[:3], orientation[3:])
    step = gap * normal if step is None else np.array(step)
    order = np.random.default_rng(0).permutation(len(array))
    paths = []
    for number, pixels in enumerate(array):
        place = number if places is None else places[number]
        values = {
            "ImagePositionPatient": [f"{value:.10g}" for value in np.array(origin) + place * step],
            "ImageOrientationPatient": list(orientation),
            "InstanceNumber": int(order[number]) + 1,
            **tags,
            **(each or {}).get(number, {}),
        }
        paths.append(save(picture(pixels, series=series, **values), folder / f"{order[number]:04d}.dcm"))
    return paths


def enhanced(array: np.ndarray, *, order: list[int], gap: float = 2.5, slopes: list[float] | None = None) -> Dataset:
    """Return a multi-frame (enhanced) picture whose frames lie in the file as `order` says."""

    def item(**tags) -> Sequence:
        data = Dataset()
        for name, value in tags.items():
            setattr(data, name, value)
        return Sequence([data])

    data = picture(array[order], series=generate_uid(), ImageOrientationPatient=None, PixelSpacing=None)
    data.NumberOfFrames = len(array)
    shared = Dataset()
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=list(IDENTITY))
    shared.PixelMeasuresSequence = item(PixelSpacing=[0.75, 0.5], SliceThickness=2)
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for number in order:
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=[1, 2, 3 + gap * number])
        if slopes is not None:
            frame.PixelValueTransformationSequence = item(RescaleSlope=slopes[number], RescaleIntercept=0)
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return data
