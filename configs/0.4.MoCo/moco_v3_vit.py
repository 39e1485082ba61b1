"""MoCo v3 with a narrow vision transformer of four layers."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.pretraining import ContrastivePretraining
from itkit.models import MoCoV3

model = dict(
    type=ContrastivePretraining,
    backbone=dict(
        type=MoCoV3,
        in_channels=1,
        encoder="vit_small",
        image_size=patch_size,
        patch=8,
        width=96,
        depth=4,
        heads=3,
        dim=32,
        hidden=256,
    ),
)
