"""MoCo v2 with a residual network, a quarter as wide as published, and a queue of two steps."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.pretraining import ContrastivePretraining
from itkit.models import MoCo

model = dict(
    type=ContrastivePretraining,
    backbone=dict(
        type=MoCo,
        in_channels=1,
        encoder="resnet18",
        width=16,
        dim=32,
        queue_size=32,
        momentum=0.99,
        temperature=0.2,
        mlp_head=True,
    ),
)
