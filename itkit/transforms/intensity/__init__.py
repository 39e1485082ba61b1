"""Transforms that change intensities and leave the grid and the labels alone."""

from itkit.transforms.intensity.brightness import RandomBrightness
from itkit.transforms.intensity.contrast import RandomContrast
from itkit.transforms.intensity.gamma import RandomGamma
from itkit.transforms.intensity.gaussian_blur import RandomGaussianBlur
from itkit.transforms.intensity.gaussian_noise import RandomGaussianNoise
from itkit.transforms.intensity.low_resolution import RandomLowResolution
from itkit.transforms.intensity.percentiles import ClipPercentiles, PercentileScale
from itkit.transforms.intensity.type_convert import TypeConvert
from itkit.transforms.intensity.window import Window
from itkit.transforms.intensity.zscore import ZScore

__all__ = [
    "ClipPercentiles",
    "PercentileScale",
    "RandomBrightness",
    "RandomContrast",
    "RandomGamma",
    "RandomGaussianBlur",
    "RandomGaussianNoise",
    "RandomLowResolution",
    "TypeConvert",
    "Window",
    "ZScore",
]
