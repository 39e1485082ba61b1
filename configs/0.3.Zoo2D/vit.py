"""A vision transformer (ViT) with the decoder of UNETR, both MONAI's, by name."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg2D

model = dict(
    type=SemSeg2D,
    backbone=dict(
        type="monai.UNETR",
        spatial_dims=2,
        in_channels=1,
        out_channels=num_classes,
        img_size=patch_size,
        feature_size=8,
        hidden_size=48,
        mlp_dim=96,
        num_heads=4,
    ),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
