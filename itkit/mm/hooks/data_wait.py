"""Say which share of the training time is spent waiting for data, and what to do about it."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from mmengine.hooks import Hook

from itkit.errors import ConfigError
from itkit.registry import HOOKS


@HOOKS.register_module()
class DataWaitHook(Hook):
    """Measure the time that training waits for its loader; log it as ``data_wait`` (0 to 1) and warn once if it is large.

    Validation, checkpoints and other things between two iterations count neither as waiting nor as training.

    Args:
        interval: Iterations between two logged values.
        window: Iterations that a value covers.
        warm_up: First iterations of a process that are left out; workers start in them.
        limit: Share above which the warning is given.

    Attributes:
        share: Waiting share over the last window (0 to 1); None before there is one.

    Raises:
        ConfigError: If `interval` or `window` is below 1, or `limit` not between 0 and 1.
    """

    priority = 40

    def __init__(self, interval: int = 10, window: int = 50, warm_up: int = 10, limit: float = 0.05):
        if interval < 1 or window < 1:
            raise ConfigError(f"DataWaitHook: interval={interval} and window={window} must both be 1 or more.")
        if not 0 < limit < 1:
            raise ConfigError(f"DataWaitHook: limit={limit} must lie between 0 and 1.")
        self.interval, self.window, self.warm_up, self.limit = interval, window, warm_up, limit
        self.share: float | None = None
        self._warned = False
        self._reset()

    def _reset(self) -> None:
        self._waits: deque[float] = deque(maxlen=self.window)
        self._steps: deque[float] = deque(maxlen=self.window)
        self._seen = 0
        self._wait = 0.0

    def before_train(self, runner) -> None:
        """Begin anew; a loop whose loader does not measure itself is left alone."""
        self._reset()
        self.share = None
        self._loader = runner.train_loop.dataloader if hasattr(runner.train_loop.dataloader, "waited_s") else None

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Note how long the batch was waited for."""
        if self._loader is not None:
            self._wait = self._loader.waited_s
            self._begin = time.perf_counter()

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        """Note how long the step took, and report."""
        if self._loader is None:
            return
        self._seen += 1
        if self._seen <= self.warm_up:
            return
        self._waits.append(self._wait)
        self._steps.append(time.perf_counter() - self._begin)
        if (batch_idx + 1) % self.interval:
            return
        waited = sum(self._waits)
        self.share = waited / max(waited + sum(self._steps), 1e-12)
        runner.message_hub.update_scalar("train/data_wait", self.share)
        if self.share > self.limit and not self._warned and len(self._waits) == self.window:
            self._warned = True
            runner.logger.warning(self._advice())

    def _advice(self) -> str:
        workers = self._loader.num_workers
        remedy = (
            "set train_dataloader.num_workers (none are used now)"
            if workers == 0
            else f"use more workers (num_workers={workers} now) if cores are free"
        )
        return (
            f"Training waits for data {self.share:.0%} of the time (last {self.window} iterations): {remedy}, take several "
            "samples from each loaded volume, cache or pre-crop the cases, or choose cheaper transforms."
        )
