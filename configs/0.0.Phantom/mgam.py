"""Phantoms that the package makes itself: a first look at a whole experiment in a few minutes, without any data."""

from mmengine.config import read_base
from mmengine.optim import CosineAnnealingLR, LinearLR

with read_base():
    from .._base_.runtime import *

from itkit.criterion import DiceCELoss
from itkit.dataset import PhantomDataset, multi_sample_collate
from itkit.metrics import SegmentationMetric
from itkit.mm.hooks import CheckpointHook, EMAHook, OverlayHook
from itkit.mm.loops import IterBasedTrainLoop, TestLoop, ValLoop
from itkit.mm.muon import Muon, MuonOptimWrapperConstructor
from itkit.mm.samplers import CaseSampler, StreamSampler
from itkit.transforms import (
    LoadVolume,
    PackSeg3DInputs,
    RandomBrightness,
    RandomFlip,
    RandomGaussianNoise,
    RandomWarp,
    Window,
    ZScore,
)

# ---- PARAMETERS ----
patch_size = (24, 64, 64)  # Z, Y, X in voxels of 3 x 1.2 x 1.2 mm: the whole volume
max_iters = 340
warm_up = 20
cpu_threads = 1

# ---- data ----
load = [dict(type=LoadVolume), dict(type=Window, level=60, width=400), dict(type=ZScore)]
augment = [
    dict(type=RandomWarp, size=patch_size, degrees=(8, 0, 0), scale=0.1, translate_mm=4, prob=0.7),
    dict(type=RandomBrightness, prob=0.3),
    dict(type=RandomGaussianNoise, prob=0.3),
]
pack = [dict(type=PackSeg3DInputs)]

train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    collate_fn=dict(type=multi_sample_collate),
    sampler=dict(type=StreamSampler, shuffle=True),
    dataset=dict(type=PhantomDataset, split="train", cache="memory", pipeline=load + augment + pack),
)
val_dataloader = dict(
    batch_size=2,
    num_workers=0,
    collate_fn=dict(type=multi_sample_collate),
    sampler=dict(type=CaseSampler),
    dataset=dict(type=PhantomDataset, split="val", cache="memory", pipeline=load + pack),
)
test_dataloader = dict(
    batch_size=2,
    num_workers=0,
    collate_fn=dict(type=multi_sample_collate),
    sampler=dict(type=CaseSampler),
    dataset=dict(type=PhantomDataset, split="test", pipeline=load + pack),
)

# ---- how to train, validate and test ----
num_classes = 5
criterion = dict(type=DiceCELoss, include_background=False, batch_dice=True)
inference_config = dict(patch_size=patch_size)
train_cfg = dict(type=IterBasedTrainLoop, max_iters=max_iters, val_interval=170)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
val_evaluator = dict(type=SegmentationMetric, measures=("Dice",))
test_evaluator = dict(
    type=SegmentationMetric, measures=("Dice", "IoU", "Precision", "Recall", "HD95", "NSD"), nsd_tolerance_mm=2.0
)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor=MuonOptimWrapperConstructor,
    optimizer=dict(type=Muon, lr=0.04, weight_decay=0.02, adamw_lr=0.02),
    paramwise_cfg=dict(adamw_keys=()),
)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.05, by_epoch=False, begin=0, end=warm_up),
    dict(type=CosineAnnealingLR, by_epoch=False, begin=warm_up, end=max_iters, T_max=max_iters - warm_up, eta_min=0.0),
]
default_hooks.update(
    logger=dict(type="LoggerHook", interval=20, log_metric_by_epoch=False),
    checkpoint=dict(type=CheckpointHook, interval=170, by_epoch=False, save_best="Dice"),
)
custom_hooks = [dict(type=EMAHook, decay=0.95), dict(type=OverlayHook), dict(type="ProgressHook", interval=40)]
