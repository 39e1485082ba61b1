"""End a training that no longer gets better."""

from __future__ import annotations

import math

from mmengine.dist import broadcast_object_list
from mmengine.hooks import Hook

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError
from itkit.measures.direction import lower_is_better
from itkit.registry import HOOKS


@HOOKS.register_module()
class EarlyStoppingHook(Hook):
    """Stop training after `patience` validations in a row without a better value of `monitor`.

    A value is better if it beats the best one so far by more than `min_delta`; NaN, infinite and missing (None) values
    are not better. The state is part of the checkpoint, so that a resumed run counts on.

    Args:
        monitor: Name of a metric as validation returns it, e.g. ``"Dice"``.
        patience: Validations without improvement after which training stops.
        min_delta: Smallest difference that counts as better, in the metric's unit.
        rule: ``"greater"`` or ``"less"`` is better; None decides by the name (losses and distances: less).
        stopping_threshold: Stop at once when the value is as good as this; None never does.

    Raises:
        ConfigError: If an argument is out of range, or validation does not return `monitor`.
    """

    INFO_KEY = "early_stopping"

    def __init__(
        self,
        monitor: str = "Dice",
        patience: int = 5,
        min_delta: float = 0.0,
        rule: str | None = None,
        stopping_threshold: float | None = None,
    ):
        if rule not in (None, "greater", "less"):
            raise ConfigError(f'EarlyStoppingHook: rule {rule!r} is neither "greater" nor "less".')
        if patience < 1 or min_delta < 0:
            raise ConfigError(
                f"EarlyStoppingHook: patience={patience} must be 1 or more and min_delta={min_delta} not negative."
            )
        self.monitor, self.patience, self.min_delta = monitor, patience, min_delta
        self.rule = rule or ("less" if lower_is_better(monitor) else "greater")
        self.stopping_threshold = stopping_threshold
        self.best: float | None = None
        self.waited = 0

    def before_train(self, runner) -> None:
        """Take over the state of a resumed run; one that had stopped stays stopped."""
        state = runner.message_hub.get_info(self.INFO_KEY) if runner.iter > 0 else None
        if state and state["monitor"] == self.monitor:
            self.best, self.waited = state["best"], state["waited"]
        else:
            self.best, self.waited = None, 0
        if self.waited >= self.patience:
            self._stop(runner)

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        """Compare the new value with the best one."""
        metrics = metrics or {}
        if self.monitor not in metrics:
            raise ConfigError(
                f'EarlyStoppingHook: validation does not return "{self.monitor}" but {", ".join(metrics) or "nothing"}.'
                f"{did_you_mean(self.monitor, metrics)}"
            )
        everywhere = [metrics[self.monitor]]
        broadcast_object_list(everywhere)  # all processes decide by the number of the first, whatever they measured
        value = math.nan if everywhere[0] is None else float(everywhere[0])
        if self._is_better(value):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        runner.message_hub.update_info(
            self.INFO_KEY, {"monitor": self.monitor, "best": self.best, "waited": self.waited}
        )
        if self.waited >= self.patience or self._is_enough(value):
            self._stop(runner)

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.best is None:
            return True
        gain = value - self.best if self.rule == "greater" else self.best - value
        return gain > self.min_delta

    def _is_enough(self, value: float) -> bool:
        if self.stopping_threshold is None:
            return False
        return value >= self.stopping_threshold if self.rule == "greater" else value <= self.stopping_threshold

    def _stop(self, runner) -> None:
        runner.train_loop.stop_training = True
        best = "no finite value yet" if self.best is None else f"best {self.best:.4f}"
        runner.logger.info(f"Early stop at step {runner.iter}: {self.monitor}, {best}, {self.waited} validations ago.")
