"""Every 2D network of the zoo, small, for 20 iterations on slices of the phantoms, also with ``--smoke``: does it train?"""

from mmengine.config import read_base

with read_base():
    from .._base_.runtime import *

from itkit.criterion import DiceCELoss
from itkit.dataset import PhantomDataset, multi_sample_collate
from itkit.metrics import SegmentationMetric
from itkit.mm.hooks import CheckpointHook
from itkit.mm.loops import IterBasedTrainLoop, TestLoop, ValLoop
from itkit.mm.samplers import CaseSampler, StreamSampler
from itkit.transforms import ExtractSlice, LoadVolume, MultiSample, PackSeg2DInputs, PackSeg3DInputs, Window, ZScore

# ---- PARAMETERS ----
patch_size = (64, 64)  # Y, X in voxels: the whole slice
max_iters = 20
cpu_threads = 1
smoke_iterations = 20
num_classes = 5

# ---- data ----
load = [dict(type=LoadVolume), dict(type=Window, level=60, width=400), dict(type=ZScore)]
slices = [dict(type=ExtractSlice, index="random", foreground_ratio=0.7), dict(type=PackSeg2DInputs)]
pack = [dict(type=PackSeg3DInputs)]
loader = dict(batch_size=2, num_workers=0, collate_fn=dict(type=multi_sample_collate))
train_dataloader = dict(
    **loader,
    sampler=dict(type=StreamSampler),
    dataset=dict(
        type=PhantomDataset,
        split="train",
        cache="memory",
        pipeline=load + [dict(type=MultiSample, num_samples=4, transforms=slices)],
    ),
)
val_dataloader = dict(
    **loader,
    sampler=dict(type=CaseSampler),
    dataset=dict(type=PhantomDataset, split="val", limit=1, pipeline=load + pack),
)
test_dataloader = dict(
    **loader,
    sampler=dict(type=CaseSampler),
    dataset=dict(type=PhantomDataset, split="test", limit=1, pipeline=load + pack),
)

# ---- how to train, validate and test ----
criterion = dict(type=DiceCELoss)
inference_config = dict(patch_size=patch_size, slice_batch=8)
train_cfg = dict(type=IterBasedTrainLoop, max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
val_evaluator = dict(type=SegmentationMetric, measures=("Dice",))
test_evaluator = dict(type=SegmentationMetric, measures=("Dice",))
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=2e-3), clip_grad=dict(max_norm=12.0))
default_hooks.update(
    logger=dict(type="LoggerHook", interval=5, log_metric_by_epoch=False),
    checkpoint=dict(type=CheckpointHook, interval=max_iters, by_epoch=False, save_best="Dice"),
)
