"""Show how far a run is, how fast, and when it will be done: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from itkit.errors import ConfigError
from itkit.mm.hooks.runtime_info import as_number
from itkit.registry import HOOKS


@HOOKS.register_module()
class ProgressHook(Hook):
    """Progress of training, validation and test with remaining time, throughput, loss and share of waiting for data.

    Only the first process shows anything. On a terminal (stderr) it is one bar that is redrawn in place; elsewhere one
    line of the log every `interval` iterations. Time spent in validation does not count into the speed.

    Args:
        interval: Iterations between two plain lines.
        refresh_s: Seconds between two redraws of the bar.
        terminal: None looks whether stderr is a terminal; True and False decide.

    Raises:
        ConfigError: If `interval` is below 1.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, interval: int = 50, refresh_s: float = 0.5, terminal: bool | None = None):
        if interval < 1:
            raise ConfigError(f"ProgressHook: interval={interval} must be 1 or more.")
        self.interval, self.refresh_s = interval, refresh_s
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._cases: TaskID | None = None
        self._active = False

    def before_train(self, runner) -> None:
        """Begin to measure, and open the bar."""
        self._active = is_main_process()
        self._restart(runner.iter)
        if self._active and self.terminal:
            self._open()
            self._task = self._bar.add_task("train", total=runner.max_iters, completed=runner.iter, text="")

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        """Show the new state when it is time to."""
        if not self._active:
            return
        step = runner.iter + 1
        if self._bar is None:
            if step % self.interval == 0 or step == runner.max_iters:
                runner.logger.info(f"step {step}/{runner.max_iters}  {self._describe(runner, step, outputs, eta=True)}")
                self._restart(step)
        elif time.perf_counter() - self._shown >= self.refresh_s or step == runner.max_iters:
            self._bar.update(self._task, completed=step, text=self._describe(runner, step, outputs, eta=False))
            self._shown = time.perf_counter()

    def before_val_epoch(self, runner) -> None:
        """Show the cases of a validation in a second bar."""
        self._pause = time.perf_counter()
        self._open_cases("validate", runner.val_dataloader)

    def after_val_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count a batch of cases."""
        self._count_case(batch_idx)

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        """Take the second bar away, and the time out of the measurement."""
        self._close_cases()
        self._since += time.perf_counter() - self._pause

    def before_test_epoch(self, runner) -> None:
        """Show the cases of a test."""
        self._active = is_main_process()
        self._open_cases("test", runner.test_dataloader)

    def after_test_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count a batch of cases."""
        self._count_case(batch_idx)

    def after_test_epoch(self, runner, metrics: dict | None = None) -> None:
        """Close the bar."""
        self._close_cases()
        if self._task is None:
            self._close()

    def after_train(self, runner) -> None:
        """Close the bar."""
        self._close()

    def run_failed(self, runner) -> None:
        """Close the bar so that the error is readable."""
        self._close()

    _since = 0.0
    _step = 0
    _shown = 0.0
    _pause = 0.0

    def _restart(self, step: int) -> None:
        self._since, self._step, self._shown = time.perf_counter(), step, 0.0

    def _describe(self, runner, step: int, outputs: dict | None, *, eta: bool) -> str:
        """Return loss, speed and waiting share as a line."""
        loss = as_number((outputs or {}).get("loss"))
        rate = (step - self._step) / max(time.perf_counter() - self._since, 1e-9)
        parts = [] if loss is None else [f"loss {loss:.4g}"]
        parts.append(f"{rate:.3g} it/s")
        batch = getattr(runner.train_loop.dataloader, "batch_size", None)
        if batch:
            parts.append(f"{rate * batch * runner.world_size:.3g} samples/s")
        waited = runner.message_hub.log_scalars.get("train/data_wait")
        if waited is not None:
            parts.append(f"waiting for data {waited.current():.1%}")
        if eta and rate > 0:
            minutes, seconds = divmod(int((runner.max_iters - step) / rate), 60)
            parts.append(f"ready in {minutes // 60}:{minutes % 60:02d}:{seconds:02d}")
        return "  ".join(parts)

    def _open(self) -> None:
        if self._bar is None:
            columns = (  # in a narrow terminal the text gives way, not the numbers
                TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=8)),
                BarColumn(bar_width=12),
                MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=7)),
                TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
                TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            )
            self._bar = Progress(
                *columns, console=Console(stderr=True, force_terminal=True), expand=True, transient=True
            )
            self._bar.start()
            _log_to_stderr_as_it_is_now()

    def _open_cases(self, name: str, loader: Any) -> None:
        if self.terminal and is_main_process():
            self._open()
            self._cases = self._bar.add_task(name, total=len(loader), text="")

    def _count_case(self, batch_idx: int) -> None:
        if self._cases is not None:
            self._bar.update(self._cases, completed=batch_idx + 1)

    def _close_cases(self) -> None:
        if self._cases is not None:
            self._bar.remove_task(self._cases)
            self._cases = None

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            _log_to_stderr_as_it_is_now()
        self._bar = self._task = self._cases = None


def _log_to_stderr_as_it_is_now() -> None:
    """Let the log write through the open bar, which then stays below what is said; or to the terminal itself again."""
    for handler in MMLogger.get_current_instance().handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setStream(sys.stderr)
