"""DSNet of 2024, a quarter as wide as published."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.criterion import DeepSupervisionLoss
from itkit.mm.task_models import SemSeg2D
from itkit.models import DSNet

model = dict(
    type=SemSeg2D,
    backbone=dict(type=DSNet, in_channels=1, num_classes=num_classes, width=8, deep_supervision=True),
    criterion=dict(type=DeepSupervisionLoss, loss=criterion, weights=(0.6, 0.2, 0.2)),
    num_classes=num_classes,
    inference_config=inference_config,
)
