"""Encoders pre-trained by momentum contrast on slices of the phantoms, whose labels are not looked at."""

from mmengine.config import read_base

with read_base():
    from .._base_.runtime import *

from itkit.dataset import PhantomDataset, multi_sample_collate
from itkit.mm.hooks import CheckpointHook
from itkit.mm.loops import IterBasedTrainLoop
from itkit.mm.samplers import StreamSampler
from itkit.transforms import (
    ExtractSlice,
    LoadVolume,
    MultiSample,
    PackSeg2DInputs,
    RandomBrightness,
    RandomContrast,
    RandomFlip,
    RandomGaussianBlur,
    RandomGaussianNoise,
    RandomWarp,
    TwoViews,
    Window,
    ZScore,
)

# ---- PARAMETERS ----
patch_size = (48, 48)  # Y, X in voxels of the 64 x 64 of a slice
max_iters = 120
cpu_threads = 1
smoke_iterations = 20

# ---- data: 4 volumes a step, 4 slices of each, two views of a slice ----
load = [dict(type=LoadVolume), dict(type=Window, level=60, width=400), dict(type=ZScore)]
view = [
    dict(type=RandomWarp, size=patch_size, degrees=20, scale=0.2),
    dict(type=RandomFlip, axes=(1,), prob=0.5),
    dict(type=RandomBrightness, shift=0.4, prob=0.8),
    dict(type=RandomContrast, prob=0.8),
    dict(type=RandomGaussianBlur, prob=0.5),
    dict(type=RandomGaussianNoise, prob=0.5),
    dict(type=PackSeg2DInputs),
]
pairs = [dict(type=ExtractSlice, index="random"), dict(type=TwoViews, transforms=view)]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    collate_fn=dict(type=multi_sample_collate),
    sampler=dict(type=StreamSampler),
    dataset=dict(
        type=PhantomDataset,
        split="train",
        cache="memory",
        pipeline=load + [dict(type=MultiSample, num_samples=4, transforms=pairs)],
    ),
)

# ---- how to train ----
train_cfg = dict(type=IterBasedTrainLoop, max_iters=max_iters)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=3e-3, weight_decay=1e-4))
default_hooks.update(
    logger=dict(type="LoggerHook", interval=5, log_metric_by_epoch=False),
    checkpoint=dict(type=CheckpointHook, interval=max_iters, by_epoch=False),
)
custom_hooks = []  # an average of an encoder that is followed by an average already would be one too many
