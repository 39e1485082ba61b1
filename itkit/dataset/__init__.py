"""Room `dataset`: what yields samples, how cases are divided, and the converters that lay data out."""

from __future__ import annotations

from itkit.dataset.base import ITKITBaseSegDataset
from itkit.dataset.collate import multi_sample_collate
from itkit.dataset.concat import ITKITConcatDataset
from itkit.dataset.patches import PatchedDataset
from itkit.dataset.Phantom.dataset import PhantomDataset
from itkit.dataset.stream import StreamIndex, sample_generator
from itkit.dataset.volumes import SeriesVolumeDataset

__all__ = [
    "ITKITBaseSegDataset",
    "ITKITConcatDataset",
    "PatchedDataset",
    "PhantomDataset",
    "SeriesVolumeDataset",
    "StreamIndex",
    "multi_sample_collate",
    "sample_generator",
]
