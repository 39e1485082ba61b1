"""EfficientNet, half as wide and half as deep as B0, as the encoder of a U-Net."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg2D
from itkit.models import EfficientNet, EncoderUNet

model = dict(
    type=SemSeg2D,
    backbone=dict(
        type=EncoderUNet,
        in_channels=1,
        num_classes=num_classes,
        encoder=dict(type=EfficientNet, width=0.5, depth=0.5, out_indices=(0, 1, 2, 3, 4)),
    ),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
