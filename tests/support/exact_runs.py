"""Small trainings that use every kind of state a run can have, killed by SIGKILL where one likes, and compared to the bit."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import Dataset

from itkit.dataset.stream import sample_generator
from itkit.mm.preparation import prepare
from itkit.mm.runner import ExperimentRunner
from itkit.registry import DATASETS, FUNCTIONS, HOOKS, METRICS, MODELS

TIMES = ("time", "data_time", "data_wait", "eta")
"""What the clock decides; everything else of two equal trainings is equal."""


@DATASETS.register_module(force=True)
class NoisyPoints(Dataset):
    """Points of ten lines; the noise is the sample's own. Counts how often it is read in this process."""

    reads = 0
    metainfo = {"classes": ("background", "a")}

    def __init__(self, size: int = 10, shift: float = 0.0):
        self.size, self.shift = size, shift

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        NoisyPoints.reads += 1
        noise = sample_generator(index).normal(size=3)
        return {"inputs": torch.tensor(noise, dtype=torch.float32) + int(index) + self.shift, "number": int(index)}


@FUNCTIONS.register_module(force=True)
def stack_points(samples: list) -> dict:
    return {"inputs": torch.stack([s["inputs"] for s in samples]), "numbers": [s["number"] for s in samples]}


@MODELS.register_module(force=True)
class DroppingNet(BaseModel):
    """Batch statistics, dropout (the global generator), a tied and a frozen weight."""

    def __init__(self, width: int = 6, nan_at: tuple[int, ...] = ()):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.first, self.norm, self.last = nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1)
        self.frozen = nn.Linear(3, width).requires_grad_(False)
        self.again = self.first
        self.drop = nn.Dropout(0.3)
        self.nan_at, self.steps = nan_at, 0
        for weight in self.parameters():
            nn.init.normal_(weight, generator=generator)

    def forward(self, inputs, numbers=None, mode="loss"):
        out = self.last(self.drop(torch.tanh(self.norm(self.first(inputs) + 0.1 * self.frozen(inputs)))))
        if mode == "loss":
            return {"loss": (out - inputs.mean(1, keepdim=True)).square().mean()}
        return [{"error": float(row)} for row in (out - inputs.mean(1, keepdim=True)).abs()]


@METRICS.register_module(force=True)
class MeanError(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [sample["error"] for sample in data_samples]

    def compute_metrics(self, results):
        return {"error": sum(results) / len(results)}


class AtIteration(Hook):
    """Calls `action` with the runner after iteration `at`."""

    priority = "LOWEST"

    def __init__(self, at: int, action: Callable[[Any], Any]):
        self.at, self.action = at, action

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.at:
            self.action(runner)


@HOOKS.register_module(force=True)
class WatchingHook(Hook):
    """Does nothing; a hook of one's own of which nobody knows whether it changes the training."""

    def __init__(self, note: str = ""):
        self.note = note


def die(*ignored: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


_numbers = itertools.count()

ITERATIONS = 8


def build(
    folder: Path,
    *,
    iterations: int = ITERATIONS,
    epochs: int | None = None,
    workers: int = 0,
    accumulate: int = 1,
    checkpoint: dict | None = None,
    hooks: list | None = None,
    schedule: list | None = None,
    sampler: dict | None = None,
    config: dict | None = None,
    optim_wrapper: dict | None = None,
    validate: int | None = 4,
    **options: Any,
) -> ExperimentRunner:
    """Return a runner over ten points, two a batch.

    Args:
        folder: Of the run.
        iterations: Of training.
        epochs: Train by epochs instead.
        workers: Of the training loader.
        accumulate: Iterations whose gradients are added up.
        checkpoint: Options of the checkpoint hook; None: every third iteration.
        hooks: None: averaged weights.
        schedule: None: a warm-up and a cosine.
        sampler: None: the stream; with epochs MMEngine's.
        config: Further top-level keys.
        optim_wrapper: Changes to it.
        validate: Iterations (epochs) between validations; None: none.
        **options: Of `ExperimentRunner.from_cfg`.
    """
    loader = {"batch_size": 2, "num_workers": workers, "collate_fn": {"type": "itkit.stack_points"}}
    length = {"max_epochs": epochs, "by_epoch": True} if epochs else {"max_iters": iterations, "by_epoch": False}
    cfg = {
        "model": {"type": "DroppingNet"},
        "train_dataloader": {**loader, "dataset": {"type": "NoisyPoints"}, **({"sampler": sampler} if sampler else {})},
        "train_cfg": {**length, "val_interval": validate or 1},
        "optim_wrapper": {
            "constructor": "mgam_OptimWrapperConstructor",
            "optimizer": {"type": "AdamW", "lr": 0.02},
            "clip_grad": {"max_norm": 1.0},
            "accumulative_counts": accumulate,
            **(optim_wrapper or {}),
        },
        "param_scheduler": [
            {"type": "LinearLR", "start_factor": 0.1, "begin": 0, "end": 3, "by_epoch": False},
            {"type": "CosineAnnealingLR", "begin": 3, "T_max": 20, "end": 23, "by_epoch": False},
        ]
        if schedule is None
        else schedule,
        "default_hooks": {
            "checkpoint": {"type": "itkit.CheckpointHook", "interval": 3, "by_epoch": False, **(checkpoint or {})},
            "logger": {"type": "LoggerHook", "interval": 1, "log_metric_by_epoch": False},
        },
        "custom_hooks": [{"type": "EMAHook", "decay": 0.9}] if hooks is None else hooks,
        "randomness": {"seed": 3},
        "log_level": "ERROR",
        "log_processor": {"by_epoch": bool(epochs)},
        "visualizer": {"type": "Visualizer", "vis_backends": [{"type": "JSONLinesVisBackend"}]},
        **(config or {}),
    }
    if validate:
        part = {**loader, "num_workers": 0, "dataset": {"type": "NoisyPoints", "size": 4}}
        cfg |= {"val_dataloader": part, "val_cfg": {}, "val_evaluator": [{"type": "MeanError"}]}
    folder.mkdir(parents=True, exist_ok=True)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    cfg = prepare(Config(cfg), work_dir=folder, launcher="pytorch" if several else "none")
    cfg.experiment_name = f"{folder.name}_{os.getpid()}_{next(_numbers)}"
    return ExperimentRunner.from_cfg(cfg, **options)


def train(
    folder: Path, *, at: int | None = None, action: Callable[[Any], Any] = die, **settings: Any
) -> ExperimentRunner:
    """Train and return the closed runner.

    Args:
        folder: Of the run.
        at: Iteration after which `action` is called with the runner; None never calls it.
        action: None of the config, so that a resumed run has the same.
        **settings: As in `build`.
    """
    runner = build(folder, **settings)
    if at is not None:
        runner.register_hook(AtIteration(at, action))
    try:
        runner.train()
    finally:
        runner.close()
    return runner


def train_killed_and_resumed(folder: Path, kill_at: Sequence[int], **settings: Any) -> None:
    """Train in copies of this process, the first ones killed by SIGKILL after the iterations `kill_at`, the last to the end."""
    for at in kill_at:
        assert in_child(lambda at=at: train(folder, at=at, **settings)) == -signal.SIGKILL
    assert in_child(lambda: train(folder, **settings)) == 0


def in_child(action: Callable[[], Any]) -> int:
    """Do `action` in a copy of this process; return 0 if it went well, -9 if it was killed, 1 if it raised."""
    sys.stdout.flush(), sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def last_checkpoint(folder: Path) -> dict[str, Any]:
    """Return the checkpoint that ``run.json`` calls the last."""
    state = json.loads((folder / "run.json").read_text())
    return torch.load(folder / state["last"]["checkpoint"], weights_only=True)


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Return the places at which two states differ by a single bit, times left out."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = [n for n in dict.fromkeys([*one, *other]) if str(n).rpartition("/")[2] not in TIMES]
        return [
            line
            for name in names
            for line in (
                differences(one[name], other[name], f"{where}/{name}")
                if name in one and name in other
                else [f"{where}/{name} is there only once"]
            )
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            line for i, (a, b) in enumerate(zip(one, other, strict=True)) for line in differences(a, b, f"{where}/{i}")
        ]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one.nan_to_num(7e7), other.nan_to_num(7e7))
        return [] if same else [where]
    return [] if type(one) is type(other) and one == other else [f"{where}: {one!r:.60} and {other!r:.60}"]


def state_differences(one: Path, other: Path) -> list[str]:
    """Return what differs between the last checkpoints of two runs, but for times and names."""
    states = [last_checkpoint(folder) for folder in (one, other)]
    for state in states:
        meta = state.pop("meta")
        state["iter"], state["epoch"] = meta["iter"], meta["epoch"]
    return differences(*states)
