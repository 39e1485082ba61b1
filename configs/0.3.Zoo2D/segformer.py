"""SegFormer with the stages of B0, half as deep and narrow."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg2D
from itkit.models import SegFormer

model = dict(
    type=SemSeg2D,
    backbone=dict(
        type=SegFormer,
        in_channels=1,
        num_classes=num_classes,
        embed_dims=(16, 32, 80, 128),
        depths=(1, 1, 1, 1),
        decoder_channels=64,
        drop_path=0.0,
    ),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
