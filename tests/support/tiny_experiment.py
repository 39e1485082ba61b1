"""An experiment small enough for a test: eight volumes of 8 x 12 x 12 voxels, one network of a few hundred weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

SHARED = """
from itkit.criterion import DiceCELoss
from itkit.dataset import SeriesVolumeDataset, multi_sample_collate
from itkit.metrics import SegmentationMetric
from itkit.mm.hooks import CheckpointHook, EMAHook, OverlayHook
from itkit.mm.loops import IterBasedTrainLoop, TestLoop, ValLoop
from itkit.mm.samplers import CaseSampler, StreamSampler
from itkit.transforms import LoadVolume, PackSeg3DInputs, RandomFlip, RandomGaussianNoise, ZScore
from mmengine.hooks import LoggerHook

classes = ("background", "small", "large")
load = [dict(type=LoadVolume), dict(type=ZScore)]
augment = [dict(type=RandomFlip, axes=(2,), prob=0.5), dict(type=RandomGaussianNoise, prob=0.5)]
pack = [dict(type=PackSeg3DInputs)]
dataset = dict(type=SeriesVolumeDataset, data_root="Tiny", classes=classes)
train_dataloader = dict(
    batch_size=2, num_workers={workers}, collate_fn=dict(type=multi_sample_collate),
    sampler=dict(type=StreamSampler, shuffle=True), dataset=dict(**dataset, split="train", pipeline=load + augment + pack),
)
val_dataloader = dict(
    batch_size=1, num_workers=0, collate_fn=dict(type=multi_sample_collate),
    sampler=dict(type=CaseSampler), dataset=dict(**dataset, split="val", pipeline=load + pack),
)
test_dataloader = dict(
    batch_size=1, num_workers=0, collate_fn=dict(type=multi_sample_collate),
    sampler=dict(type=CaseSampler), dataset=dict(**dataset, split="test", pipeline=load + pack),
)
train_cfg = dict(type=IterBasedTrainLoop, max_iters={iterations}, val_interval=4)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
val_evaluator = dict(type=SegmentationMetric, measures=("Dice",))
test_evaluator = dict(type=SegmentationMetric, measures=("Dice", "HD95"))
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=0.02))
param_scheduler = [dict(type="CosineAnnealingLR", T_max={iterations}, by_epoch=False, eta_min=0.0)]
default_hooks = dict(
    logger=dict(type=LoggerHook, interval=2, log_metric_by_epoch=False),
    checkpoint=dict(type=CheckpointHook, interval=3, by_epoch=False, save_best="Dice"),
)
custom_hooks = [dict(type=EMAHook, momentum=0.1), dict(type=OverlayHook)]
"""

MODEL = """
from mmengine.config import read_base
with read_base():
    from .mgam import *
from itkit.mm.task_models import SemSeg3D
from monai.networks.nets import UNet

model = dict(
    type=SemSeg3D, num_classes=3, criterion=dict(type=DiceCELoss),
    backbone=dict(type=UNet, spatial_dims=3, in_channels=1, out_channels=3, channels=(4, 8), strides=(2,), dropout=0.1),
)
"""


def write_volume(path: Path, array: np.ndarray, spacing_xyz=(1.0, 1.0, 2.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_xyz)
    sitk.WriteImage(image, str(path))


def make_data(root: Path, *, cases: int = 8, shape=(8, 12, 12)) -> Path:
    """Write `cases` volumes with two boxes each, and a split of 4 / 2 / 2."""
    folder = root / "Tiny"
    names = [f"case_{i:02d}" for i in range(cases)]
    for i, name in enumerate(names):
        rng = np.random.default_rng(i)
        label = np.zeros(shape, np.uint8)
        z, y, x = rng.integers(1, 3, 3)
        label[z : z + 5, y : y + 6, x : x + 6] = 2
        label[z + 1 : z + 4, y + 1 : y + 4, x + 1 : x + 4] = 1
        image = (label * 100 + rng.normal(0, 20, shape)).astype(np.float32)
        write_volume(folder / "image" / f"{name}.mha", image)
        write_volume(folder / "label" / f"{name}.mha", label)
    split = {"train": names[:-4], "val": names[-4:-2], "test": names[-2:]}
    (folder / "split.json").write_text(json.dumps(split))
    return folder


def make_experiment(
    root: Path, name: str = "0.1.Tiny", *, iterations: int = 8, workers: int = 0, models=("unet",), extra: str = ""
) -> Path:
    """Write ``mgam.py`` and one file per model below ``root/configs``."""
    folder = root / "configs" / name
    folder.mkdir(parents=True)
    shared = SHARED.replace("{iterations}", str(iterations)).replace("{workers}", str(workers))
    (folder / "mgam.py").write_text(shared + extra)
    for model in models:
        (folder / f"{model}.py").write_text(MODEL)
    return folder
