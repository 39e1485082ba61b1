"""DA-TransUNet with one transformer layer and one residual block a stage."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg2D
from itkit.models import DATransUNet

model = dict(
    type=SemSeg2D,
    backbone=dict(
        type=DATransUNet,
        in_channels=1,
        num_classes=num_classes,
        image_size=patch_size,
        num_layers=1,
        mlp_dim=128,
        resnet_layers=(1, 1, 1),
    ),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
