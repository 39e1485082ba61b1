"""Keep a moving average of the weights, and validate, test and publish the average."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper

from itkit.errors import CheckpointError, ConfigError
from itkit.mm.checkpoints import copy_to_keep
from itkit.mm.model_state import as_trained, joined, local, part_of, unwrap, whole
from itkit.registry import HOOKS

RAW_KEY = "raw_state_dict"
"""Where a checkpoint keeps the weights that training goes on with; its ``state_dict`` holds the averaged ones."""

UPDATES_KEY = "ema_updates"


@HOOKS.register_module()
class EMAHook(Hook):
    """Exponential moving average of the trained parameters.

    After every `interval` optimizer steps ``average = d * average + (1 - d) * weights``, with
    ``d = min(decay, (1 + t) / (10 + t))`` at the ``t``-th update, so that the first random weights are soon forgotten.
    Parameters without gradient and all buffers are not averaged: the average uses those of the model.

    Validation and test run on the average, then the weights are swapped back, also when they fail. In a checkpoint
    ``state_dict`` is the average (what one wants to use) and ``raw_state_dict`` the weights of the training; a resumed run
    gets both back exactly. A checkpoint without an average begins a new one.

    Of weights that are cut into parts (``parallel = "fsdp"``) each process averages its own; checkpoints hold them whole.

    Args:
        decay: Share of the old average that remains at an update, e.g. 0.99.
        momentum: MMEngine's way to say it, the share of the new weights; ``decay`` is ``1 - momentum``. Give one of them.
        warm_up: False uses `decay` from the first update on.
        interval: Optimizer steps between two updates.
        begin_iter: Iterations before the first update; until then the average is a copy of the weights.

    Raises:
        ConfigError: If `decay` and `momentum` are both given, or a value is out of its range.
        CheckpointError: If a resumed checkpoint holds an average of another model.
    """

    def __init__(
        self,
        decay: float | None = None,
        momentum: float | None = None,
        warm_up: bool = True,
        interval: int = 1,
        begin_iter: int = 0,
    ):
        if decay is not None and momentum is not None:
            raise ConfigError(f"EMAHook: decay={decay} and momentum={momentum} say the same twice; give one of them.")
        if momentum is not None and not 0 < momentum <= 0.5:
            raise ConfigError(
                f"EMAHook: momentum={momentum} is the share of the new weights and lies between 0 and 0.5; for a share of "
                "the old ones use decay."
            )
        decay = (0.999 if momentum is None else 1 - momentum) if decay is None else decay
        if not 0 <= decay < 1:
            raise ConfigError(f"EMAHook: decay={decay} must be at least 0 and below 1.")
        if interval < 1 or begin_iter < 0:
            raise ConfigError(
                f"EMAHook: interval={interval} must be 1 or more and begin_iter={begin_iter} not negative."
            )
        self.decay, self.warm_up, self.interval, self.begin_iter = decay, warm_up, interval, begin_iter
        self.updates = 0
        self._numbers: dict[str, int] = {}
        self._weights: list[torch.nn.Parameter] = []
        self._average: list[torch.Tensor] | None = None
        self._swapped = False

    def decay_at(self, update: int) -> float:
        """Return the decay of the update with this number (0 is the first)."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warm_up else self.decay

    def before_run(self, runner) -> None:
        """Find the parameters that are averaged."""
        self._model = unwrap(runner.model)
        with as_trained(runner.model):
            every = [(n, p) for n, p in self._model.named_parameters(remove_duplicate=False) if _is_averaged(p)]
        weights = {id(parameter): parameter for _, parameter in every}
        number = {key: i for i, key in enumerate(weights)}
        self._numbers = {name: number[id(parameter)] for name, parameter in every}
        self._weights = list(weights.values())

    def _held(self) -> list[torch.Tensor]:
        """Return what this process holds of the weights, to be changed in place."""
        return [local(weight.detach()) for weight in self._weights]

    def before_train(self, runner) -> None:
        """Begin with a copy of the weights, unless an average came with the checkpoint."""
        if self._average is None:
            self.updates = 0
            self._average = [weight.clone() for weight in self._held()]

    @torch.no_grad()
    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        """Move the average towards the weights."""
        step = runner.iter + 1
        wrapper = runner.optim_wrapper
        if isinstance(wrapper, OptimWrapper) and not wrapper.should_update():
            return
        if step <= self.begin_iter:
            torch._foreach_copy_(self._average, self._held())
        elif step % self.interval == 0:
            torch._foreach_lerp_(self._average, self._held(), 1 - self.decay_at(self.updates))
            self.updates += 1

    def before_val_epoch(self, runner) -> None:
        """Let the model be the average."""
        self._swap(True)

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        """Let the model be itself again."""
        self._swap(False)

    def before_test_epoch(self, runner) -> None:
        """Let the model be the average."""
        self._swap(True)

    def after_test_epoch(self, runner, metrics: dict | None = None) -> None:
        """Let the model be itself again."""
        self._swap(False)

    def before_train_epoch(self, runner) -> None:
        """Never train on the average, whatever happened before."""
        self._swap(False)

    def run_failed(self, runner) -> None:
        """Swap back after an exception in validation or test."""
        self._swap(False)

    @torch.no_grad()
    def _swap(self, to_average: bool) -> None:
        """Exchange the values of weights and average, in place, if they are not where they should be."""
        if self._average is None or self._swapped == to_average:
            return
        weights = self._held()
        kept = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, self._average)
        torch._foreach_copy_(self._average, kept)
        self._swapped = to_average

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Put the average into ``state_dict`` and the weights into ``raw_state_dict``."""
        if self._average is None:
            return
        averages = [whole(joined(part, like)) for part, like in zip(self._average, self._weights, strict=True)]
        present = checkpoint["state_dict"]
        if not present:  # another process writes the checkpoint
            return
        copies = [copy_to_keep(average) for average in averages]
        other = {**present, **{name: copies[number] for name, number in self._numbers.items()}}
        average, raw = (present, other) if self._swapped else (other, present)
        checkpoint["state_dict"], checkpoint[RAW_KEY], checkpoint[UPDATES_KEY] = average, raw, self.updates

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Resume: take average and weights apart again. Otherwise: the model gets the average and a new one begins."""
        self._average, self._swapped, self.updates = None, False, 0
        if not getattr(runner, "_resume", False):
            return
        if RAW_KEY not in checkpoint:
            runner.logger.warning("The checkpoint holds no averaged weights; a new average begins with its weights.")
            return
        if not self._weights:  # MMEngine's FlexibleRunner loads before it says that a run begins
            self.before_run(runner)
        saved = checkpoint["state_dict"]
        self._average = []
        names = {number: name for name, number in reversed(self._numbers.items())}  # the first one's of tied weights
        for number, weight in enumerate(self._weights):
            name = names[number]
            tensor = saved.get(name)
            if tensor is None or tensor.shape != weight.shape:
                found = "nothing" if tensor is None else f"shape {tuple(tensor.shape)}"
                raise CheckpointError(
                    f"the averaged weights of the checkpoint are not of this model: {name} has shape "
                    f"{tuple(weight.shape)}, the checkpoint has {found}. Restore the config, or remove the run folder."
                )
            self._average.append(part_of(tensor.to(weight.dtype), weight))
        self.updates = checkpoint[UPDATES_KEY]
        checkpoint["state_dict"] = checkpoint[RAW_KEY]


def _is_averaged(parameter: torch.nn.Parameter) -> bool:
    return parameter.requires_grad and parameter.is_floating_point()
