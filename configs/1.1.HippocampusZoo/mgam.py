"""The 3D networks of the zoo on the hippocampus, under one recipe: everything but the model.

Data as for 1.0.Hippocampus. ``tools/bench_zoo.py`` chooses the iterations so that each network trains for equal CPU time.
"""

from mmengine.config import read_base
from mmengine.optim import CosineAnnealingLR

with read_base():
    from .._base_.runtime import *

from itkit.criterion import DiceCELoss
from itkit.dataset import SeriesVolumeDataset, multi_sample_collate
from itkit.metrics import SegmentationMetric
from itkit.mm.hooks import CheckpointHook, EMAHook
from itkit.mm.loops import IterBasedTrainLoop, TestLoop, ValLoop
from itkit.mm.samplers import CaseSampler, StreamSampler
from itkit.transforms import (
    ClipPercentiles,
    LoadVolume,
    PackSeg3DInputs,
    RandomFlip,
    RandomGamma,
    RandomWarp,
    ZScore,
)

# ---- PARAMETERS ----
classes = ("background", "anterior", "posterior")
num_classes = 3
patch_size = (32, 48, 32)  # Z, Y, X in voxels of 1 mm
max_iters = 400
cpu_threads = 1

# ---- data ----
load = [dict(type=LoadVolume), dict(type=ClipPercentiles, lower=0.5, upper=99.5), dict(type=ZScore)]
augment = [
    dict(type=RandomWarp, size=patch_size, degrees=12, scale=0.12, translate_mm=2.5, prob=0.8),
    dict(type=RandomFlip, axes=(2,), prob=0.5),
    dict(type=RandomGamma, prob=0.5),
]
pack = [dict(type=PackSeg3DInputs)]
dataset = dict(type=SeriesVolumeDataset, data_root="Task04_Hippocampus", classes=classes)
loader = dict(num_workers=0, collate_fn=dict(type=multi_sample_collate))
train_dataloader = dict(
    **loader,
    batch_size=2,
    sampler=dict(type=StreamSampler),
    dataset=dict(**dataset, split="train", cache="memory", pipeline=load + augment + pack),
)
val_dataloader = dict(
    **loader,
    batch_size=1,
    sampler=dict(type=CaseSampler),
    dataset=dict(**dataset, split="val", limit=4, pipeline=load + pack),
)
test_dataloader = dict(
    **loader,
    batch_size=1,
    sampler=dict(type=CaseSampler),
    dataset=dict(**dataset, split="test", pipeline=load + pack),
)

# ---- how to train, validate and test ----
criterion = dict(type=DiceCELoss, include_background=False)
inference_config = dict(patch_size=patch_size, blending="gaussian", sigma_scale=0.25, padding="edge")
train_cfg = dict(type=IterBasedTrainLoop, max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
val_evaluator = dict(type=SegmentationMetric, measures=("Dice",))
test_evaluator = dict(type=SegmentationMetric, measures=("Dice", "HD95"))
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.01), clip_grad=dict(max_norm=12.0)
)
param_scheduler = [dict(type=CosineAnnealingLR, by_epoch=False, end=max_iters, T_max=max_iters, eta_min=0.0)]
default_hooks.update(checkpoint=dict(type=CheckpointHook, interval=max_iters, by_epoch=False, save_best="Dice"))
custom_hooks = [dict(type=EMAHook, decay=0.95)]
