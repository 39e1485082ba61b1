"""Killed by SIGKILL at any iteration and resumed: the same losses, weights and every other state, to the bit."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

import exact_runs
from exact_runs import NoisyPoints, in_child, state_differences, train, train_killed_and_resumed

from itkit.errors import ConfigError
from itkit.experiment.comparison import read_scalars
from itkit.mm import checkpoints
from itkit.mm.background import THREAD_NAME
from itkit.mm.samplers import PlacedBatches

pytestmark = pytest.mark.usefixtures("on_cpu")

EMA = {"type": "EMAHook", "decay": 0.9}
BY_EPOCH = [
    {"type": "LinearLR", "start_factor": 0.1, "begin": 0, "end": 3, "by_epoch": False},
    {"type": "StepLR", "step_size": 1, "gamma": 0.5, "by_epoch": True},
]
PLATEAU = [{"type": "ReduceOnPlateauLR", "monitor": "error", "patience": 1, "threshold": 10.0, "by_epoch": True}]
ONE_CYCLE = [{"type": "OneCycleLR", "eta_max": 0.05, "total_steps": 20, "by_epoch": False}]
FINITE = {"type": "mmengine.DefaultSampler", "shuffle": True}
STOPPING = [EMA, {"type": "EarlyStoppingHook", "monitor": "error", "patience": 2, "min_delta": 100.0}]

CASES = {
    "average, dropout, clipping, schedules": ({}, [[k] for k in range(1, 8)]),
    "loader workers": ({"workers": 2}, [[4], [2, 5, 7]]),
    "gradients added up over three": (
        {"accumulate": 3, "iterations": 9, "checkpoint": {"interval": 2}},
        [[4], [5], [8]],
    ),
    "an endless schedule with functions in it": ({"schedule": ONE_CYCLE, "hooks": []}, [[4], [7]]),
    "a finite sampler, iterations": ({"sampler": FINITE, "workers": 2, "iterations": 9}, [[4], [7]]),
    "epochs, schedules by both, saved within": (
        {"epochs": 2, "schedule": BY_EPOCH, "validate": 1, "workers": 2},
        [[4], [5], [6], [9]],
    ),
    "epochs, plateau, saved at their ends": (
        {"epochs": 4, "schedule": PLATEAU, "validate": 1, "checkpoint": {"by_epoch": True, "interval": 1}},
        [[6], [11, 17]],
    ),
    "epochs that are no multiple of the accumulation": (
        {"epochs": 3, "accumulate": 3, "validate": 1, "checkpoint": {"by_epoch": True, "interval": 1}},
        [[7], [13]],
    ),
    "Muon": (
        {
            "optim_wrapper": {
                "constructor": "MuonOptimWrapperConstructor",
                "optimizer": {"type": "Muon", "lr": 0.02, "weight_decay": 0.01, "adamw_lr": 0.01},
            }
        },
        [[4], [7]],
    ),
    "several groups of parameters": (
        {
            "optim_wrapper": {
                "optimizer": {"type": "AdamW", "lr": 0.02, "weight_decay": 0.1},
                "paramwise_cfg": {"bias_decay_mult": 0.0, "custom_keys": {"last": {"lr_mult": 0.1}}},
            }
        },
        [[4], [7]],
    ),
    "early stopping": ({"hooks": STOPPING, "validate": 2, "iterations": 20}, [[3], [5]]),
}


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed_is_the_uninterrupted_run_to_the_bit(tmp_path, name):
    settings, kills = CASES[name]
    train(tmp_path / "whole", **settings)  # here, so that the copies of this process find everything imported
    for number, at in enumerate(kills):
        folder = tmp_path / f"parts_{number}"
        train_killed_and_resumed(folder, at, **settings)
        assert state_differences(tmp_path / "whole", folder) == [], at
        states = [json.loads((f / "run.json").read_text()) for f in (tmp_path / "whole", folder)]
        assert all(states[0][key] == states[1][key] for key in ("state", "step"))
        assert (states[0]["best"] or {}).get("value") == (states[1]["best"] or {}).get("value")
        assert logged(tmp_path / "whole") == logged(folder)


def logged(folder: Path) -> dict:
    """What scalars.jsonl says of each step, times left out; a line that was written again counts once."""
    rows = read_scalars(folder / "scalars.jsonl")
    kept = [{k: v for k, v in row.items() if k not in ("time", "iter_time", "data_time", "data_wait")} for row in rows]
    return {(row["split"], row["step"]): row for row in kept}


def test_same_samples_with_and_without_workers(tmp_path):
    for sampler in (None, FINITE):
        folders = [tmp_path / f"{bool(sampler)}_{workers}" for workers in (0, 3)]
        for folder, workers in zip(folders, (0, 3), strict=True):
            train(folder, workers=workers, sampler=sampler)
        assert state_differences(*folders) == []


@pytest.mark.parametrize("settings", [{}, {"sampler": FINITE}, {"epochs": 2, "validate": None}], ids=str)
def test_resuming_reads_the_batches_it_trains_on_and_no_other(tmp_path, settings):
    train(tmp_path, **{"validate": None, "iterations": 6, **settings}, at=6, action=lambda runner: _stop(runner))
    NoisyPoints.reads = 0
    runner = train(tmp_path, **{"validate": None, "iterations": 7, **settings})
    assert NoisyPoints.reads == 2 * (runner.max_iters - 6)


def _stop(runner) -> None:
    runner.stop_training = True


@pytest.mark.parametrize("call", [1, 4, 9, 30])
@pytest.mark.parametrize("at", [0, 1])
def test_killed_inside_the_writing_of_a_checkpoint(tmp_path, call, at):
    """Die at a certain write of the first or second checkpoint's file, in the thread that writes it."""

    def disturbed() -> None:
        saves, calls = [], []
        save, write = checkpoints.save, checkpoints._Digesting.write

        def counted_save(*args, **kwargs):
            saves.append(1)
            return save(*args, **kwargs)

        def deadly_write(self, data):
            if len(saves) == at + 1:
                calls.append(1)
                if len(calls) == call:
                    write(self, bytes(data)[: len(data) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
            return write(self, data)

        checkpoints.save, checkpoints._Digesting.write = counted_save, deadly_write
        train(tmp_path / "parts")

    train(tmp_path / "whole")
    assert in_child(disturbed) == -signal.SIGKILL
    assert in_child(lambda: train(tmp_path / "parts")) == 0
    assert state_differences(tmp_path / "whole", tmp_path / "parts") == []
    assert not list(tmp_path.glob("parts/**/.*")), "nothing is left over"


def test_killed_while_a_slow_disk_still_writes_the_checkpoint_of_before(tmp_path):
    def disturbed() -> None:
        flush = os.fsync

        def very_slow(handle: int) -> None:
            if threading.current_thread().name == THREAD_NAME:
                threading.Event().wait()
            flush(handle)

        os.fsync = very_slow
        train(tmp_path / "parts", at=5, validate=None)

    train(tmp_path / "whole", validate=None)
    assert in_child(disturbed) == -signal.SIGKILL
    assert not list((tmp_path / "parts/checkpoints").glob("iter_*")), "the checkpoint of step 3 was still being written"
    assert in_child(lambda: train(tmp_path / "parts", validate=None)) == 0
    assert state_differences(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.parametrize("settings", [{}, {"accumulate": 3, "iterations": 9}, {"epochs": 2, "validate": 1}], ids=str)
@pytest.mark.parametrize("at", [2, 4, 5])
def test_asked_to_stop_and_resumed(tmp_path, settings, at):
    train(tmp_path / "whole", **settings)
    first = train(tmp_path / "parts", at=at, action=_stop, **settings)
    expected = -(-at // settings.get("accumulate", 1)) * settings.get("accumulate", 1)
    assert first.iter == expected, "a stop waits for the optimizer's step"
    state = json.loads((tmp_path / "parts/run.json").read_text())
    assert (state["state"], state["step"]) == ("partial", expected)
    train(tmp_path / "parts", **settings)
    assert state_differences(tmp_path / "whole", tmp_path / "parts") == []


def test_asked_to_stop_right_after_a_validation_does_not_validate_twice(tmp_path):
    """The counter of early stopping would move twice."""
    settings = {"hooks": STOPPING, "validate": 4, "iterations": 20}
    train(tmp_path / "whole", **settings)
    runner = exact_runs.build(tmp_path / "parts", **settings)

    class StopAfterValidation(exact_runs.Hook):
        def after_val_epoch(self, runner, metrics=None):
            runner.stop_training = True

    runner.register_hook(StopAfterValidation())
    try:
        runner.train()
    finally:
        runner.close()
    assert runner.iter == 4
    train(tmp_path / "parts", **settings)
    assert state_differences(tmp_path / "whole", tmp_path / "parts") == []


def test_state_of_hooks_is_part_of_the_checkpoint(tmp_path):
    """Three losses that are not finite in a row, the resume between the second and the third."""
    hooks = [{"type": "NonFiniteLossHook", "patience": 3}]

    def poison(runner) -> None:
        forward = runner.model.forward
        runner.model.forward = lambda *a, **k: {n: v * float("nan") for n, v in forward(*a, **k).items()}

    quiet = {"hooks": hooks, "validate": None, "checkpoint": {"interval": -1}, "optim_wrapper": {"clip_grad": None}}
    runner = exact_runs.build(tmp_path, **quiet)
    hook = next(h for h in runner.hooks if type(h).__name__ == "NonFiniteLossHook")
    hook.in_a_row = 2
    try:
        runner.register_hook(exact_runs.AtIteration(1, lambda r: setattr(hook, "in_a_row", 2) or _stop(r)))
        runner.train()
    finally:
        runner.close()
    again = exact_runs.build(tmp_path, **quiet)
    hook = next(h for h in again.hooks if type(h).__name__ == "NonFiniteLossHook")
    seen = []
    again.register_hook(exact_runs.AtIteration(2, _stop))
    before = type(hook).before_train
    type(hook).before_train = lambda self, runner: (before(self, runner), seen.append(self.in_a_row))
    try:
        again.train()
    finally:
        type(hook).before_train = before
        again.close()
    assert seen == [2]


def test_position_of_finite_samplers_does_not_depend_on_processes():
    """Samples of a global batch have the same positions on one process and on two."""

    class Order(list):
        pass

    def batches(rank: int, world: int, size: int) -> list:
        order = list(range(8))[rank::world]
        placed = PlacedBatches([order[i : i + size] for i in range(0, len(order), size)], len(order), 7, rank, world)
        placed.begin(2, left_out=1)
        return list(placed)

    alone, both = batches(0, 1, 4), [batches(rank, 2, 2) for rank in (0, 1)]
    assert len(alone) == len(both[0]) == len(both[1]) == 1
    together = {int(i): i.position for part in both for i in part[0]}
    assert together == {int(i): i.position for i in alone[0]}
    assert sorted(together.values()) == [20, 21, 22, 23]
    assert all(i.seed == 7 for i in alone[0])


def test_epochs_refuse_the_endless_stream(tmp_path):
    with pytest.raises(ConfigError, match="StreamSampler never ends"):
        train(tmp_path, epochs=2, sampler={"type": "StreamSampler"})


def test_generators_of_the_process_are_restored(tmp_path):
    """The comparison of whole runs would notice if they were not: dropout draws from them."""
    torch.manual_seed(0)
    state = checkpoints.random_state()
    expected = torch.rand(3)
    torch.rand(100)
    checkpoints.set_random_state(state)
    assert torch.equal(torch.rand(3), expected)
