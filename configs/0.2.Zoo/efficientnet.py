"""EfficientNet in 3D, half as wide and half as deep as B0, as the encoder of a U-Net."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg3D
from itkit.models import EfficientNet, EncoderUNet

model = dict(
    type=SemSeg3D,
    backbone=dict(
        type=EncoderUNet,
        in_channels=1,
        num_classes=num_classes,
        spatial_dims=3,
        encoder=dict(type=EfficientNet, width=0.5, depth=0.5, out_indices=(0, 1, 2, 3)),
    ),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
