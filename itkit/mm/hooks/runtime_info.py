"""Record what a run produces, number by number, so that no value and no length of a run can hurt it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.hooks import RuntimeInfoHook as EngineRuntimeInfoHook
from mmengine.logging import HistoryBuffer

from itkit.registry import HOOKS

_TO_CONVERT = 128
"""Numbers that may wait on a device before they are fetched together."""


def as_number(value: Any) -> float | int | None:
    """Return `value` as a Python number, NaN and infinities as they are, or None if it is not one number.

    Integers that no float can hold become an infinity of their sign.
    """
    if isinstance(value, (torch.Tensor, np.ndarray)):
        if (value.numel() if isinstance(value, torch.Tensor) else value.size) != 1:
            return None
        value = value.item()
    elif isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        try:
            float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
        return value
    return value if isinstance(value, float) else None


class ScalarHistory(HistoryBuffer):
    """MMEngine's history of a logged scalar with constant cost a value and a bounded length.

    The original copies its whole history at every update and asks a device for every number. This one keeps the last
    `max_length` values and fetches tensors of other devices only when somebody reads. It is saved and copied as a plain
    `HistoryBuffer`, so that a checkpoint needs nothing of itkit to be read.

    Args:
        log_history: Values so far.
        count_history: Their counts, as long.
        max_length: How many of the latest values are kept.
    """

    def __init__(self, log_history: Iterable = (), count_history: Iterable = (), max_length: int = 2000):
        self.max_length = max_length
        self._set_default_statistics()
        self._values: deque = deque(log_history, maxlen=max_length)
        self._counts: deque = deque(count_history, maxlen=max_length)
        self._waiting: list[torch.Tensor] = []

    @classmethod
    def of(cls, history: HistoryBuffer) -> ScalarHistory:
        """Return a fast history with the content of `history`."""
        values, counts = history.data
        return cls(values.tolist(), counts.tolist())

    def update(self, log_val: float, count: int = 1) -> None:
        """Append one number."""
        if self._waiting:
            self._fetch()
        self._values.append(log_val)
        self._counts.append(count)

    def append(self, value: torch.Tensor | float) -> None:
        """Append one number, or a tensor of one element whose value is fetched later if it lies on another device."""
        if isinstance(value, torch.Tensor) and value.device.type != "cpu":
            self._waiting.append(value.detach().reshape(()))
            if len(self._waiting) >= _TO_CONVERT:
                self._fetch()
            return
        number = as_number(value)
        self.update(math.nan if number is None else number)

    def _fetch(self) -> None:
        waiting, self._waiting = self._waiting, []
        numbers = torch.stack([value.to(torch.float64) for value in waiting]).tolist()
        self._values.extend(numbers)
        self._counts.extend([1] * len(numbers))

    def _latest(self, window: int | None) -> tuple[list, list]:
        if self._waiting:
            self._fetch()
        window = len(self._values) if window is None else window
        return list(islice(reversed(self._values), window))[::-1], list(islice(reversed(self._counts), window))[::-1]

    @property
    def _log_history(self) -> np.ndarray:
        return np.array(self._latest(None)[0], dtype=float)

    @property
    def _count_history(self) -> np.ndarray:
        return np.array(self._latest(None)[1], dtype=float)

    def mean(self, window_size: int | None = None) -> float:
        """Return the mean of the last `window_size` values (None: of all kept); NaN without any."""
        values, counts = self._latest(window_size)
        with np.errstate(all="ignore"):
            return float(np.sum(values, dtype=float)) / sum(counts) if values else math.nan

    def current(self) -> float:
        """Return the latest value; NaN without any."""
        if self._waiting:
            self._fetch()
        return self._values[-1] if self._values else math.nan

    def __reduce_ex__(self, protocol: Any) -> tuple:
        values, counts = self._latest(None)
        return HistoryBuffer, (values, counts)


@HOOKS.register_module()
class RuntimeInfoHook(EngineRuntimeInfoHook):
    """MMEngine's hook of this name, hardened and of constant cost.

    Every number of the model's outputs and of the metrics is recorded as it is: NaN, infinities, values beyond float32,
    NumPy and Boolean scalars. A metric that is None or not finite stays visible as such; what is no number at all
    (texts, tables) goes to the runtime information. Histories are `ScalarHistory`.
    """

    def before_train(self, runner) -> None:
        """Note the state of the run, and make restored histories fast ones."""
        super().before_train(runner)
        self._quicken(runner.message_hub)

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Record the iteration and the learning rates."""
        hub = runner.message_hub
        hub.update_info("iter", runner.iter)
        for name, rates in runner.optim_wrapper.get_lr().items():
            self._record(hub, f"train/{name}", rates[0])

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        """Record what the training step returned."""
        hub = runner.message_hub
        for key, value in (outputs or {}).items():
            self._record(hub, f"train/{key}", value)
        if batch_idx % 100 == 0:
            self._quicken(hub)

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        """Record the metrics of a validation."""
        self._record_metrics(runner.message_hub, "val", metrics)

    def after_test_epoch(self, runner, metrics: dict | None = None) -> None:
        """Record the metrics of a test."""
        self._record_metrics(runner.message_hub, "test", metrics)

    def _record_metrics(self, hub, split: str, metrics: dict | None) -> None:
        for key, value in (metrics or {}).items():
            name = f"{split}/{key}"
            value = math.nan if value is None and name in hub.log_scalars else value
            if as_number(value) is None:
                hub.update_info(name, value)
            else:
                self._record(hub, name, value)

    @staticmethod
    def _record(hub, name: str, value: Any) -> None:
        history = hub.log_scalars.get(name)
        if history is None:
            number = as_number(value)
            hub.update_scalar(name, math.nan if number is None else number)
            hub.log_scalars[name] = ScalarHistory.of(hub.log_scalars[name])
        elif isinstance(history, ScalarHistory):
            history.append(value)
        else:
            hub.log_scalars[name] = fast = ScalarHistory.of(history)
            fast.append(value)

    @staticmethod
    def _quicken(hub) -> None:
        """Replace the slow histories that other hooks (timer, gradient clipping) made."""
        for name, history in hub.log_scalars.items():
            if type(history) is HistoryBuffer:
                hub.log_scalars[name] = ScalarHistory.of(history)
