"""A resume with another config or other data: what may change freely, what is asked for, how it is shown, what then happens."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from exact_runs import last_checkpoint, state_differences, train

from itkit.errors import ChangedRun
from itkit.mm import schedules
from itkit.mm.changes import config_changes, data_changes, describe_config

pytestmark = pytest.mark.usefixtures("on_cpu")

BASE = {
    "model": {
        "type": "SemSeg3D",
        "num_classes": 3,
        "backbone": {"type": "monai.UNet", "channels": (4, 8), "dropout": 0.1},
    },
    "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "AdamW", "lr": 0.02}},
    "param_scheduler": [
        {"type": "LinearLR", "start_factor": 0.01, "end": 100, "by_epoch": False},
        {"type": "CosineAnnealingLR", "begin": 100, "end": 2000, "T_max": 1900, "eta_min": 0.0, "by_epoch": False},
        {"type": "MultiStepLR", "milestones": [1000, 1500], "gamma": 0.5, "by_epoch": False},
    ],
    "train_cfg": {"type": "itkit.IterBasedTrainLoop", "max_iters": 2000, "val_interval": 500},
    "train_dataloader": {
        "batch_size": 2,
        "num_workers": 1,
        "dataset": {
            "type": "SeriesVolumeDataset",
            "data_root": "/a",
            "cache": "none",
            "pipeline": [{"type": "LoadVolume"}, {"type": "RandomFlip", "prob": 0.5, "axes": (2,)}, {"type": "ZScore"}],
        },
    },
    "val_dataloader": {"batch_size": 1, "dataset": {"type": "SeriesVolumeDataset", "split": "val"}},
    "val_evaluator": {"type": "SegmentationMetric", "measures": ("Dice",)},
    "randomness": {"seed": 0},
    "default_hooks": {"logger": {"type": "LoggerHook", "interval": 10}, "checkpoint": {"type": "itkit.CheckpointHook"}},
    "custom_hooks": [{"type": "EMAHook", "decay": 0.99}, {"type": "OverlayHook"}],
    "work_dir": "/w",
    "visualizer": {"type": "Visualizer"},
    "free_variable": 3,
}


def changed(**values) -> list:
    """The changes after setting dotted keys (``__`` for a dot); None as a value removes the key."""
    now = copy.deepcopy(BASE)
    for key, value in values.items():
        node = now
        *parents, last = key.split("__")
        for part in parents:
            node = node[int(part) if part.isdigit() else part]
        if value is None:
            del node[int(last) if last.isdigit() else last]
        else:
            node[int(last) if last.isdigit() else last] = value
    return config_changes(describe_config(BASE), describe_config(now), known_data=("train", "val"))


@pytest.mark.parametrize(
    "values",
    [
        {"train_cfg__max_iters": 4000},
        {"train_cfg__val_interval": 100},
        {"train_cfg__type": "itkit.IterBasedTrainLoop_SupportProfiler"},
        {"train_dataloader__num_workers": 8},
        {"train_dataloader__pin_memory": True},
        {"train_dataloader__batch_size": 1},  # the global batch is compared by itself
        {"train_dataloader__dataset__cache": "memory"},
        {"train_dataloader__dataset__data_root": "/b"},  # the contents are compared by themselves
        {"val_dataloader__batch_size": 4},
        {"default_hooks__logger": {"type": "LoggerHook", "interval": 5}},
        {"default_hooks__checkpoint": {"type": "itkit.CheckpointHook", "interval": 100, "max_keep_ckpts": -1}},
        {"custom_hooks": [{"type": "EMAHook", "decay": 0.99}, {"type": "EarlyStoppingHook", "patience": 3}]},
        {"work_dir": "/v"},
        {"visualizer": {"type": "Other"}},
        {"free_variable": 4},
        {"cpu_threads": 4},
        {"parallel": "ddp"},
        {"env_cfg": {"cudnn_benchmark": True}},
        {"test_evaluator": {"type": "Other"}},
    ],
    ids=lambda values: next(iter(values)),
)
def test_what_may_change_freely(values):
    assert [str(change) for change in changed(**values) if not change.is_free] == []


@pytest.mark.parametrize(
    "values, text",
    [
        ({"model__backbone__channels": (8, 16)}, "model.backbone.channels: [4, 8] -> [8, 16]"),
        ({"model__backbone__dropout": None}, "model.backbone.dropout: removed 0.1"),
        ({"model__backbone__act": "relu"}, "model.backbone.act: added 'relu'"),
        ({"optim_wrapper__optimizer__lr": 0.01}, "optim_wrapper.optimizer.lr: 0.02 -> 0.01"),
        (
            {"optim_wrapper__optimizer": {"type": "SGD", "lr": 0.02}},
            "optim_wrapper.optimizer: AdamW(lr=0.02) -> SGD(lr=0.02)",
        ),
        ({"optim_wrapper__accumulative_counts": 4}, "optim_wrapper.accumulative_counts: added 4"),
        ({"param_scheduler__1__eta_min": 0.1}, "param_scheduler[1].eta_min: 0.0 -> 0.1"),
        ({"param_scheduler__1__T_max": 100}, "param_scheduler[1].T_max: 1900 -> 100"),
        (
            {"param_scheduler__0": None},
            "param_scheduler[0]: removed LinearLR(start_factor=0.01, end=100, by_epoch=False)",
        ),
        ({"train_cfg__type": "EpochBasedTrainLoop"}, "-> EpochBasedTrainLoop("),
        (
            {"train_dataloader__dataset__pipeline__1__prob": 0.7},
            "train_dataloader.dataset.pipeline[1].prob: 0.5 -> 0.7",
        ),
        (
            {"train_dataloader__dataset__pipeline__1": None},
            "train_dataloader.dataset.pipeline[1]: removed RandomFlip(prob=0.5, axes=[2])",
        ),
        ({"randomness__seed": 1}, "randomness.seed: 0 -> 1"),
        ({"precision": "bf16"}, "precision: added 'bf16'"),
        ({"compile": {"mode": "default"}}, "compile: added {mode: 'default'}"),
        ({"val_evaluator__measures": ("HD",)}, "val_evaluator.measures: ['Dice'] -> ['HD']"),
        ({"val_dataloader__dataset__split": "test"}, "val_dataloader.dataset.split: 'val' -> 'test'"),
        ({"custom_hooks__0__decay": 0.9}, "hooks.EMAHook.decay: 0.99 -> 0.9"),
        ({"custom_hooks__0": None}, "hooks.EMAHook: removed EMAHook(decay=0.99)"),
        ({"custom_hooks": [*BASE["custom_hooks"], {"type": "MyHook"}]}, "hooks.MyHook: added MyHook()"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_asked_for_and_how_it_reads(values, text):
    (change,) = [change for change in changed(**values) if not change.is_free]
    assert text in str(change)


def test_a_transform_in_the_middle_does_not_shift_the_rest():
    pipeline = [*BASE["train_dataloader"]["dataset"]["pipeline"]]
    pipeline.insert(1, {"type": "RandomGamma", "prob": 0.3})
    (change,) = changed(train_dataloader__dataset__pipeline=pipeline)
    assert str(change) == "train_dataloader.dataset.pipeline[1]: added RandomGamma(prob=0.3)"


def test_class_and_registered_name_are_the_same():
    class LoadVolume:
        pass

    assert changed(train_dataloader__dataset__pipeline__0__type=LoadVolume) == []
    assert changed(train_dataloader__dataset__pipeline__0__type="itkit.LoadVolume") == []


@pytest.mark.parametrize(
    "length, end, t_max, milestones",
    [(4000, 4000, 3900, [1000, 1500]), (4000, 4000, 3900, [2000, 3000]), (1500, 1500, 1400, [1000, 1500])],
)
def test_schedule_that_follows_the_length_of_the_training_is_free(length, end, t_max, milestones):
    changes = changed(
        train_cfg__max_iters=length,
        param_scheduler__1__end=end,
        param_scheduler__1__T_max=t_max,
        param_scheduler__2__milestones=milestones,
    )
    assert changes
    assert all(change.is_free for change in changes)
    assert not any(c.is_free for c in changed(param_scheduler__1__end=end)), "without another length nothing follows it"


def test_differences_of_data_name_the_cases():
    before = {"cases": {"train": 4, "val": 2}, "fingerprint": {"train": "x", "val": "v"}}
    now = {"cases": {"train": 4, "val": 2}, "fingerprint": {"train": "y", "val": "v"}}
    cases = [{"train": {"a": "1", "b": "2", "c": "3"}}, {"train": {"a": "1", "b": "9", "d": "4"}}]
    (change,) = data_changes(before, now, *cases)
    assert str(change) == "training data: 1 added (d); 1 removed (c); 1 changed (b)"
    (change,) = data_changes(before, now, None, cases[1])
    assert str(change) == "training data: the contents differ (which cases is not known)"
    (change,) = data_changes({"cases": {"train": 8}}, {"cases": {"train": 9}})
    assert str(change) == "training data: 8 -> 9 samples"
    assert [str(c) for c in data_changes({"cases": {"train": 4, "val": 2}}, {"cases": {"train": 4}})] == [
        "validation data: are gone"
    ]
    assert data_changes(before, before) == []


# ---- through the runner ----


def refused(folder: Path, **settings) -> str:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and "logs" not in p.parts}
    with pytest.raises(ChangedRun) as caught:
        train(folder, **settings)
    after = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and "logs" not in p.parts}
    assert after == before, "a refused run is as it was"
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_refusal_shows_all_differences_and_the_flag(tmp_path):
    train(tmp_path)
    text = refused(tmp_path, iterations=9, optim_wrapper={"optimizer": {"type": "AdamW", "lr": 0.01}}, hooks=[])
    assert text.splitlines() == [
        f"{tmp_path}/checkpoints/iter_8.pth: going on from step 8 would not be the training that began:",
        "  optim_wrapper.optimizer.lr: 0.02 -> 0.01",
        "  hooks.EMAHook: removed EMAHook(decay=0.9)",
        "Put it back as it was; or go on with what it is now: --resume-changed; or start anew under another name.",
    ]


def test_another_number_of_samples_in_a_batch_is_another_training(tmp_path):
    train(tmp_path, validate=None)
    loader = {"batch_size": 4, "dataset": {"type": "NoisyPoints"}, "collate_fn": {"type": "itkit.stack_points"}}
    text = refused(tmp_path, validate=None, iterations=9, config={"train_dataloader": loader})
    assert "  global batch: 2 -> 4 samples an iteration (batch_size times processes)" in text


def test_changes_that_were_agreed_to_are_written_down_and_not_asked_for_again(tmp_path):
    train(tmp_path)
    changed = {"optim_wrapper": {"optimizer": {"type": "AdamW", "lr": 0.01}}}
    train(tmp_path, iterations=9, resume_changed=True, **changed)
    train(tmp_path, iterations=10, **changed)
    (note,) = json.loads((tmp_path / "run.json").read_text())["changes"]
    assert note == {"step": 8, "changes": ["optim_wrapper.optimizer.lr: 0.02 -> 0.01"]}


CONSTANT = [{"type": "ConstantLR", "factor": 1.0, "by_epoch": False, "end": 5}]
STEPS = [{"type": "StepLR", "step_size": 3, "gamma": 0.5, "by_epoch": False}]


def cosine(length: int) -> list:
    return [{"type": "CosineAnnealingLR", "T_max": length, "by_epoch": False, "end": length}]


@pytest.mark.parametrize("schedule", [CONSTANT, STEPS, []], ids=["fixed end", "end follows by itself", "none"])
@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}], ids=str)
def test_extended_training_is_the_longer_one_to_the_bit(tmp_path, schedule, settings):
    """Where the learning rates up to the old end do not depend on the length."""
    settings = {"schedule": schedule, "validate": None, **settings}
    train(tmp_path / "long", iterations=12, **settings)
    train(tmp_path / "extended", iterations=8, **settings)
    train(tmp_path / "extended", iterations=12, **settings)
    assert state_differences(tmp_path / "long", tmp_path / "extended") == []


def test_schedule_that_follows_the_length_is_stretched_from_the_resumed_step_on(tmp_path):
    """The learning rate at each step is that of the config's schedule at this step, from the old end on."""
    train(tmp_path / "long", iterations=12, schedule=cosine(12), validate=None)
    train(tmp_path / "extended", iterations=8, schedule=cosine(8), validate=None)
    train(tmp_path / "extended", iterations=12, schedule=cosine(12), validate=None)
    rates = [
        last_checkpoint(tmp_path / name)["message_hub"]["log_scalars"]["train/lr"][0].tolist()
        for name in ("long", "extended")
    ]
    assert rates[1][8:] == rates[0][8:]
    short = [0.01 * (1 + torch.cos(torch.tensor(torch.pi * i / 8, dtype=torch.float64)).item()) for i in range(8)]
    assert rates[1][:8] == pytest.approx(short, abs=1e-12)


def test_shortened_training_ends_earlier(tmp_path):
    train(tmp_path, iterations=8, at=3, action=lambda runner: setattr(runner, "stop_training", True))
    assert train(tmp_path, iterations=5).iter == 5


def test_changed_learning_rate_is_that_of_the_config_from_the_resumed_step_on(tmp_path):
    train(tmp_path, schedule=STEPS, validate=None)
    other = {"optim_wrapper": {"optimizer": {"type": "AdamW", "lr": 0.4, "weight_decay": 0.3}}}
    train(tmp_path, iterations=9, schedule=STEPS, validate=None, resume_changed=True, **other)
    state = last_checkpoint(tmp_path)
    group = state["optimizer"]["param_groups"][0]
    assert (group["initial_lr"], group["weight_decay"]) == (0.4, 0.3)
    assert state["message_hub"]["log_scalars"]["train/lr"][0][-1] == 0.4 * 0.25
    assert float(state["optimizer"]["state"][0]["step"]) == 9, "what the optimizer has gathered stays"


def test_another_optimizer_begins_with_a_fresh_state(tmp_path):
    train(tmp_path, validate=None)
    other = {"optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}}}
    train(tmp_path, iterations=9, validate=None, resume_changed=True, **other)
    state = last_checkpoint(tmp_path)["optimizer"]["state"]
    assert all("momentum_buffer" in entry and "exp_avg" not in entry for entry in state.values())


def test_changed_seed_and_data_take_effect(tmp_path):
    train(tmp_path / "a", validate=None, iterations=8)
    train(tmp_path / "b", validate=None, iterations=8)
    train(tmp_path / "a", validate=None, iterations=10)
    train(tmp_path / "b", validate=None, iterations=10, resume_changed=True, config={"randomness": {"seed": 4}})
    assert state_differences(tmp_path / "a", tmp_path / "b")


def test_checkpoint_that_does_not_say_its_config_is_resumed(tmp_path):
    """Those of older versions."""
    from itkit.mm import checkpoints

    train(tmp_path, validate=None)
    state = last_checkpoint(tmp_path)
    del state["meta"]["start"], state["hooks"]
    state["random"] = state["random"][0]
    state["message_hub"] = state["message_hub"]["runtime_info"]
    run = json.loads((tmp_path / "run.json").read_text())
    run["last"]["sha256"] = run["kept"][-1]["sha256"] = checkpoints.save(state, tmp_path / run["last"]["checkpoint"])
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert (
        train(tmp_path, validate=None, iterations=9, optim_wrapper={"optimizer": {"type": "AdamW", "lr": 0.01}}).iter
        == 9
    )


# ---- run.json ----


def test_lost_run_json_is_made_anew_from_the_newest_checkpoint(tmp_path):
    train(tmp_path / "whole", iterations=12)
    train(tmp_path / "lost", iterations=8)
    before = json.loads((tmp_path / "lost/run.json").read_text())
    (tmp_path / "lost/run.json").unlink()
    train(tmp_path / "lost", iterations=12)
    assert state_differences(tmp_path / "whole", tmp_path / "lost") == []
    states = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("whole", "lost")]
    keys = ("step", "metric", "value")
    assert {k: states[0]["best"][k] for k in keys} == {k: states[1]["best"][k] for k in keys}
    assert states[1]["cpu_minutes"] >= before["cpu_minutes"] * 0.5
    assert len(list((tmp_path / "lost/checkpoints").glob("best_*"))) == 1


def test_best_that_is_newer_than_the_checkpoint_is_found_again(tmp_path):
    """The checkpoint of step 3 does not know the best of step 5; the way is gone again, and the validation repeated."""
    settings = {"checkpoint": {"interval": 3, "save_last": False}, "iterations": 5, "validate": 5}
    train(tmp_path, **settings)
    best = json.loads((tmp_path / "run.json").read_text())["best"]
    assert best["step"] == 5
    (tmp_path / "run.json").unlink()
    train(tmp_path, **settings)
    again = json.loads((tmp_path / "run.json").read_text())["best"]
    assert (again["step"], again["value"]) == (5, best["value"])
    assert [p.name for p in (tmp_path / "checkpoints").glob("best_*")] == ["best_iter_5.pth"]


# ---- schedules ----


def built(config: list[dict], lr: float = 0.1):
    model = torch.nn.Linear(1, 1)
    wrapper = build_optim_wrapper(model, {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": lr}})
    return wrapper, [PARAM_SCHEDULERS.build(entry, default_args={"optimizer": wrapper}) for entry in config]


SEVERAL = [
    {"type": "LinearLR", "start_factor": 0.1, "begin": 0, "end": 4, "by_epoch": False},
    {"type": "CosineAnnealingLR", "begin": 4, "T_max": 20, "end": 24, "by_epoch": False},
    {"type": "StepLR", "step_size": 1, "gamma": 0.9, "by_epoch": True},
]


@pytest.mark.parametrize("steps", [0, 1, 4, 5, 11, 15])
def test_replay_is_what_training_does(steps):
    trained, schedulers = built(SEVERAL)
    for step in range(1, steps + 1):
        trained.optimizer.step()
        for scheduler in schedulers[:2]:
            scheduler.step()
        if step % 5 == 0:
            schedulers[2].step()
    replayed, fresh = built(SEVERAL)
    schedules.replay(fresh, steps, epochs=steps // 5, epoch_length=5)
    assert replayed.param_groups[0]["lr"] == trained.param_groups[0]["lr"]
    assert schedules.schedule_states(fresh) == schedules.schedule_states(schedulers)


def test_settings_are_told_from_progress():
    _, one = built(SEVERAL)
    schedules.replay(one, 7)
    states = schedules.schedule_states(one)
    assert not schedules.differ(built(SEVERAL)[1], states)
    assert schedules.differ(built(SEVERAL[:2])[1], states)
    assert schedules.differ(built([{**SEVERAL[0], "end": 5}, *SEVERAL[1:]])[1], states)
    assert schedules.differ(built(SEVERAL, lr=0.2)[1], states)


def test_function_of_a_schedule_is_not_written_as_text():
    """A resumed one-cycle schedule used to call a string."""
    config = [{"type": "OneCycleLR", "eta_max": 0.5, "total_steps": 10, "by_epoch": False}]
    _, one = built(config)
    schedules.replay(one, 3)
    state = schedules.schedule_states(one)
    assert not any(isinstance(value, str) and "function" in value for value in state[0].values())
    wrapper, other = built(config)
    state[0]["anneal_func"] = "<function of an older version>"
    schedules.load_schedules(other, state)
    other[0].step()
    one[0].step()
    assert wrapper.param_groups[0]["lr"] == one[0].optimizer.param_groups[0]["lr"]
