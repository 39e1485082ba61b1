"""Schedules of a resumed run: as the checkpoint has them, or followed anew where the config has changed them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from mmengine.optim import _ParamScheduler

from itkit.mm.checkpoints import plain

Schedulers = list[_ParamScheduler] | dict[str, list[_ParamScheduler]] | None
_PROGRESS = {"last_step", "_global_step", "_last_value", "best", "num_bad_epochs", "cooldown_counter", "verbose"}
"""What changes in a scheduler while it runs; everything else in it is a setting."""


def schedule_states(schedulers: Schedulers) -> Any:
    """Return the states of all schedulers as plain data, in the form of the argument."""
    if isinstance(schedulers, dict):
        return {name: schedule_states(group) for name, group in schedulers.items()}
    return None if schedulers is None else [_state(scheduler) for scheduler in schedulers]


def load_schedules(schedulers: Schedulers, states: Any) -> None:
    """Set schedulers of the same settings to what `schedule_states` returned."""
    for scheduler, state in zip(_flat(schedulers), _flat(states), strict=True):
        own = _state(scheduler)
        # A function of the scheduler's is written as text by older versions; the scheduler's own stays.
        scheduler.load_state_dict({name: value for name, value in state.items() if name in own})


def differ(schedulers: Schedulers, states: Any) -> bool:
    """Whether the settings of fresh schedulers are not those of a checkpoint's (the last step of a longer training, say)."""
    ours, theirs = [_state(s) for s in _flat(schedulers)], list(_flat(states))
    return len(ours) != len(theirs) or any(
        _settings(a, a) != _settings(b, a) for a, b in zip(ours, theirs, strict=True)
    )


def can_be_replayed(schedulers: Schedulers) -> bool:
    """Whether schedules depend on the number of iterations alone, not on what was measured."""
    return not any(getattr(scheduler, "need_val_args", False) for scheduler in _flat(schedulers))


def replay(schedulers: Schedulers, steps: int, *, epochs: int = 0, epoch_length: int | None = None) -> None:
    """Let fresh schedulers go through `steps` iterations, as they would have in training.

    Args:
        schedulers: As they were built, with an optimizer that has the config's values.
        steps: Iterations done.
        epochs: Epochs completed.
        epoch_length: Iterations of an epoch; None in iteration-based training.
    """
    by_step = [scheduler for scheduler in _flat(schedulers) if not scheduler.by_epoch]
    by_epoch = [scheduler for scheduler in _flat(schedulers) if scheduler.by_epoch]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer has not stepped in between
        for step in range(1, steps + 1):
            for scheduler in by_step:
                scheduler.step()
            if epoch_length and step % epoch_length == 0 and step // epoch_length <= epochs:
                for scheduler in by_epoch:
                    scheduler.step()


def _flat(schedulers: Any) -> Iterator[Any]:
    for item in schedulers.values() if isinstance(schedulers, dict) else [schedulers or ()]:
        yield from item


def _state(scheduler: _ParamScheduler) -> dict[str, Any]:
    return {name: plain(value) for name, value in scheduler.state_dict().items() if not callable(value)}


def _settings(state: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    return {name: state.get(name) for name in names if name not in _PROGRESS}
