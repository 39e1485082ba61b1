"""Swin-UMamba, a sixth as wide as published, with deep supervision."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.criterion import DeepSupervisionLoss
from itkit.mm.task_models import SemSeg2D
from itkit.models import SwinUMamba

model = dict(
    type=SemSeg2D,
    backbone=dict(
        type=SwinUMamba,
        in_channels=1,
        num_classes=num_classes,
        feature_size=(8, 16, 32, 64, 128),
        depths=(1, 1, 2, 1),
        d_state=4,
        deep_supervision=True,
    ),
    criterion=dict(type=DeepSupervisionLoss, loss=criterion),
    num_classes=num_classes,
    inference_config=inference_config,
)
