"""UNet3+ for volumes, a sixteenth as wide as published."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg3D
from itkit.models import UNet3Plus

model = dict(
    type=SemSeg3D,
    backbone=dict(type=UNet3Plus, in_channels=1, num_classes=num_classes, spatial_dims=3, widths=(4, 8, 16, 32, 64)),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
