"""MONAI's Attention U-Net, by its name."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg2D

model = dict(
    type=SemSeg2D,
    backbone=dict(
        type="monai.AttentionUnet",
        spatial_dims=2,
        in_channels=1,
        out_channels=num_classes,
        channels=(16, 32, 64),
        strides=(2, 2),
    ),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
