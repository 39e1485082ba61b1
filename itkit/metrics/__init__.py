"""Thin MMEngine metrics over `itkit.measures`."""

from itkit.metrics.segmentation import SegmentationMetric

__all__ = ["SegmentationMetric"]
