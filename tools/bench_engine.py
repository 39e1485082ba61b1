"""Measure what the engine costs: time per iteration through the Runner against a plain PyTorch loop.

Both loops live in one process and take turns, block by block, with equal models, data, batches and optimizer; the figure is
the ratio of the medians over the blocks. The engine runs with all its default hooks (progress, waiting for data, logs,
TensorBoard). Times are CPU times of the process, which other programs of the machine disturb little; `--wall` takes the
clock on the wall.

    python tools/bench_engine.py [--blocks 14] [--iterations 20] [--threads 1] [--engines itkit mmengine] [--wall]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from monai.networks.nets import UNet
from torch import nn
from torch.utils.data import DataLoader, Dataset

from itkit.mm.preparation import prepare
from itkit.mm.runner import ExperimentRunner
from itkit.models import SubvoxelUNet
from itkit.registry import DATASETS, FUNCTIONS, HOOKS, MODELS

CASES = {
    "tiny net, patch 16": {"channels": (4, 8), "strides": (2,), "size": 16},
    "small UNet, patch 24": {"channels": (8, 16, 32), "strides": (2, 2), "size": 24},
    "UNet 1.2 M, patch 32": {"channels": (16, 32, 64, 128), "strides": (2, 2, 2), "size": 32},
    "unet_small of 1.0.Hippocampus": {"channels": (24, 48, 96), "strides": (), "size": (32, 48, 32)},
}


@DATASETS.register_module()
class BenchVolumes(Dataset):
    metainfo = {"classes": ("background", "a", "b")}

    def __init__(self, size: int | tuple[int, int, int]):
        shape = (size,) * 3 if isinstance(size, int) else tuple(size)
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(8, 1, *shape, generator=generator)
        self.labels = torch.randint(0, 3, (8, *shape), generator=generator)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        return {"inputs": self.images[index], "data_samples": self.labels[index]}


@MODELS.register_module()
class BenchSegmenter(BaseModel):
    def __init__(self, channels: tuple, strides: tuple):
        super().__init__()
        self.net = network(channels, strides)

    def forward(self, inputs, data_samples=None, mode="loss"):
        return {"loss": nn.functional.cross_entropy(self.net(inputs), data_samples)}


@FUNCTIONS.register_module()
def bench_collate(samples: list) -> dict:
    return {key: torch.stack([sample[key] for sample in samples]) for key in ("inputs", "data_samples")}


def network(channels: tuple, strides: tuple) -> nn.Module:
    torch.manual_seed(0)
    if not strides:
        return SubvoxelUNet(in_channels=1, num_classes=3, widths=tuple(channels), channels_last=True)
    return UNet(spatial_dims=3, in_channels=1, out_channels=3, channels=channels, strides=strides, num_res_units=1)


@HOOKS.register_module()
class BenchOpponent(Hook):
    """Runs a block of the plain loop after each block of the engine, and keeps both times."""

    priority = 100

    def __init__(self, channels: tuple, strides: tuple, size: int, iterations: int, batch: int, wall: bool):
        self.iterations = iterations
        self.now = time.perf_counter if wall else time.process_time
        self.net = network(channels, strides).train()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3, fused=True)
        loader = DataLoader(BenchVolumes(size), batch_size=batch, collate_fn=bench_collate, shuffle=True)
        self.batches = self.endless(loader)
        self.engine_s: list[float] = []
        self.plain_s: list[float] = []

    @staticmethod
    def endless(loader: DataLoader) -> Iterator[dict]:
        while True:
            yield from loader

    def before_train_epoch(self, runner) -> None:
        self.begin = self.now()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if (batch_idx + 1) % self.iterations:
            return
        self.engine_s.append((self.now() - self.begin) / self.iterations)
        begin = self.now()
        for _ in range(self.iterations):
            batch = next(self.batches)
            loss = nn.functional.cross_entropy(self.net(batch["inputs"]), batch["data_samples"])
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.plain_s.append((self.now() - begin) / self.iterations)
        self.begin = self.now()


def build(engine: str, case: dict, folder: Path, *, steps: int, batch: int, opponent: dict) -> Runner:
    ours = engine == "itkit"
    optimizer = {"type": "AdamW", "lr": 1e-3}
    scope = "" if ours else "itkit."
    config = Config(
        {
            "model": {"type": f"{scope}BenchSegmenter", "channels": case["channels"], "strides": case["strides"]},
            "work_dir": str(folder),
            "train_dataloader": {
                "dataset": {"type": f"{scope}BenchVolumes", "size": case["size"]},
                "batch_size": batch,
                "sampler": {"type": "StreamSampler" if ours else "InfiniteSampler"},
                "collate_fn": {"type": "itkit.bench_collate"},
            },
            "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": steps},
            "optim_wrapper": {"optimizer": {**optimizer, "fused": True}}
            if not ours
            else {"optimizer": optimizer, "constructor": "mgam_OptimWrapperConstructor"},
            "param_scheduler": [{"type": "CosineAnnealingLR", "T_max": steps, "by_epoch": False}],
            "default_hooks": {"logger": {"type": "LoggerHook", "interval": 50}},
            "custom_hooks": [{"type": f"{scope}BenchOpponent", **opponent}],
            "log_processor": {"by_epoch": False},
            "visualizer": {
                "type": "Visualizer",
                "vis_backends": [{"type": "TensorboardVisBackend"}],
                "name": str(folder),
            },
            "default_scope": "itkit" if ours else "mmengine",
            "experiment_name": str(folder).replace("/", "_"),
            "log_level": "ERROR",
        }
    )
    if ours:
        return ExperimentRunner.from_cfg(prepare(config, work_dir=folder))
    config.default_hooks["checkpoint"] = {"type": "CheckpointHook", "by_epoch": False, "interval": steps}
    return Runner.from_cfg(config)


def measure(engine: str, case: dict, *, blocks: int, iterations: int, batch: int, wall: bool) -> tuple[float, float]:
    """Return median milliseconds per iteration of the engine and of the plain loop, the first two blocks left out."""
    with tempfile.TemporaryDirectory() as folder:
        opponent = {**case, "iterations": iterations, "batch": batch, "wall": wall}
        runner = build(engine, case, Path(folder), steps=blocks * iterations, batch=batch, opponent=opponent)
        runner.train()
        found = next(hook for hook in runner.hooks if isinstance(hook, BenchOpponent))
    return tuple(1e3 * statistics.median(times[2:]) for times in (found.engine_s, found.plain_s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=14)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engines", nargs="+", default=["itkit", "mmengine"])
    parser.add_argument("--wall", action="store_true")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    torch.set_num_threads(arguments.threads)
    print(f"{'case':24} {'engine':10} {'engine ms/it':>13} {'plain ms/it':>12} {'difference ms':>14} {'ratio':>7}")
    for name, case in CASES.items():
        for engine in arguments.engines:
            through, plain = measure(
                engine,
                case,
                blocks=arguments.blocks,
                iterations=arguments.iterations,
                batch=arguments.batch,
                wall=arguments.wall,
            )
            print(f"{name:24} {engine:10} {through:13.2f} {plain:12.2f} {through - plain:14.3f} {through / plain:7.3f}")


if __name__ == "__main__":
    main()
