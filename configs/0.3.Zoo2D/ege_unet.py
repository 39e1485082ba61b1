"""EGE-UNet, the smallest network of the zoo."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg2D
from itkit.models import EGEUNet

model = dict(
    type=SemSeg2D,
    backbone=dict(type=EGEUNet, in_channels=1, num_classes=num_classes, widths=(8, 16, 24, 32, 48, 64)),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
