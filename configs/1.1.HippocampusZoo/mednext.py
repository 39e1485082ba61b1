"""MedNeXt S, a quarter as wide as published, with deep supervision."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.criterion import DeepSupervisionLoss
from itkit.mm.task_models import SemSeg3D
from itkit.models import MedNeXt

model = dict(
    type=SemSeg3D,
    backbone=dict(type=MedNeXt, in_channels=1, num_classes=num_classes, variant="S", width=8, deep_supervision=True),
    criterion=dict(type=DeepSupervisionLoss, loss=criterion),
    num_classes=num_classes,
    inference_config=inference_config,
)
