"""MMSegmentation's ResNet, a quarter as wide, as the encoder of a U-Net."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg2D
from itkit.models import EncoderUNet

model = dict(
    type=SemSeg2D,
    backbone=dict(
        type=EncoderUNet,
        in_channels=1,
        num_classes=num_classes,
        encoder=dict(type="mmseg.ResNet", depth=18, stem_channels=16, base_channels=16),
    ),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
