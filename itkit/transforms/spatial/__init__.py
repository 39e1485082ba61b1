"""Transforms that change the grid: image and labels move together."""

from itkit.transforms.spatial.crop import CropToSize
from itkit.transforms.spatial.elastic import RandomElastic
from itkit.transforms.spatial.flip import RandomFlip
from itkit.transforms.spatial.orient import Orient
from itkit.transforms.spatial.pad import PadToSize
from itkit.transforms.spatial.random_crop import RandomCrop
from itkit.transforms.spatial.resample import ResampleToSpacing
from itkit.transforms.spatial.rotate_scale import RandomRotateScale
from itkit.transforms.spatial.slices import ExtractSlice, ExtractSlices
from itkit.transforms.spatial.warp import RandomWarp

__all__ = [
    "CropToSize",
    "ExtractSlice",
    "ExtractSlices",
    "Orient",
    "PadToSize",
    "RandomCrop",
    "RandomElastic",
    "RandomFlip",
    "RandomRotateScale",
    "RandomWarp",
    "ResampleToSpacing",
]
