"""UNETR with narrow tokens."""

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
        feature_size=16,
        hidden_size=192,
        mlp_dim=768,
        num_heads=6,
    ),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
