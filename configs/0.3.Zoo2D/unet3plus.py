"""UNet3+, narrow, with deep supervision."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.criterion import DeepSupervisionLoss
from itkit.mm.task_models import SemSeg2D
from itkit.models import UNet3Plus

model = dict(
    type=SemSeg2D,
    backbone=dict(
        type=UNet3Plus,
        in_channels=1,
        num_classes=num_classes,
        widths=(8, 16, 24, 32, 48),
        deep_supervision=True,
    ),
    criterion=dict(type=DeepSupervisionLoss, loss=criterion),
    num_classes=num_classes,
    inference_config=inference_config,
)
