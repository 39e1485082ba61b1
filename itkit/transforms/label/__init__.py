"""Transforms that change what label values mean."""

from itkit.transforms.label.binarise import BinariseLabel
from itkit.transforms.label.map_labels import MapLabels

__all__ = ["BinariseLabel", "MapLabels"]
