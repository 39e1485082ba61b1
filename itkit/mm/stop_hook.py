"""Ask, between the iterations of a training and within its validations, whether somebody wants the run to end."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook

from itkit.mm.checkpoints import random_state, set_random_state
from itkit.mm.stopping import StopControl


class ValidationAbandoned(Exception):
    """A validation ends half-way because the run is to stop; the one that goes on later makes up for it."""


class StopHook(Hook):
    """Sets ``runner.stop_training`` after the same iteration in all processes, and breaks off validations.

    The job registers it, for a training; it is no part of a config.

    Args:
        control: Hears the requests and agrees with the other processes.
    """

    priority = "LOWEST"

    def __init__(self, control: StopControl):
        self.control = control
        self._random: dict[str, Any] | None = None

    def before_train(self, runner) -> None:
        """Ask before the first iteration."""
        runner.stop_training = not self.control.may_go_on()

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Ask after each iteration."""
        if not self.control.may_go_on():
            runner.stop_training = True

    def before_val(self, runner) -> None:
        """Ask once more when all cases are through, before the processes gather their results."""
        self._random = random_state()
        evaluator = runner.val_loop.evaluator
        if "evaluate" in vars(evaluator):
            return
        evaluate = evaluator.evaluate

        def ask_and_evaluate(size: int) -> dict:
            if runner.is_training and not self.control.may_go_on():
                self._abandon()
            return evaluate(size)

        evaluator.evaluate = ask_and_evaluate

    def before_val_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Break off where no other process has finished its cases already."""
        if runner.is_training and self.control.is_over():
            self._abandon()

    def _abandon(self) -> None:
        set_random_state(self._random)  # the validation will be repeated from its beginning
        raise ValidationAbandoned
