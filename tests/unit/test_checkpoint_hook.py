"""When checkpoints are written, beside what, and what happens when they cannot be."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

import exact_runs
from exact_runs import AtIteration, last_checkpoint, train

from itkit.errors import ConfigError, TrainingError, UntrustedCheckpoint
from itkit.mm import checkpoints
from itkit.mm.hooks import CheckpointHook

pytestmark = pytest.mark.usefixtures("on_cpu")


def steps(folder: Path) -> list[int]:
    return sorted(int(p.stem.rpartition("_")[2]) for p in (folder / "checkpoints").glob("iter_*.pth"))


def state(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def stop(runner) -> None:
    runner.stop_training = True


# ---- when ----


@pytest.mark.parametrize(
    "hook, iterations, expected",
    [
        ({"interval": 3, "max_keep_ckpts": -1}, 8, [3, 6, 8]),
        ({"interval": 3, "max_keep_ckpts": -1, "save_begin": 4}, 8, [4, 7, 8]),
        ({"interval": 3, "max_keep_ckpts": -1, "save_last": False}, 8, [3, 6]),
        ({"interval": 3, "max_keep_ckpts": 1}, 8, [8]),
        ({"interval": -1}, 8, [8]),
    ],
)
def test_steps_that_are_saved(tmp_path, hook, iterations, expected):
    train(tmp_path, checkpoint=hook, iterations=iterations)
    assert steps(tmp_path) == expected
    assert [record["step"] for record in state(tmp_path)["kept"]] == expected
    for record in state(tmp_path)["kept"]:
        assert checkpoints.sha256(tmp_path / record["checkpoint"]) == record["sha256"], "of every one that is kept"


def test_checkpoint_waits_for_the_optimizers_step(tmp_path):
    train(tmp_path, accumulate=4, checkpoint={"interval": 3, "max_keep_ckpts": -1}, iterations=10)
    assert steps(tmp_path) == [4, 8, 10], "3 waits for 4, 6 for 8; 9 and the end meet"


def test_epochs_are_counted_where_the_loop_counts_them(tmp_path):
    train(tmp_path, epochs=4, validate=None, checkpoint={"by_epoch": None, "interval": 2, "max_keep_ckpts": -1})
    assert steps(tmp_path) == [10, 20]
    assert last_checkpoint(tmp_path)["meta"]["epoch"] == 4


def test_save_now_saves_what_is_not_saved_and_nothing_twice(tmp_path, monkeypatch):
    runner = exact_runs.build(tmp_path, checkpoint={"interval": 4, "max_keep_ckpts": -1, "save_last": False})
    runner.register_hook(AtIteration(5, stop))
    try:
        runner.train()
        runner.save_now()
        assert state(tmp_path)["last"]["step"] == 5, "proven and recorded when it returns"
        monkeypatch.setattr(checkpoints, "save", lambda *a, **k: pytest.fail("saved twice"))
        runner.save_now()
    finally:
        runner.close()
    assert steps(tmp_path) == [4, 5]


def test_save_now_between_two_steps_of_the_optimizer_keeps_the_one_before(tmp_path, caplog):
    runner = exact_runs.build(tmp_path, accumulate=3, checkpoint={"interval": 3})

    class Look(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 5:
                runner.save_now()

    runner.register_hook(Look())
    runner.logger.addHandler(caplog.handler)
    runner.logger.setLevel(logging.WARNING)
    try:
        runner.train()
    finally:
        runner.close()
    assert "step 5 lies between two steps of the optimizer" in caplog.text
    assert steps(tmp_path) == [6, 8]


def test_hooks_of_others_can_save_through_the_runner(tmp_path):
    def save(runner) -> None:
        runner.save_checkpoint("anywhere", "iter_2.pth", by_epoch=False)

    train(tmp_path, at=2, action=save, checkpoint={"max_keep_ckpts": -1})
    assert steps(tmp_path) == [2, 3, 6, 8]


# ---- best ----


def test_best_of_a_saved_step_is_a_copy_and_else_a_file_of_its_own(tmp_path):
    train(tmp_path / "both", checkpoint={"interval": 4}, validate=4, iterations=4)
    best = state(tmp_path / "both")["best"]
    assert (best["checkpoint"], best["sha256"]) == (
        "checkpoints/best_iter_4.pth",
        state(tmp_path / "both")["last"]["sha256"],
    )
    folder = tmp_path / "both/checkpoints"
    assert (folder / "iter_4.pth").read_bytes() == (folder / "best_iter_4.pth").read_bytes()
    train(tmp_path / "own", checkpoint={"interval": 3, "save_last": False}, validate=4, iterations=4)
    record = state(tmp_path / "own")["best"]
    saved = checkpoints.load(tmp_path / "own" / record["checkpoint"], sha256_expected=record["sha256"])
    assert saved["meta"]["iter"] == 4
    assert saved["message_hub"]["runtime_info"]["validated_step"] == 4


def test_best_is_kept_by_value(tmp_path):
    values = iter([0.5, 0.3, 0.4, float("nan")])

    class Told(Hook):
        priority = "VERY_HIGH"

        def after_val_epoch(self, runner, metrics=None):
            metrics["error"] = next(values)

    runner = exact_runs.build(
        tmp_path, validate=2, checkpoint={"interval": 2, "max_keep_ckpts": 1, "save_best": "error"}
    )
    runner.register_hook(Told())
    try:
        runner.train()
    finally:
        runner.close()
    best = state(tmp_path)["best"]
    assert (best["step"], best["value"], best["metric"]) == (4, 0.3, "error")
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["best_iter_4.pth", "iter_8.pth"]


def test_unknown_metric_is_named(tmp_path):
    with pytest.raises(ConfigError, match='save_best = "Dice", but validation gives error'):
        train(tmp_path, checkpoint={"save_best": "Dice"})


@pytest.mark.parametrize(
    "options, text", [({"max_keep_ckpts": 0}, "nothing to resume from"), ({"rule": "more"}, "neither")]
)
def test_wrong_arguments(options, text):
    with pytest.raises(ConfigError, match=text):
        CheckpointHook(**options)


# ---- beside the training ----


def slow_disk(monkeypatch) -> tuple[threading.Event, list[int]]:
    """Let every checkpoint's file wait for the event; the list has the steps under way."""
    may_write, under_way, save = threading.Event(), [], checkpoints.save

    def wait_and_save(checkpoint, path, **options):
        under_way.append(checkpoint["meta"]["iter"])
        assert may_write.wait(20)
        return save(checkpoint, path, **options)

    monkeypatch.setattr(checkpoints, "save", wait_and_save)
    return may_write, under_way


def test_training_goes_on_and_the_copy_does_not_change(tmp_path, monkeypatch):
    seen = {}

    def remember(runner) -> None:
        seen[runner.iter + 1] = runner.model.first.weight.detach().clone()

    def look(runner) -> None:
        assert under_way == [3], "still being written"
        assert state(tmp_path)["last"] is None, "what is not proven is not recorded"
        assert not torch.equal(runner.model.first.weight, seen[3])
        may_write.set()

    may_write, under_way = slow_disk(monkeypatch)
    runner = exact_runs.build(tmp_path, validate=None, checkpoint={"max_keep_ckpts": -1})
    runner.register_hook(AtIteration(3, remember))
    runner.register_hook(AtIteration(5, look))
    try:
        runner.train()
    finally:
        runner.close()
    saved = checkpoints.load(tmp_path / "checkpoints/iter_3.pth")
    assert torch.equal(saved["raw_state_dict"]["first.weight"], seen[3])
    assert saved["meta"]["iter"] == 3


def test_training_waits_where_it_is_asked_to(tmp_path, monkeypatch):
    recorded = []
    train(
        tmp_path,
        at=3,
        action=lambda runner: recorded.append(state(tmp_path)["last"]["step"]),
        validate=None,
        checkpoint={"beside": False},
    )
    assert recorded == [3]


def test_run_ends_only_when_its_last_checkpoint_is_proven(tmp_path, monkeypatch):
    may_write, under_way = slow_disk(monkeypatch)
    threading.Timer(0.5, may_write.set).start()
    train(tmp_path, validate=None, checkpoint={"interval": -1})
    assert (state(tmp_path)["state"], state(tmp_path)["last"]["step"], under_way) == ("trained", 8, [8])


def failing(monkeypatch, at: int, error: Exception) -> None:
    save = checkpoints.save

    def fail(checkpoint, path, **options):
        if checkpoint["meta"]["iter"] == at:
            raise error
        return save(checkpoint, path, **options)

    monkeypatch.setattr(checkpoints, "save", fail)


FULL = OSError(errno.ENOSPC, "No space left on device", "iter_3.pth")


def test_failed_checkpoint_ends_the_run_at_its_next_step(tmp_path, monkeypatch):
    failing(monkeypatch, 3, FULL)
    runner = exact_runs.build(tmp_path, validate=None, iterations=1000)
    runner.register_hook(AtIteration(3, lambda runner: runner._saving._jobs._thread.join()))
    try:
        with pytest.raises(OSError, match="No space left"):
            runner.train()
        assert runner.iter == 3, "inside the fourth iteration"
    finally:
        runner.close()


@pytest.mark.parametrize("at, settings", [(8, {}), (4, {"checkpoint": {"interval": 4}}), (6, {})], ids=str)
def test_failed_checkpoint_is_raised_at_the_end_before_the_best_and_before_the_next(
    tmp_path, monkeypatch, at, settings
):
    failing(monkeypatch, at, FULL)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path, **settings)
    assert state(tmp_path)["state"] == "partial"
    assert state(tmp_path)["last"] is None or state(tmp_path)["last"]["step"] < at
    assert state(tmp_path)["best"] is None or state(tmp_path)["best"]["step"] < at or settings == {}
    monkeypatch.undo()
    train(tmp_path, **settings)
    assert state(tmp_path)["state"] == "trained"


def test_failed_checkpoint_behind_another_error_is_said(tmp_path, monkeypatch, caplog):
    failing(monkeypatch, 3, FULL)

    def fail(runner) -> None:
        runner.logger.addHandler(caplog.handler)
        raise DeprecationWarning("the first cause")

    with pytest.raises(DeprecationWarning, match="the first cause"):
        train(tmp_path, at=3, action=fail, validate=None)
    assert "the checkpoint under way could not be written: [Errno 28] No space left on device" in caplog.text


def test_network_file_system_that_was_away_for_a_moment(tmp_path, monkeypatch):
    """Each kind of file is refused once, in turn; the run does not notice, and nothing is lost."""
    monkeypatch.setattr("itkit._support.transient.WAITS_S", (0.01, 0.01))
    replace, refused = os.replace, set()

    def refuse_once(source, target):
        if Path(target).name not in refused:
            refused.add(Path(target).name)
            raise OSError(errno.ESTALE, "Stale file handle", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_once)
    train(tmp_path)
    assert {"run.json", "config.py", "iter_3.pth", "iter_6.pth", "iter_8.pth"} <= refused
    monkeypatch.undo()
    train(tmp_path.with_name("whole"))
    assert exact_runs.state_differences(tmp_path, tmp_path.with_name("whole")) == []


def test_weights_that_are_not_finite_are_not_saved(tmp_path, caplog):
    def poison(runner) -> None:
        runner.logger.addHandler(caplog.handler)
        runner.model.last.weight.data.fill_(torch.nan)

    loose = {"optim_wrapper": {"clip_grad": None}, "config": {"custom_hooks": []}}
    with pytest.raises(TrainingError, match="step 8: the weights are NaN or infinite and are not saved"):
        train(
            tmp_path, at=4, action=poison, validate=None, hooks=[{"type": "NonFiniteLossHook", "patience": 99}], **loose
        )
    assert steps(tmp_path) == [3]


# ---- what is in it ----


def test_checkpoint_is_plain_data_and_names_what_it_was_made_with(tmp_path):
    train(tmp_path)
    saved = torch.load(tmp_path / state(tmp_path)["last"]["checkpoint"], weights_only=True)
    meta = saved["meta"]
    assert (meta["iter"], meta["seed"], meta["torch"]) == (8, 3, torch.__version__)
    assert meta["start"]["global_batch"] == 2
    assert meta["start"]["config"]["optim_wrapper"]["optimizer"]["lr"] == 0.02
    assert meta["start"]["dataset"] == {"cases": {"train": 10, "val": 4}, "fingerprint": None}
    assert len(saved["message_hub"]["log_scalars"]["train/loss"][0]) == 8
    assert len(saved["message_hub"]["log_scalars"]["train/grad_norm"][0]) == 8
    assert saved["hooks"] == {"NonFiniteLossHook": {"in_a_row": 0}}


class Place:
    """An object such as other programs leave in checkpoints."""


def test_weights_to_begin_with_from_a_foreign_checkpoint_need_the_flag(tmp_path):
    train(tmp_path / "first")
    foreign = {"state_dict": last_checkpoint(tmp_path / "first")["raw_state_dict"], "who": Place()}
    torch.save(foreign, tmp_path / "foreign.pth")
    begin = {"config": {"load_from": str(tmp_path / "foreign.pth")}, "iterations": 1, "validate": None}
    with pytest.raises(UntrustedCheckpoint, match=r"test_checkpoint_hook\.Place\) .* --trust-checkpoint"):
        train(tmp_path / "second", **begin)
    runner = train(tmp_path / "second", trust_checkpoint=True, **begin)
    assert runner.iter == 1
    assert torch.equal(runner.model.frozen.weight, foreign["state_dict"]["frozen.weight"])


def test_checkpoint_of_mmengines_own_runner_is_resumed_when_trusted(tmp_path):
    """It holds histories as objects, and no states of generators."""
    from mmengine.logging import HistoryBuffer

    train(tmp_path, iterations=6, validate=None)
    saved = last_checkpoint(tmp_path)
    theirs = {
        "meta": {"iter": 6, "epoch": 0},
        "state_dict": saved["raw_state_dict"],
        "optimizer": saved["optimizer"],
        "param_schedulers": saved["param_schedulers"],
        "message_hub": {
            "runtime_info": {"iter": 5, "max_iters": 6},
            "log_scalars": {"train/loss": HistoryBuffer([1.0, 2.0], [1, 1])},
            "resumed_keys": {},
        },
    }
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    torch.save(theirs, tmp_path / "checkpoints/iter_6.pth")
    (tmp_path / "run.json").unlink()
    with pytest.raises(UntrustedCheckpoint, match="HistoryBuffer"):
        train(tmp_path, validate=None)
    runner = train(tmp_path, validate=None, trust_checkpoint=True)
    assert runner.iter == 8
    assert last_checkpoint(tmp_path)["message_hub"]["log_scalars"]["train/loss"][0][:2].tolist() == [1.0, 2.0]
    assert runner.message_hub.get_info("stream_position") == 16, "iterations times batch, where it is not said"
