"""SegFormer3D, half as deep and narrow."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg3D
from itkit.models import SegFormer3D

model = dict(
    type=SemSeg3D,
    backbone=dict(
        type=SegFormer3D,
        in_channels=1,
        num_classes=num_classes,
        embed_dims=(16, 32, 80, 128),
        depths=(1, 1, 1, 1),
        decoder_channels=64,
    ),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
