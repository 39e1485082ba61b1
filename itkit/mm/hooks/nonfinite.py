"""Stop a run whose loss has become NaN or infinite, and say since when."""

from __future__ import annotations

import math
from typing import Any

import torch
from mmengine.hooks import Hook

from itkit.errors import ConfigError, TrainingError
from itkit.registry import HOOKS


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """Stop after several iterations in a row whose loss is not a finite number.

    On a CPU each loss is looked at once it is there; on other devices the losses are fetched together every
    `check_interval` iterations, so that the device is not waited for.

    Args:
        patience: Losses in a row that must be NaN or infinite; 1 stops at the first.
        detect_anomaly: Let PyTorch name the operation whose gradient becomes NaN first. Several times slower.
        check_interval: Iterations between two looks at the losses of a device.
        key: Which of the model's outputs is the loss.

    Attributes:
        in_a_row: Number of non-finite losses up to the last look.

    Raises:
        ConfigError: If `patience` or `check_interval` is below 1.
        TrainingError: While training, naming the first such step, the loss and the learning rate.
    """

    priority = 30

    def __init__(self, patience: int = 5, detect_anomaly: bool = False, check_interval: int = 10, key: str = "loss"):
        if patience < 1 or check_interval < 1:
            raise ConfigError(
                f"NonFiniteLossHook: patience={patience} and check_interval={check_interval} must both be 1 or more."
            )
        self.patience, self.detect_anomaly = patience, detect_anomaly
        self.check_interval, self.key = check_interval, key
        self.in_a_row = 0
        self._waiting: list[tuple[int, torch.Tensor]] = []
        self._anomaly_before: bool | None = None

    def state_dict(self) -> dict[str, int]:
        """Return what a resumed run counts on from."""
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Count on from what `state_dict` returned."""
        self.in_a_row = state["in_a_row"]

    def before_train(self, runner) -> None:
        """Begin to count, or count on in a resumed run, and switch the detection on if it was asked for."""
        if runner.iter == 0:
            self.in_a_row = 0
        self._waiting.clear()
        if self.detect_anomaly:
            self._anomaly_before = torch.is_anomaly_enabled()
            torch.autograd.set_detect_anomaly(True)
            runner.logger.warning("Anomaly detection is on: training is several times slower.")

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        """Look at the loss of this iteration, or keep it for the next look."""
        loss = (outputs or {}).get(self.key)
        if loss is None:
            return
        step = runner.iter + 1
        if not isinstance(loss, torch.Tensor) or loss.device.type == "cpu":
            self._judge(runner, step, loss.item() if isinstance(loss, torch.Tensor) else float(loss))
            return
        self._waiting.append((step, loss.detach()))
        if len(self._waiting) >= self.check_interval:
            self._look(runner)

    def after_train_epoch(self, runner) -> None:
        """Look at the losses that still wait."""
        self._look(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Look before weights are kept that may be broken."""
        self._look(runner)

    def after_train(self, runner) -> None:
        """Put the detection back to what it was."""
        self.run_failed(runner)

    def run_failed(self, runner) -> None:
        """Put the detection back to what it was, after an exception too."""
        if self._anomaly_before is not None:
            torch.autograd.set_detect_anomaly(self._anomaly_before)
            self._anomaly_before = None

    def _look(self, runner) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        losses = torch.stack([loss.reshape(()).double() for _, loss in waiting]).tolist()
        for (step, _), loss in zip(waiting, losses, strict=True):
            self._judge(runner, step, loss)

    def _judge(self, runner, step: int, loss: float) -> None:
        if math.isfinite(loss):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        if self.in_a_row == 1:
            runner.logger.warning(f"The loss is {loss} at step {step}.")
        if self.in_a_row < self.patience:
            return
        rates = ", ".join(f"{rate[0]:.3g}" for rate in runner.optim_wrapper.get_lr().values())
        since = (
            ""
            if self.patience == 1
            else f", not finite {self.in_a_row} times in a row since step {step - self.in_a_row + 1}"
        )
        raise TrainingError(
            f"the loss is {loss} at step {step}{since}; the last learning rate was {rates}. Lower the learning rate, clip "
            "gradients (optim_wrapper.clip_grad), or find the operation with --detect-anomaly."
        )
