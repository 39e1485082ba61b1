"""The house's sub-voxel residual U-Net."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg3D
from itkit.models import SubvoxelUNet

model = dict(
    type=SemSeg3D,
    backbone=dict(
        type=SubvoxelUNet,
        in_channels=1,
        num_classes=num_classes,
        widths=(16, 32, 64, 96),
        strides=((1, 2, 2), (2, 2, 2), (2, 2, 2)),
        channels_last=True,
    ),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
