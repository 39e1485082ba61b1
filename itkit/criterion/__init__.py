"""Losses of segmentation: pure functions, and thin modules over them that a config names."""

from itkit.criterion.combined import CombinedLoss
from itkit.criterion.cross_entropy import CrossEntropyLoss
from itkit.criterion.deep_supervision import DeepSupervisionLoss
from itkit.criterion.dice import DiceCELoss, DiceLoss
from itkit.criterion.focal import FocalLoss
from itkit.criterion.tversky import TverskyLoss

__all__ = [
    "CombinedLoss",
    "CrossEntropyLoss",
    "DeepSupervisionLoss",
    "DiceCELoss",
    "DiceLoss",
    "FocalLoss",
    "TverskyLoss",
]
