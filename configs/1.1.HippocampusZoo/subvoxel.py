"""The sub-voxel residual U-Net of 1.0.Hippocampus, for comparison."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg3D
from itkit.models import SubvoxelUNet

model = dict(
    type=SemSeg3D,
    backbone=dict(type=SubvoxelUNet, in_channels=1, num_classes=num_classes, widths=(24, 48, 96), channels_last=True),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
