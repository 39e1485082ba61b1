"""LM-Net with the widths of its paper."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg2D
from itkit.models import LMNet

model = dict(
    type=SemSeg2D,
    backbone=dict(type=LMNet, in_channels=1, num_classes=num_classes, widths=(12, 24, 48, 96, 192)),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
