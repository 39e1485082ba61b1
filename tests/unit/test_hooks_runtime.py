"""Hooks that watch numbers: histories, hard values, non-finite losses, early stopping, waiting for data, progress."""

from __future__ import annotations

import copy
import logging
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub

from itkit.errors import ConfigError, TrainingError
from itkit.mm.hooks.data_wait import DataWaitHook
from itkit.mm.hooks.early_stopping import EarlyStoppingHook
from itkit.mm.hooks.nonfinite import NonFiniteLossHook
from itkit.mm.hooks.progress import ProgressHook
from itkit.mm.hooks.runtime_info import RuntimeInfoHook, ScalarHistory, as_number


class Runner(SimpleNamespace):
    """As much of a runner as these hooks use."""

    @classmethod
    def make(cls, **extra) -> Runner:
        optimizer = SimpleNamespace(get_lr=lambda: {"lr": [0.003]})
        loop = SimpleNamespace(
            stop_training=False, dataloader=SimpleNamespace(waited_s=0.0, num_workers=1, batch_size=2)
        )
        values = {
            "message_hub": MessageHub("test"),
            "logger": logging.getLogger("itkit-test-hooks"),
            "optim_wrapper": optimizer,
            "train_loop": loop,
            "iter": 0,
            "max_iters": 100,
            "world_size": 1,
        }
        return cls(**{**values, **extra})


def pretend_device(monkeypatch) -> list:
    """Treat CPU tensors as another device's, and count how often numbers are fetched."""
    fetched = []
    fetch = ScalarHistory._fetch
    monkeypatch.setattr(ScalarHistory, "_fetch", lambda self: (fetched.append(len(self._waiting)), fetch(self)))
    monkeypatch.setattr(
        ScalarHistory, "append", lambda self, value: self._waiting.append(value.detach().reshape(())), raising=True
    )
    return fetched


# ---- histories ----


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_history_answers_like_mmengines(window):
    values = [0.5, 2, -1.0, 4.25]
    ours, theirs = ScalarHistory(), HistoryBuffer()
    for value in values:
        ours.update(value)
        theirs.update(value)
    for statistic in ("mean", "max", "min"):
        assert ours.statistics(statistic, window) == theirs.statistics(statistic, window)
    assert ours.current() == theirs.current()
    assert np.array_equal(ours.data, theirs.data)


def test_history_is_bounded_and_saved_as_mmengines():
    history = ScalarHistory(max_length=3)
    for value in range(10):
        history.append(float(value))
    for saved in (pickle.loads(pickle.dumps(history)), copy.deepcopy(history)):
        assert type(saved) is HistoryBuffer
        assert saved.data[0].tolist() == [7, 8, 9]
    assert ScalarHistory.of(saved).mean() == 8


def test_values_of_another_device_are_fetched_together_and_only_when_read(monkeypatch):
    fetched = pretend_device(monkeypatch)
    history = ScalarHistory()
    for value in range(5):
        history.append(torch.tensor(float(value)))
    assert fetched == []
    assert history.mean(2) == 3.5
    assert history.current() == 4
    assert fetched == [5]


@pytest.mark.parametrize(
    "value, number",
    [
        (torch.tensor([[2.5]]), 2.5),
        (np.float32(0.5), 0.5),
        (np.bool_(True), 1),
        (True, 1),
        (10**400, math.inf),
        (-(10**400), -math.inf),
        (1e300, 1e300),
        (math.inf, math.inf),
        (torch.zeros(2), None),
        ("text", None),
        (None, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_as_number(value, number):
    assert as_number(value) == number


HARD = {
    "loss": torch.tensor(math.nan),
    "up": torch.tensor(math.inf),
    "huge": 1e300,
    "integer": 10**400,
    "flag": np.bool_(True),
    "none": None,
    "vector": torch.zeros(3),
}


def test_hard_values_are_recorded_as_they_are():
    hook, runner = RuntimeInfoHook(), Runner.make()
    for _ in range(3):
        hook.before_train_iter(runner, 0)
        hook.after_train_iter(runner, 0, outputs=HARD)
    latest = {name: history.current() for name, history in runner.message_hub.log_scalars.items()}
    assert math.isnan(latest.pop("train/loss"))
    assert math.isnan(latest.pop("train/none"))
    assert math.isnan(latest.pop("train/vector"))
    assert latest == {
        "train/lr": 0.003,
        "train/up": math.inf,
        "train/huge": 1e300,
        "train/integer": math.inf,
        "train/flag": 1,
    }
    assert runner.message_hub.get_scalar("train/huge").mean(10) == pytest.approx(1e300)


def test_metric_that_becomes_undefined_is_not_shown_with_its_old_value():
    hook, runner = RuntimeInfoHook(), Runner.make()
    hook.after_val_epoch(runner, {"Dice": 0.5, "table": "a | b"})
    hook.after_val_epoch(runner, {"Dice": None})
    assert math.isnan(runner.message_hub.get_scalar("val/Dice").current())
    assert runner.message_hub.get_info("val/table") == "a | b"


# ---- non-finite losses ----


def lose(hook: NonFiniteLossHook, losses: list[float], runner: Runner | None = None) -> None:
    runner = runner or Runner.make()
    hook.before_train(runner)
    for runner.iter, loss in enumerate(losses):
        hook.after_train_iter(runner, runner.iter, outputs={"loss": torch.tensor(loss)})


def test_losses_that_are_not_finite_in_a_row_stop_the_run():
    with pytest.raises(TrainingError) as caught:
        lose(NonFiniteLossHook(patience=3), [1.0, math.nan, 1.0, math.inf, math.nan, math.nan, 1.0])
    text = str(caught.value)
    assert text.startswith("the loss is nan at step 6, not finite 3 times in a row since step 4; ")
    assert "the last learning rate was 0.003" in text


def test_single_bad_losses_do_not_stop_it():
    hook = NonFiniteLossHook(patience=2)
    lose(hook, [math.nan, 1.0, math.nan, 1.0])
    assert hook.in_a_row == 0


def test_losses_of_another_device_are_looked_at_together():
    hook = NonFiniteLossHook(patience=2, check_interval=4)
    runner = Runner.make()
    hook.before_train(runner)
    hook._waiting = [(step, torch.tensor(math.nan)) for step in (5, 6)]
    with pytest.raises(TrainingError, match="at step 6"):
        hook.before_save_checkpoint(runner, {})


def test_anomaly_detection_is_on_while_training_and_put_back():
    hook, runner = NonFiniteLossHook(detect_anomaly=True), Runner.make()
    hook.before_train(runner)
    assert torch.is_anomaly_enabled()
    hook.run_failed(runner)
    assert not torch.is_anomaly_enabled()


def test_wrong_patience_is_refused():
    with pytest.raises(ConfigError, match="patience=0 and check_interval=10 must both be 1 or more"):
        NonFiniteLossHook(patience=0)


# ---- early stopping ----


def validate(hook: EarlyStoppingHook, values: list, runner: Runner) -> int | None:
    """Return after how many values training was stopped."""
    for count, value in enumerate(values, 1):
        runner.iter += 10
        hook.after_val_epoch(runner, {hook.monitor: value})
        if runner.train_loop.stop_training:
            return count
    return None


@pytest.mark.parametrize(
    "options, values, stop",
    [
        ({"patience": 2}, [0.1, 0.2, 0.2, 0.2], 4),
        ({"patience": 2}, [0.1, 0.2, 0.15, 0.3, 0.4, 0.5], None),
        ({"patience": 2, "min_delta": 0.1}, [0.1, 0.15, 0.19], 3),
        ({"patience": 2, "min_delta": 0.1}, [0.1, 0.15, 0.25, 0.3], None),
        ({"patience": 2}, [0.1, math.nan, None], 3),
        ({"patience": 2}, [math.nan, math.nan, 0.3], 2),
        ({"patience": 2, "monitor": "HD95"}, [9.0, 8.0, 7.0, 7.0, 7.0], 5),
        ({"patience": 2, "monitor": "HD95", "rule": "greater"}, [9.0, 8.0, 7.0], 3),
        ({"patience": 9, "stopping_threshold": 0.9}, [0.1, 0.9], 2),
    ],
)
def test_when_training_stops_early(options, values, stop):
    runner = Runner.make()
    hook = EarlyStoppingHook(**options)
    hook.before_train(runner)
    assert validate(hook, values, runner) == stop


def test_early_stopping_goes_on_counting_after_a_resume():
    values = [0.5, 0.4, 0.45, 0.3, 0.2]
    first = Runner.make()
    hook = EarlyStoppingHook(patience=3)
    hook.before_train(first)
    validate(hook, values[:2], first)
    second = Runner.make(iter=20)
    second.message_hub.load_state_dict(first.message_hub.state_dict())
    hook = EarlyStoppingHook(patience=3)
    hook.before_train(second)
    assert hook.best == 0.5
    assert validate(hook, values[2:], second) == 2
    third = Runner.make(iter=40)
    third.message_hub.load_state_dict(second.message_hub.state_dict())
    EarlyStoppingHook(patience=3).before_train(third)
    assert third.train_loop.stop_training


def test_monitor_that_validation_does_not_return_is_an_error():
    with pytest.raises(ConfigError, match=r'does not return "Dise" but Dice, IoU\. Did you mean Dice\?'):
        EarlyStoppingHook("Dise").after_val_epoch(Runner.make(), {"Dice": 1, "IoU": 1})


@pytest.mark.parametrize(
    "options, message",
    [({"rule": "bigger"}, "rule 'bigger'"), ({"patience": 0}, "patience=0"), ({"min_delta": -1}, "=-1")],
)
def test_early_stopping_refuses_wrong_arguments(options, message):
    with pytest.raises(ConfigError, match=message):
        EarlyStoppingHook(**options)


# ---- waiting for data ----


def wait(monkeypatch, waited: float, step: float, *, iterations: int = 40, workers: int = 1, **options):
    clock = [0.0]
    monkeypatch.setattr("itkit.mm.hooks.data_wait.time.perf_counter", lambda: clock[0])
    runner = Runner.make()
    runner.train_loop.dataloader.num_workers = workers
    hook = DataWaitHook(interval=5, window=20, warm_up=10, **options)
    hook.before_train(runner)
    for index in range(iterations):
        runner.train_loop.dataloader.waited_s = 5.0 if index < 10 else waited
        hook.before_train_iter(runner, index)
        clock[0] += step
        hook.after_train_iter(runner, index)
    return hook, runner


def test_share_of_waiting_is_logged_without_the_warm_up(monkeypatch, caplog):
    hook, runner = wait(monkeypatch, waited=0.01, step=0.99)
    assert hook.share == pytest.approx(0.01)
    assert runner.message_hub.get_scalar("train/data_wait").current() == pytest.approx(0.01)
    assert caplog.text == ""


@pytest.mark.parametrize(
    "workers, remedy", [(0, "num_workers (none are used now)"), (2, "more workers (num_workers=2 now)")]
)
def test_much_waiting_is_warned_about_once(monkeypatch, caplog, workers, remedy):
    wait(monkeypatch, waited=0.25, step=0.75, iterations=100, workers=workers)
    assert caplog.text.count("Training waits for data 25% of the time (last 20 iterations)") == 1
    assert remedy in caplog.text


@pytest.mark.parametrize("options, message", [({"interval": 0}, "interval=0"), ({"limit": 1.5}, "limit=1.5")])
def test_data_wait_refuses_wrong_arguments(options, message):
    with pytest.raises(ConfigError, match=message):
        DataWaitHook(**options)


# ---- progress ----


def test_plain_progress_lines_come_every_interval_and_at_the_end(caplog):
    runner = Runner.make(max_iters=25)
    runner.message_hub.update_scalar("train/data_wait", 0.03)
    hook = ProgressHook(interval=10, terminal=False)
    with caplog.at_level("INFO"):
        hook.before_train(runner)
        for runner.iter in range(25):
            hook.after_train_iter(runner, runner.iter, outputs={"loss": torch.tensor(0.25)})
        hook.after_train(runner)
    lines = [record.message for record in caplog.records]
    assert [line.split()[1] for line in lines] == ["10/25", "20/25", "25/25"]
    for part in ("loss 0.25", "it/s", "samples/s", "waiting for data 3.0%", "ready in 0:00:00"):
        assert part in lines[0]


def test_bar_is_drawn_on_a_terminal_and_closed_after_a_failure(capsys):
    runner = Runner.make(max_iters=4, val_dataloader=[0, 1])
    hook = ProgressHook(terminal=True, refresh_s=0)
    hook.before_train(runner)
    for runner.iter in range(4):
        hook.after_train_iter(runner, runner.iter, outputs={"loss": torch.tensor(math.nan)})
    hook.before_val_epoch(runner)
    hook.after_val_iter(runner, 0)
    hook._bar.refresh()
    hook.run_failed(runner)
    assert hook._bar is None
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "loss nan" in shown
    assert "validate" in shown
    assert "1/2" in shown


def test_progress_refuses_an_interval_of_zero():
    with pytest.raises(ConfigError, match="interval=0 must be 1 or more"):
        ProgressHook(interval=0)


def test_all_hooks_are_registered():
    from itkit.registry import HOOKS

    for name in (
        "RuntimeInfoHook",
        "NonFiniteLossHook",
        "EarlyStoppingHook",
        "DataWaitHook",
        "ProgressHook",
        "EMAHook",
    ):
        assert HOOKS.get(f"itkit.{name}").__name__ == name


def test_plugin_module_gives_the_documented_names():
    from itkit.mm import mmeng_PlugIn

    assert mmeng_PlugIn.RuntimeInfoHook is RuntimeInfoHook
    assert "mgam_OptimWrapperConstructor" in dir(mmeng_PlugIn)
    assert issubclass(mmeng_PlugIn.IterBasedTrainLoop_SupportProfiler, mmeng_PlugIn.IterBasedTrainLoop)
    for name in mmeng_PlugIn.__all__:
        assert getattr(mmeng_PlugIn, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'RuntimeHook'"):
        _ = mmeng_PlugIn.RuntimeHook
