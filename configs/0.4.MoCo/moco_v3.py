"""MoCo v3 with a residual network, a quarter as wide as published."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.pretraining import ContrastivePretraining
from itkit.models import MoCoV3

model = dict(
    type=ContrastivePretraining,
    backbone=dict(type=MoCoV3, in_channels=1, encoder="resnet18", width=16, dim=32, hidden=256, temperature=0.2),
)
