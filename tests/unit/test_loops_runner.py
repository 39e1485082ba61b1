"""Loops and hooks through MMEngine's Runner: resuming to the bit, averaged weights, profiles, failures, stop requests."""

from __future__ import annotations

import json
import math
import os
import signal
from itertools import islice
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from itkit.dataset.stream import sample_generator
from itkit.errors import CheckpointError, ConfigError, DataError, TrainingError
from itkit.mm import hooks, loops, optim  # noqa: F401 - registers
from itkit.mm.hooks.ema import EMAHook
from itkit.mm.loops import IterBasedTrainLoop
from itkit.mm.samplers import StreamSampler


class Points(Dataset):
    """Ten noisy points; the noise is the sample's own."""

    def __init__(self, bad: int | None = None, deed=None):
        self.bad, self.deed, self.metainfo = bad, deed, {"classes": ("background", "a")}

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict:
        if index == self.bad:
            self.deed()
        noise = sample_generator(index).normal(size=3)
        return {"inputs": torch.tensor(noise, dtype=torch.float32) + int(index), "data_samples": int(index)}


def stack(samples: list) -> dict:
    return {"inputs": torch.stack([s["inputs"] for s in samples]), "data_samples": [s["data_samples"] for s in samples]}


class Line(BaseModel):
    """A net with a buffer that training changes (batch statistics), a frozen weight and a tied one."""

    def __init__(self, nan_from: int | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)
        self.again = self.first
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.nan_from, self.seen, self.predicted_with, self.inference = nan_from, [], [], []

    def forward(self, inputs, data_samples=None, mode="loss"):
        out = self.last(self.norm(self.first(inputs) + self.frozen(inputs)))
        if mode == "loss":
            self.seen.append(list(data_samples))
            bad = self.nan_from is not None and len(self.seen) > self.nan_from
            return {"loss": out.square().mean() * (math.nan if bad else 1.0), "huge": out.new_tensor(1e38) * 10}
        self.predicted_with.append(self.first.weight.detach().clone())
        self.inference.append(torch.is_inference_mode_enabled())
        return [{"case": c} for c in data_samples]


class Count(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [sample["case"] for sample in data_samples]

    def compute_metrics(self, results):
        return {"cases": len(results), "Dice": 0.5, "undefined": math.nan}


class Breaks(Count):
    def process(self, data_batch, data_samples):
        raise DataError("cannot be measured", "case_3")


def run(folder: Path, iterations: int, *, train=True, **changes) -> Runner:
    """Build a runner over ten points, train it, and return it."""
    options = dict(changes)
    workers = options.pop("workers", 0)
    name = f"{folder}-{iterations}-{len(os.listdir(folder))}"  # MMEngine's loggers want one of their own
    loader = {"dataset": options.pop("dataset", Points()), "batch_size": 2, "num_workers": workers, "collate_fn": stack}
    validate = options.pop("validate", None)
    hooks_now = options.pop("hooks", [{"type": "EMAHook", "decay": 0.9}])
    sampler = options.pop("sampler", {"type": "StreamSampler"})
    if validate:
        case_loader = {**loader, "dataset": Points(), "sampler": {"type": "CaseSampler"}}
        options |= {"val_dataloader": case_loader, "val_cfg": {"type": "ValLoop"}, "val_evaluator": [validate]}
        options |= {"test_dataloader": case_loader, "test_cfg": {"type": "TestLoop"}, "test_evaluator": [validate]}
    runner = Runner(
        model=options.pop("model", None) or Line(),
        work_dir=str(folder),
        train_dataloader={**loader, "sampler": sampler},
        train_cfg={"type": "IterBasedTrainLoop", "max_iters": iterations, **options.pop("train_cfg", {})},
        optim_wrapper={
            "constructor": "mgam_OptimWrapperConstructor",
            "optimizer": {"type": "AdamW", "lr": 0.01},
            "clip_grad": {"max_norm": 1.0},
        },
        param_scheduler=[{"type": "LinearLR", "start_factor": 0.1, "end": 30, "by_epoch": False}],
        default_hooks={
            "checkpoint": {"type": "mmengine.CheckpointHook", "interval": 5, "by_epoch": False},
            "logger": {"type": "LoggerHook", "interval": 2, "log_metric_by_epoch": False},
        },
        custom_hooks=hooks_now,
        log_processor={"by_epoch": False},
        visualizer={
            "type": "Visualizer",
            "name": name,
            "vis_backends": [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}],
        },
        default_scope="itkit",
        experiment_name=name,
        randomness={"seed": 3},
        log_level="ERROR",
        cfg=Config(),
        **options,
    )
    if train:
        runner.train()
    return runner


def saved(folder: Path, iteration: int) -> dict:
    return torch.load(folder / f"iter_{iteration}.pth", weights_only=False)


# ---- resuming ----


@pytest.mark.parametrize("workers", [0, 2])
def test_two_times_n_iterations_equal_n_and_a_resume_and_n(tmp_path, workers):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    one = run(whole, 10, workers=workers)
    first = run(parts, 5)
    second = run(parts, 10, resume=True, workers=workers)
    assert first.model.seen + second.model.seen == one.model.seen
    expected, found = saved(whole, 10), saved(parts, 10)
    for key in ("state_dict", "raw_state_dict"):
        assert expected[key].keys() == found[key].keys()
        for name, tensor in expected[key].items():
            assert torch.equal(tensor, found[key][name]), (key, name)
    assert found["ema_updates"] == 10
    assert found["message_hub"]["runtime_info"]["stream_position"] == 20
    for slot, state in expected["optimizer"]["state"].items():
        assert torch.equal(state["exp_avg"], found["optimizer"]["state"][slot]["exp_avg"])


def test_stream_goes_on_at_the_runners_position(tmp_path):
    runner = run(tmp_path, 2, train=False)
    runner.stream_position = 13
    runner.train()
    expected = [int(i) for i in islice(StreamSampler(Points(), seed=3, start=13), 4)]
    assert [case for batch in runner.model.seen for case in batch] == expected
    assert runner.message_hub.get_info("stream_position") == 17


@pytest.mark.parametrize("kind", ["DefaultSampler", "InfiniteSampler"])
def test_other_samplers_resume_at_the_same_batch(tmp_path, kind):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    sampler = {"type": f"mmengine.{kind}", "shuffle": True}
    one = run(whole, 15, sampler=sampler)
    first = run(parts, 5, sampler=sampler)
    second = run(parts, 15, sampler=sampler, resume=True)
    assert first.model.seen + second.model.seen == one.model.seen
    assert sorted(sum(one.model.seen[5:10], [])) == list(range(10))


def test_epoch_based_training_still_works(tmp_path):
    sampler = {"type": "mmengine.DefaultSampler", "shuffle": True}
    train_cfg = {"type": "EpochBasedTrainLoop", "max_epochs": 2, "max_iters": None}
    runner = build_epochs(tmp_path, sampler, train_cfg)
    runner.train()
    assert len(runner.model.seen) == 10
    with pytest.raises(ConfigError, match="StreamSampler never ends"):
        build_epochs(tmp_path, {"type": "StreamSampler"}, train_cfg).train()


def build_epochs(folder: Path, sampler: dict, train_cfg: dict) -> Runner:
    runner = run(folder, 1, train=False, sampler=sampler)
    runner._train_loop = {key: value for key, value in train_cfg.items() if value is not None}
    return runner


# ---- averaged weights ----


class Recorder(Hook):
    priority = "VERY_HIGH"

    def __init__(self):
        self.weights = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.weights.append(runner.model.last.weight.detach().clone())


@pytest.mark.parametrize("warm_up", [False, True])
def test_average_has_its_closed_form(tmp_path, warm_up):
    recorder = Recorder()
    ema = EMAHook(decay=0.8, warm_up=warm_up)
    start = Line().last.weight.detach()
    run(tmp_path, 5, hooks=[ema, recorder])
    decays = [min(0.8, (1 + t) / (10 + t)) if warm_up else 0.8 for t in range(5)]
    expected = start * math.prod(decays)
    for step, weight in enumerate(recorder.weights):
        expected = expected + weight * (1 - decays[step]) * math.prod(decays[step + 1 :])
    checkpoint = saved(tmp_path, 5)
    assert torch.allclose(checkpoint["state_dict"]["last.weight"], expected, atol=1e-6)
    assert torch.equal(checkpoint["raw_state_dict"]["last.weight"], recorder.weights[-1])
    averaged = checkpoint["state_dict"]
    assert torch.equal(averaged["again.weight"], averaged["first.weight"])  # tied weights stay tied
    assert torch.equal(averaged["norm.running_mean"], checkpoint["raw_state_dict"]["norm.running_mean"])
    assert ema.updates == 5


def test_interval_and_begin_of_the_average(tmp_path):
    recorder, ema = Recorder(), EMAHook(decay=0.5, warm_up=False, interval=2, begin_iter=2)
    run(tmp_path, 5, hooks=[ema, recorder])
    expected = (recorder.weights[1] + recorder.weights[3]) / 2  # a copy until step 2, one update at step 4
    assert torch.allclose(saved(tmp_path, 5)["state_dict"]["last.weight"], expected, atol=1e-7)
    assert ema.updates == 1


def test_validation_and_test_use_the_average_and_training_does_not(tmp_path):
    runner = run(tmp_path, 5, validate=Count(), train_cfg={"val_interval": 5})
    checkpoint = saved(tmp_path, 5)
    assert all(torch.equal(w, checkpoint["state_dict"]["first.weight"]) for w in runner.model.predicted_with)
    assert torch.equal(runner.model.first.weight, checkpoint["raw_state_dict"]["first.weight"])
    assert all(runner.model.inference)
    assert runner.model.training
    fresh = run(tmp_path, 5, validate=Count(), train=False, load_from=str(tmp_path / "iter_5.pth"))
    assert fresh.test()["cases"] == 10
    assert all(torch.equal(w, checkpoint["state_dict"]["first.weight"]) for w in fresh.model.predicted_with)


def test_weights_are_swapped_back_when_validation_fails(tmp_path):
    runner = run(tmp_path, 5, validate=Breaks(), train=False, train_cfg={"val_interval": 5})
    with pytest.raises(DataError, match="case_3: cannot be measured"):
        runner.train()
    assert torch.equal(runner.model.first.weight, saved(tmp_path, 5)["raw_state_dict"]["first.weight"])


def test_checkpoint_without_average_begins_one(tmp_path):
    run(tmp_path, 5, hooks=[])
    assert "raw_state_dict" not in saved(tmp_path, 5)
    run(tmp_path, 10, resume=True)
    assert saved(tmp_path, 10)["ema_updates"] == 5


def test_average_of_another_model_is_refused(tmp_path):
    run(tmp_path, 5)
    hook = EMAHook()
    runner = run(tmp_path, 6, train=False, resume=True, hooks=[hook])
    hook.before_run(runner)
    checkpoint = saved(tmp_path, 5)
    checkpoint["state_dict"]["first.weight"] = torch.zeros(2, 2)
    with pytest.raises(CheckpointError, match=r"first.weight has shape \(3, 3\), the checkpoint has shape \(2, 2\)"):
        hook.after_load_checkpoint(runner, checkpoint)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"decay": 0.9, "momentum": 0.1}, "say the same twice"),
        ({"momentum": 0.99}, "momentum=0.99 is the share of the new weights"),
        ({"decay": 1.0}, "decay=1.0 must be at least 0 and below 1"),
        ({"interval": 0}, "interval=0 must be 1 or more"),
    ],
)
def test_average_refuses_wrong_arguments(options, message):
    with pytest.raises(ConfigError, match=message):
        EMAHook(**options)


def test_momentum_is_mmengines():
    assert EMAHook(momentum=0.0002).decay == pytest.approx(0.9998)


# ---- stopping, validating, failing ----


def test_validation_happens_on_the_interval_and_at_the_end(tmp_path):
    class Seen(Hook):
        at: list = []

        def after_val_epoch(self, runner, metrics=None):
            self.at.append((runner.iter, metrics["cases"]))

    run(tmp_path, 7, validate=Count(), hooks=[Seen()], train_cfg={"val_interval": 2, "val_begin": 4})
    assert Seen.at == [(4, 10), (6, 10), (7, 10)]


def test_early_stopping_ends_the_loop(tmp_path):
    early = {"type": "EarlyStoppingHook", "patience": 2}
    runner = run(tmp_path, 50, validate=Count(), hooks=[early], train_cfg={"val_interval": 3})
    assert runner.iter == 9


def test_stop_request_of_the_runner_is_honoured(tmp_path):
    class Ask(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            runner.stop_training = batch_idx == 3

    assert run(tmp_path, 50, hooks=[Ask()]).iter == 4


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_worker_ends_the_run_with_its_case(tmp_path):
    with pytest.raises(TrainingError, match=r"worker \d of 2 .*SIGKILL.* while loading case index 7"):
        run(tmp_path, 50, workers=2, dataset=Points(7, die))


def test_nan_and_huge_values_reach_every_log_and_then_stop_the_run(tmp_path):
    with pytest.raises(TrainingError, match="the loss is nan at step 8, not finite 3 times in a row since step 6"):
        run(
            tmp_path,
            50,
            model=Line(nan_from=5),
            validate=Count(),
            train_cfg={"val_interval": 2},
            hooks=[{"type": "NonFiniteLossHook", "patience": 3}],
        )
    (log,) = tmp_path.glob("*/vis_data/*_*.json")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert math.isnan(next(r for r in records if r.get("iter") == 6)["loss"])
    assert all(math.isinf(r["huge"]) for r in records if "huge" in r)
    assert list(tmp_path.glob("*/vis_data/events.*"))


def test_batch_sampler_without_a_batch_size_is_refused(tmp_path):
    loop = run(tmp_path, 2, train=False).build_train_loop({"type": "IterBasedTrainLoop", "max_iters": 2})
    loop.dataloader.batch_sampler.batch_size = None
    with pytest.raises(ConfigError, match="BatchSampler does not say its batch_size"):
        next(loop._batches())


def test_loader_without_a_batch_is_refused(tmp_path):
    runner = run(tmp_path, 2, train=False, sampler={"type": "mmengine.DefaultSampler"})
    loader = runner.train_loop.dataloader.batch_sampler
    loader.batch_size, loader.drop_last = 11, True
    with pytest.raises(ConfigError, match="the training loader yields no batch: 10 samples do not fill one batch"):
        runner.train()


@pytest.mark.parametrize(
    "options, message", [({"max_iters": 0}, "max_iters .* got 0"), ({"val_interval": 0.5}, "got 0.5")]
)
def test_loop_refuses_wrong_numbers(options, message):
    with pytest.raises(ConfigError, match=message):
        IterBasedTrainLoop(None, None, **{"max_iters": 1, **options})


# ---- profiling ----


def test_profile_is_written_and_training_goes_on(tmp_path):
    settings = {"wait": 1, "warmup": 1, "active": 2, "out_dir": "trace"}
    cfg = {"type": "IterBasedTrainLoop_SupportProfiler", "profiler": settings}
    profiled = run(tmp_path, 8, train_cfg=cfg)
    (trace,) = (tmp_path / "trace").glob("*.pt.trace.json")
    assert any("aten::linear" in event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"])
    (table,) = (tmp_path / "trace").glob("operators_iter_*.txt")
    assert "aten::" in table.read_text()
    plain_folder = tmp_path / "plain"
    plain_folder.mkdir()
    plain = run(plain_folder, 8, train_cfg={**cfg, "profiler": None})
    assert profiled.iter == plain.iter == 8
    assert torch.equal(profiled.model.last.weight, plain.model.last.weight)


@pytest.mark.parametrize(
    "settings, message",
    [({"activ": 3}, r"unknown key 'activ'.*Did you mean active\?"), ({"activities": ["tpu"]}, "activity 'tpu' is not")],
)
def test_profiler_refuses_unknown_settings(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, 2, train_cfg={"type": "IterBasedTrainLoop_SupportProfiler", "profiler": settings})
