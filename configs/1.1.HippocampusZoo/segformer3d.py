"""SegFormer3D with the widths of its paper."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg3D
from itkit.models import SegFormer3D

model = dict(
    type=SemSeg3D,
    backbone=dict(type=SegFormer3D, in_channels=1, num_classes=num_classes, embed_dims=(32, 64, 160, 256)),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
