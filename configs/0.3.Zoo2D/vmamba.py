"""VMamba, narrow, as the encoder of MMSegmentation's UPerNet."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.task_models import SemSeg2D
from itkit.models import MMSegBackboneHead

model = dict(
    type=SemSeg2D,
    backbone=dict(
        type=MMSegBackboneHead,
        backbone=dict(
            type="itkit.VMamba",
            in_channels=1,
            out_indices=(0, 1, 2, 3),
            depths=(1, 1, 2, 1),
            dims=16,
            drop_path=0.0,
        ),
        decode_head=dict(
            type="UPerHead",
            in_channels=(16, 32, 64, 128),
            in_index=(0, 1, 2, 3),
            channels=32,
            num_classes=num_classes,
        ),
        norm_cfg=dict(type="BN"),
    ),
    criterion=criterion,
    num_classes=num_classes,
    inference_config=inference_config,
)
