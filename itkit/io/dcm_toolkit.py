"""The documented names for DICOM folders; each leads to the one place that holds the code."""

from __future__ import annotations

from itkit.io.dicom import DicomSeries, find_series, read_dicom_series, read_series
from itkit.io.sitk_toolkit import write_image

__all__ = ["DicomSeries", "find_series", "read_dicom_series", "read_series", "write_image"]
