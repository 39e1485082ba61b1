"""EfficientFormerV2, half as wide as S0, as the encoder of a U-Net with deep supervision."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.criterion import DeepSupervisionLoss
from itkit.mm.task_models import SemSeg2D
from itkit.models import EfficientFormerV2, EncoderUNet

model = dict(
    type=SemSeg2D,
    backbone=dict(
        type=EncoderUNet,
        in_channels=1,
        num_classes=num_classes,
        deep_supervision=2,
        encoder=dict(
            type=EfficientFormerV2,
            widths=(16, 24, 48, 88),
            expansions=((4,), (4,), (4, 4), (4, 4)),
            attentions=1,
            image_size=patch_size,
            layer_scale=0.1,
            out_indices=(0, 1, 2, 3),
        ),
    ),
    criterion=dict(type=DeepSupervisionLoss, loss=criterion),
    num_classes=num_classes,
    inference_config=inference_config,
)
