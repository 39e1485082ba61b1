"""itkit: from a folder of medical volumes to compared, reproducible segmentation experiments."""

__version__ = "0.1.0"
