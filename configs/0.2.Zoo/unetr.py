"""UNETR with narrow tokens; the transformer keeps its twelve layers."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg3D
from itkit.models import UNETR

model = dict(
    type=SemSeg3D,
    backbone=dict(
        type=UNETR,
        in_channels=1,
        num_classes=num_classes,
        image_size=patch_size,
        feature_size=8,
        hidden_size=48,
        mlp_dim=96,
        num_heads=4,
    ),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
