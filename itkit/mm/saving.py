"""What a run saves: a copy of its whole state, taken between two iterations and written beside the training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import OptimWrapper, OptimWrapperDict

from itkit.mm import checkpoints
from itkit.mm.background import OneAtATime
from itkit.mm.group import is_several, share
from itkit.mm.model_state import full_model_state, full_optimizer_state
from itkit.mm.schedules import schedule_states

OF_THE_START = frozenset(
    ["cfg", "experiment_name", "mmengine_version", "dataset_meta", "max_iters", "max_epochs", "loop_stage", "seed"]
)
"""Runtime information that belongs to one start of a run, not to its state."""


def wrappers_of(optim_wrapper: Any) -> list[OptimWrapper]:
    """Return the single optimizer wrappers."""
    return list(optim_wrapper.values()) if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]


def is_between_steps(optim_wrapper: Any) -> bool:
    """Whether gradients of some iterations are waiting for the optimizer's next step, so that there is no whole state."""
    return any(getattr(w, "_accumulative_counts", 1) > 1 and not w.should_update() for w in wrappers_of(optim_wrapper))


def hooks_with_state(hooks: list[Hook]) -> Iterator[tuple[str, Any]]:
    """Yield name and object of the hooks that have ``state_dict`` and ``load_state_dict``; names tell equal ones apart."""
    seen: dict[str, int] = {}
    for hook in hooks:
        if callable(getattr(hook, "state_dict", None)) and callable(getattr(hook, "load_state_dict", None)):
            name = type(hook).__name__
            seen[name] = seen.get(name, 0) + 1
            yield (name if seen[name] == 1 else f"{name} {seen[name]}"), hook


def hub_state(hub: MessageHub) -> dict[str, Any]:
    """Return runtime information and histories of scalars as plain data."""
    scalars = {name: [torch.from_numpy(a.astype(float)) for a in h.data] for name, h in hub.log_scalars.items()}
    return {
        "runtime_info": {k: v for k, v in hub.runtime_info.items() if k not in OF_THE_START},
        "log_scalars": scalars,
    }


def load_hub_state(hub: MessageHub, state: dict[str, Any]) -> None:
    """Set the hub to what `hub_state` returned, or to what MMEngine or older versions wrote."""
    for key, value in state.get("runtime_info", state).items():
        if key not in OF_THE_START:
            hub.update_info(key, value)
    for name, history in state.get("log_scalars", {}).items() if "runtime_info" in state else ():
        values, counts = history.data if isinstance(history, HistoryBuffer) else (part.numpy() for part in history)
        hub.log_scalars[name] = HistoryBuffer(values.tolist(), counts.tolist())


def take_state(
    runner: Any, *, step: int, epoch: int, save_optimizer: bool = True, save_param_scheduler: bool = True
) -> dict[str, Any]:
    """Return a copy of the whole state of a run after `step` iterations, as plain data on the CPU.

    All processes must call this; what is written is that of the first. It holds weights, optimizer, schedules, states of
    hooks and the message hub (with the position in the sample stream), and the random generators of every process.
    """
    model, optim_wrapper = runner.model, runner.optim_wrapper
    own: dict[str, Any] = {"state_dict": full_model_state(model)}
    if save_optimizer:
        own["optimizer"] = full_optimizer_state(model, optim_wrapper)
    generators = all_gather_object(checkpoints.random_state(every_device=runner.world_size == 1))
    checkpoint: dict[str, Any] = {
        "meta": {
            "iter": step,
            "epoch": epoch,
            "seed": runner.seed,
            "experiment_name": runner.experiment_name,
            "cfg": runner.config_text,
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            "torch": torch.__version__,
            "resumable": not is_between_steps(optim_wrapper),
            "dataset_meta": getattr(getattr(runner.train_dataloader, "dataset", None), "metainfo", None),
            "start": runner.description,
            "run": runner.known_so_far(),
        },
        **own,
        "message_hub": hub_state(runner.message_hub),
        "hooks": {name: hook.state_dict() for name, hook in hooks_with_state(runner.hooks)},
        "random": generators,
    }
    if save_param_scheduler and runner.param_schedulers is not None:
        checkpoint["param_schedulers"] = schedule_states(runner.param_schedulers)
    runner.call_hook("before_save_checkpoint", checkpoint=checkpoint)
    return checkpoints.frozen(checkpoint, own=own) if is_main_process() else {}


class Saving:
    """Hands the writing of the first process to a thread, and tells all processes what came of it."""

    def __init__(self) -> None:
        self._jobs = OneAtATime()

    def start(self, job: Callable[[], None], *, beside: bool = True) -> None:
        """Let the first process do `job`. `finish` must have been called since the last one.

        Args:
            job: Writes one checkpoint.
            beside: Whether training goes on meanwhile; False ends the job, and raises what it raised, before this returns.
        """
        if is_main_process():
            self._jobs.start(job)
        if not beside:
            self.finish()

    def finish(self) -> None:
        """Wait for the job under way; all processes must call this, and all raise if it failed."""
        share(self._finish_here)

    def finish_quietly(self) -> BaseException | None:
        """Wait for the job under way in this process alone; return what it raised."""
        return self._jobs.wait()

    def raise_if_failed(self) -> None:
        """Raise what a finished job raised; looks only, and only where one process trains alone."""
        if self._jobs.has_failed and not is_several():
            self._finish_here()

    def _finish_here(self) -> None:
        error = self._jobs.wait()
        if error is not None:
            raise error
