"""SegMamba, a sixth as wide as published."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg3D
from itkit.models import SegMamba

model = dict(
    type=SemSeg3D,
    backbone=dict(
        type=SegMamba,
        in_channels=1,
        num_classes=num_classes,
        feature_size=(8, 16, 32, 64),
        hidden_size=64,
        slices=(64, 32, 16, 4),
    ),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
