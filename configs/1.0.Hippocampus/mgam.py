"""Hippocampus in MR (Medical Segmentation Decathlon, task 4): everything but the model.

Data: export ITKIT_DATA=<folder of datasets>, then
python -m itkit.dataset.MSD.convert_nii_mha <Task04_Hippocampus> $ITKIT_DATA/Task04_Hippocampus
"""

from mmengine.config import read_base
from mmengine.optim import CosineAnnealingLR, LinearLR

with read_base():
    from .._base_.runtime import *

from itkit.criterion import DiceCELoss
from itkit.dataset import SeriesVolumeDataset, multi_sample_collate
from itkit.metrics import SegmentationMetric
from itkit.mm.hooks import CheckpointHook, EMAHook, OverlayHook
from itkit.mm.loops import IterBasedTrainLoop, TestLoop, ValLoop
from itkit.mm.muon import Muon, MuonOptimWrapperConstructor
from itkit.mm.samplers import CaseSampler, StreamSampler
from itkit.transforms import (
    ClipPercentiles,
    LoadVolume,
    PackSeg3DInputs,
    RandomBrightness,
    RandomContrast,
    RandomFlip,
    RandomGamma,
    RandomGaussianNoise,
    RandomWarp,
    ZScore,
)

# ---- PARAMETERS ----
classes = ("background", "anterior", "posterior")
patch_size = (32, 48, 32)  # Z, Y, X in voxels of 1 mm; networks see windows of this size in training and inference
batch_size = 2
max_iters = 2000
warm_up = 100
cpu_threads = 1  # small windows do not gain from more; raise it on a machine with idle cores

# ---- data ----
load = [dict(type=LoadVolume), dict(type=ClipPercentiles, lower=0.5, upper=99.5), dict(type=ZScore)]
warp = dict(
    type=RandomWarp,
    size=patch_size,
    degrees=12,
    scale=0.12,
    translate_mm=2.5,
    elastic_mm=3.0,
    elastic_grid_mm=16,
    prob=0.8,
    smooth_labels=True,
)
augment = [
    dict(type=RandomFlip, axes=(2,), prob=0.5),
    dict(type=RandomGamma, prob=0.5),
    dict(type=RandomContrast, prob=0.5),
    dict(type=RandomBrightness, prob=0.5),
    dict(type=RandomGaussianNoise, prob=0.25),
]
pack = [dict(type=PackSeg3DInputs)]
dataset = dict(type=SeriesVolumeDataset, data_root="Task04_Hippocampus", classes=classes)

train_dataloader = dict(
    batch_size=batch_size,
    num_workers=1,
    collate_fn=dict(type=multi_sample_collate),
    sampler=dict(type=StreamSampler, shuffle=True),
    dataset=dict(**dataset, split="train", cache="memory", pipeline=load + [warp] + augment + pack),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    collate_fn=dict(type=multi_sample_collate),
    sampler=dict(type=CaseSampler),
    dataset=dict(**dataset, split="val", cache="memory", pipeline=load + pack),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    collate_fn=dict(type=multi_sample_collate),
    sampler=dict(type=CaseSampler),
    dataset=dict(**dataset, split="test", pipeline=load + pack),
)

# ---- how to train, validate and test ----
criterion = dict(type=DiceCELoss, include_background=False)
inference_config = dict(
    patch_size=patch_size,
    blending="gaussian",
    sigma_scale=0.25,
    padding="edge",
    flip_axes=[[2]],
    forward_batch_windows=4,
)
train_cfg = dict(type=IterBasedTrainLoop, max_iters=max_iters, val_interval=max_iters // 4)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
val_evaluator = dict(type=SegmentationMetric, measures=("Dice",))
test_evaluator = dict(
    type=SegmentationMetric, measures=("Dice", "IoU", "Precision", "Recall", "HD95", "NSD"), nsd_tolerance_mm=1.0
)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor=MuonOptimWrapperConstructor,
    optimizer=dict(type=Muon, lr=0.04, weight_decay=0.02, adamw_lr=0.02),
    paramwise_cfg=dict(adamw_keys=()),  # all matrices go the Muon way, first and last layer too
)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.01, by_epoch=False, begin=0, end=warm_up),
    dict(type=CosineAnnealingLR, by_epoch=False, begin=warm_up, end=max_iters, T_max=max_iters - warm_up, eta_min=0.0),
]
default_hooks.update(checkpoint=dict(type=CheckpointHook, interval=max_iters // 4, by_epoch=False, save_best="Dice"))
custom_hooks = [dict(type=EMAHook, decay=0.99), dict(type=OverlayHook)]
