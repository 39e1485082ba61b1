"""DconnNet, a quarter as wide and half as deep as published; the classes are voted from the connectivity of pixels."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.criterion import DeepSupervisionLoss
from itkit.mm.task_models import SemSeg2D
from itkit.models import DconnNet

model = dict(
    type=SemSeg2D,
    backbone=dict(type=DconnNet, in_channels=1, num_classes=num_classes, width=16, blocks=(2, 2, 2, 2)),
    criterion=dict(type=DeepSupervisionLoss, loss=criterion, weights=(1.0, 0.3)),
    num_classes=num_classes,
    inference_config=inference_config,
)
