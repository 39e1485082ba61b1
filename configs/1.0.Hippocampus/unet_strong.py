"""The sub-voxel residual U-Net with 2.8 M parameters, trained longer and with stronger augmentation."""

from mmengine.config import read_base

with read_base():
    from .mgam import *

from itkit.mm.hooks import CheckpointHook, EMAHook, OverlayHook
from itkit.mm.task_models import SemSeg3D
from itkit.models import SubvoxelUNet

max_iters = 8500
warm_up = 400

model = dict(
    type=SemSeg3D,
    backbone=dict(
        type=SubvoxelUNet, in_channels=1, num_classes=3, widths=(32, 64, 128), blocks=(1, 2, 2), channels_last=True
    ),
    criterion=criterion,
    num_classes=3,
    inference_config=inference_config,
)

stronger = {**warp, "degrees": 15, "scale": 0.15, "elastic_mm": 4.0}
train_dataloader.update(
    dataset=dict(**dataset, split="train", cache="memory", pipeline=load + [stronger] + augment + pack)
)
train_cfg.update(max_iters=max_iters, val_interval=max_iters // 4)
param_scheduler[0].update(end=warm_up)
param_scheduler[1].update(begin=warm_up, end=max_iters, T_max=max_iters - warm_up)
default_hooks.update(checkpoint=dict(type=CheckpointHook, interval=max_iters // 4, by_epoch=False, save_best="Dice"))
custom_hooks = [dict(type=EMAHook, decay=0.998), dict(type=OverlayHook)]
