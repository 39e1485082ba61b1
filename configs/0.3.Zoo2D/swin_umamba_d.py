"""Swin-UMamba-D, a sixth as wide as published, with deep supervision."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.criterion import DeepSupervisionLoss
from itkit.mm.task_models import SemSeg2D
from itkit.models import SwinUMambaD

model = dict(
    type=SemSeg2D,
    backbone=dict(
        type=SwinUMambaD,
        in_channels=1,
        num_classes=num_classes,
        dims=16,
        depths=(1, 1, 2, 1),
        d_state=4,
        drop_path=0.0,
        deep_supervision=True,
    ),
    criterion=dict(type=DeepSupervisionLoss, loss=criterion),
    num_classes=num_classes,
    inference_config=inference_config,
)
