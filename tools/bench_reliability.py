"""Measure what reliability costs: how long saving holds up training, what exact sample streams and a resume cost.

Saving: in one training the time of a plain ``torch.save`` of the same state and the time that training stands still for a
checkpoint are taken turn by turn, on the same disk. Streams: the same training loop over a plain ``RandomSampler`` and over
`StreamSampler` with a generator for each sample, block by block in turns. Resume: a checkpoint far into a training is resumed,
and the samples that are read are counted.

    python tools/bench_reliability.py [--turns 5] [--blocks 20] [--folder D] [--only saving streams resume]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from monai.networks.nets import UNet
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from itkit.dataset.stream import sample_generator
from itkit.mm import checkpoints
from itkit.mm.hooks import EMAHook
from itkit.mm.preparation import prepare
from itkit.mm.runner import ExperimentRunner
from itkit.mm.samplers import StreamSampler
from itkit.registry import DATASETS, FUNCTIONS, MODELS

SIZES = {"5 M": (10, 700), "30 M": (15, 1410)}
"""Layers and width of the networks that are saved; square layers, so parameters are layers x width^2."""


@DATASETS.register_module()
class BenchPoints(Dataset):
    """Vectors of one number each; counts how often it is read."""

    reads = 0
    metainfo = {"classes": ("background", "a")}

    def __init__(self, width: int):
        self.width = width

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict:
        BenchPoints.reads += 1
        return {"inputs": torch.full((self.width,), float(index) / 64)}


@FUNCTIONS.register_module()
def bench_points(samples: list) -> dict:
    return {"inputs": torch.stack([sample["inputs"] for sample in samples])}


@MODELS.register_module()
class BenchLayers(BaseModel):
    """Square layers; all that matters is how large they are."""

    def __init__(self, layers: int, width: int):
        super().__init__()
        self.net = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))

    def forward(self, inputs, mode="loss"):
        return {"loss": self.net(inputs).square().mean()}


def build(folder: Path, layers: int, width: int, iterations: int, *, average: bool = False) -> ExperimentRunner:
    cfg = {
        "model": {"type": "BenchLayers", "layers": layers, "width": width},
        "train_dataloader": {
            "batch_size": 2,
            "num_workers": 0,
            "dataset": {"type": "BenchPoints", "width": width},
            "collate_fn": {"type": "itkit.bench_points"},
        },
        "train_cfg": {"max_iters": iterations, "by_epoch": False},
        "optim_wrapper": {
            "constructor": "mgam_OptimWrapperConstructor",
            "optimizer": {"type": "AdamW", "lr": 1e-4},
        },
        "default_hooks": {"checkpoint": {"type": "itkit.CheckpointHook", "interval": -1, "save_last": False}},
        "custom_hooks": [{"type": "EMAHook"}] if average else [],
        "log_level": "ERROR",
        "log_processor": {"by_epoch": False},
        "visualizer": {"type": "Visualizer", "vis_backends": [{"type": "JSONLinesVisBackend"}]},
    }
    cfg = prepare(Config(cfg), work_dir=folder)
    cfg.experiment_name = f"{folder.name}_{layers}_{time.time_ns()}"
    return ExperimentRunner.from_cfg(cfg)


@contextlib.contextmanager
def closing(runner: ExperimentRunner) -> Iterator[ExperimentRunner]:
    try:
        yield runner
    finally:
        runner.close()


# ---- saving ----


class SaveInTurns(Hook):
    """After some iterations saves plainly and by the runner, in turns, and measures both and the iterations meanwhile.

    Args:
        folder: Where the plain file goes.
        turns: Saves of each kind after the first, which is counted by itself.
    """

    priority = "LOWEST"

    def __init__(self, folder: Path, turns: int):
        self.folder, self.turns = folder, turns
        self.plain: list[tuple[float, float]] = []
        self.blocked: list[tuple[float, float]] = []
        self.proven: list[float] = []
        self.alone: list[float] = []
        self.beside: list[float] = []

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        self._begin = time.perf_counter()

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        spent, thread = time.perf_counter() - self._begin, runner._saving._jobs._thread
        is_saving = thread is not None and thread.is_alive()
        if batch_idx > 2:
            (self.beside if is_saving else self.alone).append(spent)
        if batch_idx < 3 or is_saving or batch_idx % 4:
            return
        if len(self.plain) > self.turns:
            runner.stop_training = True
            return
        runner.finish_saving()
        self.plain.append(timed(lambda: torch.save(plain_state(runner), self.folder / "plain.pth")))
        begin = time.perf_counter()
        self.blocked.append(timed(lambda: runner.save(step=batch_idx + 1, epoch=0, keep=1)))
        if len(self.proven) < 2:  # the first two are waited for, so that their whole length is known
            runner._saving._jobs._thread.join()
            self.proven.append(time.perf_counter() - begin)


def timed(action: Callable[[], Any]) -> tuple[float, float]:
    """Return how long `action` takes on the wall and how much CPU time of this thread, in seconds."""
    wall, cpu = time.perf_counter(), time.thread_time()
    action()
    return time.perf_counter() - wall, time.thread_time() - cpu


def plain_state(runner: ExperimentRunner) -> dict[str, Any]:
    """Return what a plain training script would save of the same state, without copies."""
    state = {"state_dict": runner.model.state_dict(), "optimizer": runner.optim_wrapper.state_dict()}
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            state["average"] = hook._average
    return state


def measure_saving(folder: Path, turns: int) -> None:
    print(
        "saving, seconds on the wall and, after a slash, CPU seconds of the training's thread (median; brackets: first)"
    )
    print(
        f"{'parameters':>14} {'file':>7} {'plain torch.save':>26} {'training blocked':>26} {'share':>11} {'proven after':>13} "
        f"{'iteration alone, beside':>24}"
    )
    for name, (layers, width) in SIZES.items():
        for average in (False, True):
            place = folder / f"{name}_{average}".replace(" ", "")
            place.mkdir(parents=True)
            hook = SaveInTurns(place, turns)
            with closing(build(place, layers, width, 100_000, average=average)) as runner:
                runner.register_hook(hook)
                runner.train()
                size = (place / runner.run_state.last["checkpoint"]).stat().st_size / 1e6
            medians = [
                [statistics.median(v) for v in zip(*kind[1:], strict=True)] for kind in (hook.plain, hook.blocked)
            ]
            cells = [
                f"{wall:.3f} / {cpu:.3f} ({kind[0][0]:.3f})"
                for (wall, cpu), kind in zip(medians, (hook.plain, hook.blocked), strict=True)
            ]
            shares = " / ".join(f"{b / p:.2f}" for p, b in zip(*medians, strict=True))
            beside = f"{1e3 * statistics.median(hook.beside):.0f}" if hook.beside else "-"
            print(
                f"{name + ' + average' * average:>14} {size:4.0f} MB {cells[0]:>26} {cells[1]:>26} {shares:>11} "
                f"{statistics.median(hook.proven):11.2f} s {1e3 * statistics.median(hook.alone):15.0f}, {beside} ms"
            )


# ---- streams ----


class Volumes(Dataset):
    """Volumes (1, 24, 24, 24); `drawn` gives each sample its generator, as itkit's datasets do."""

    def __init__(self, drawn: bool):
        self.drawn = drawn
        self.images = torch.randn(32, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.drawn:
            sample_generator(index)
        return self.images[int(index)]


def measure_streams(blocks: int) -> None:
    torch.manual_seed(0)
    net = UNet(spatial_dims=3, in_channels=1, out_channels=3, channels=(8, 16), strides=(2,), num_res_units=1)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    plain = DataLoader(
        data := Volumes(False), batch_size=2, sampler=RandomSampler(data, replacement=True, num_samples=10**7)
    )
    exact = DataLoader(data := Volumes(True), batch_size=2, sampler=StreamSampler(data, seed=0))
    loaders = {"plain": iter(plain), "exact": iter(exact)}
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for block in range(2 * blocks + 2):
        name = ("plain", "exact")[block % 2 if block // 2 % 2 else 1 - block % 2]
        begin = time.process_time()
        for _ in range(40):
            batch = next(loaders[name])
            optimizer.zero_grad()
            net(batch).square().mean().backward()
            optimizer.step()
        if block > 1:
            seconds[name].append((time.process_time() - begin) / 40)
    lowest = {name: min(values) for name, values in seconds.items()}
    count, sampler = 20_000, iter(StreamSampler(range(200), seed=0))
    begin = time.process_time()
    for _ in range(count):
        sample_generator(next(sampler))
    alone = (time.process_time() - begin) / count
    begin, other = time.process_time(), iter(RandomSampler(range(200), replacement=True, num_samples=count))
    for _ in range(count):
        next(other)
    alone -= (time.process_time() - begin) / count
    iteration = lowest["plain"]
    print("\nexact streams, CPU time of the process")
    print(f"  an iteration (two patches of 24^3, a network of two levels)  plain {1e3 * iteration:.2f} ms, exact "
          f"{1e3 * lowest['exact']:.2f} ms, ratio of the lowest blocks {lowest['exact'] / iteration:.4f}")  # fmt: skip
    print(f"  sampler and generator by themselves, above a RandomSampler   {1e6 * alone:.1f} us a sample, "
          f"{2 * alone / iteration:.3%} of that iteration")  # fmt: skip


# ---- resume ----


def measure_resume(folder: Path) -> None:
    print("\nresume, from the loaded checkpoint to the end of the first iteration")
    for position in (20, 1_000_000):
        place = folder / f"resume_{position}"
        place.mkdir(parents=True)
        steps = position // 2
        with closing(build(place, 2, 100, 10)) as runner:
            runner.train()
            runner.save(step=10, epoch=0, beside=False)
        move(place, steps)
        BenchPoints.reads = 0
        with closing(build(place, 2, 100, steps + 1)) as runner:
            clock = FirstIteration()
            runner.register_hook(clock)
            runner.train()
        print(f"  position {position:>9,}: {1e3 * clock.seconds:8.2f} ms, {BenchPoints.reads} samples read (one batch)")


class FirstIteration(Hook):
    """Measures from the beginning of a training to the end of its first iteration."""

    seconds = 0.0

    def before_train(self, runner) -> None:
        self._begin = time.perf_counter()

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.seconds = time.perf_counter() - self._begin


def move(run_dir: Path, steps: int) -> None:
    """Let the checkpoint of a run be one of `steps` iterations."""
    state = json.loads((run_dir / "run.json").read_text())
    checkpoint = checkpoints.load(run_dir / state["last"]["checkpoint"])
    checkpoint["meta"]["iter"] = steps
    checkpoint["message_hub"]["runtime_info"]["stream_position"] = 2 * steps
    (run_dir / state["last"]["checkpoint"]).unlink()
    digest = checkpoints.save(checkpoint, run_dir / f"checkpoints/iter_{steps}.pth")
    state["last"] = {"step": steps, "checkpoint": f"checkpoints/iter_{steps}.pth", "sha256": digest}
    (run_dir / "run.json").write_text(json.dumps({**state, "kept": [state["last"]], "step": steps, "state": "partial"}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5, help="saves of each kind and size")
    parser.add_argument("--blocks", type=int, default=20, help="blocks of 40 iterations of each stream")
    parser.add_argument("--folder", help="where to write (a folder of the disk that is asked about)")
    parser.add_argument(
        "--only", nargs="+", choices=("saving", "streams", "resume"), default=("saving", "streams", "resume")
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    print(f"torch {torch.__version__}, 1 thread, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if "saving" in arguments.only:
            measure_saving(Path(folder), arguments.turns)
        if "streams" in arguments.only:
            measure_streams(arguments.blocks)
        if "resume" in arguments.only:
            measure_resume(Path(folder))


if __name__ == "__main__":
    main()
