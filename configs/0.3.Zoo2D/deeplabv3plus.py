"""DeepLabV3+: MMSegmentation's ResNet with dilated stages, a quarter as wide, and its separable ASPP head."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg2D
from itkit.models import MMSegBackboneHead

model = dict(
    type=SemSeg2D,
    backbone=dict(
        type=MMSegBackboneHead,
        norm_cfg=dict(type="BN"),
        backbone=dict(
            type="ResNetV1c",
            depth=18,
            in_channels=1,
            stem_channels=16,
            base_channels=16,
            strides=(1, 2, 1, 1),
            dilations=(1, 1, 2, 4),
            contract_dilation=True,
        ),
        decode_head=dict(
            type="DepthwiseSeparableASPPHead",
            in_channels=128,
            in_index=3,
            channels=32,
            dilations=(1, 3, 6, 9),
            c1_in_channels=16,
            c1_channels=8,
            num_classes=num_classes,
            align_corners=False,
        ),
    ),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
