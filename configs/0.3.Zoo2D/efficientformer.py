"""EfficientFormer, a third as wide as L1, as the encoder of a U-Net."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg2D
from itkit.models import EfficientFormer, EncoderUNet

model = dict(
    type=SemSeg2D,
    backbone=dict(
        type=EncoderUNet,
        in_channels=1,
        num_classes=num_classes,
        encoder=dict(
            type=EfficientFormer,
            widths=(16, 32, 64, 128),
            depths=(1, 1, 2, 2),
            image_size=patch_size,
            layer_scale=0.1,
            out_indices=(0, 1, 2, 3),
        ),
    ),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
