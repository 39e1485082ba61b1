"""From a loaded case to a training sample: one idea a file, drawn first and applied second."""

from itkit.transforms.base import RandomTransform, replay
from itkit.transforms.compose import Compose, build_transform
from itkit.transforms.foreign import FromMM, FromMONAI
from itkit.transforms.intensity import (
    ClipPercentiles,
    PercentileScale,
    RandomBrightness,
    RandomContrast,
    RandomGamma,
    RandomGaussianBlur,
    RandomGaussianNoise,
    RandomLowResolution,
    TypeConvert,
    Window,
    ZScore,
)
from itkit.transforms.label import BinariseLabel, MapLabels
from itkit.transforms.loading import LoadVolume
from itkit.transforms.multi_sample import MultiSample
from itkit.transforms.packing import PackSeg2DInputs, PackSeg3DInputs
from itkit.transforms.spatial import (
    CropToSize,
    ExtractSlice,
    ExtractSlices,
    Orient,
    PadToSize,
    RandomCrop,
    RandomElastic,
    RandomFlip,
    RandomRotateScale,
    RandomWarp,
    ResampleToSpacing,
)
from itkit.transforms.two_views import TwoViews

__all__ = [
    "BinariseLabel",
    "ClipPercentiles",
    "Compose",
    "CropToSize",
    "ExtractSlice",
    "ExtractSlices",
    "FromMM",
    "FromMONAI",
    "LoadVolume",
    "MapLabels",
    "MultiSample",
    "Orient",
    "PackSeg2DInputs",
    "PackSeg3DInputs",
    "PadToSize",
    "PercentileScale",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomElastic",
    "RandomFlip",
    "RandomGamma",
    "RandomGaussianBlur",
    "RandomGaussianNoise",
    "RandomLowResolution",
    "RandomRotateScale",
    "RandomTransform",
    "RandomWarp",
    "ResampleToSpacing",
    "TwoViews",
    "TypeConvert",
    "Window",
    "ZScore",
    "build_transform",
    "replay",
]
