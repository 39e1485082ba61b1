"""MONAI's U-Net++, by its name, with deep supervision: it returns a list of four maps."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.criterion import DeepSupervisionLoss
from itkit.mm.task_models import SemSeg2D

model = dict(
    type=SemSeg2D,
    backbone=dict(
        type="monai.BasicUNetPlusPlus",
        spatial_dims=2,
        in_channels=1,
        out_channels=num_classes,
        features=(16, 16, 32, 32, 64, 16),
        deep_supervision=True,
    ),
    criterion=dict(type=DeepSupervisionLoss, loss=criterion),
    num_classes=num_classes,
    inference_config=inference_config,
)
