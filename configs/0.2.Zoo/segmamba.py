"""SegMamba, a sixth as wide as published; the third order of its scans goes across the slices of a 32-voxel cube."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg3D
from itkit.models import SegMamba

model = dict(
    type=SemSeg3D,
    backbone=dict(
        type=SegMamba,
        in_channels=1,
        num_classes=num_classes,
        depths=(1, 1, 1, 1),
        feature_size=(8, 16, 32, 64),
        hidden_size=64,
        slices=(16, 8, 4, 2),
        d_state=4,
    ),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
