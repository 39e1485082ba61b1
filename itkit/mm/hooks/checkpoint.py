"""Save checkpoints and record which is the last and which the best."""

from __future__ import annotations

import math
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop

from itkit.errors import ConfigError, TrainingError
from itkit.measures.direction import lower_is_better
from itkit.mm.group import share
from itkit.mm.model_state import is_finite
from itkit.mm.saving import is_between_steps
from itkit.registry import HOOKS


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Save every `interval` iterations (or epochs), at the end, and whenever validation finds a better model.

    Takes the arguments of MMEngine's hook of this name. Files lie in ``<run>/checkpoints``; ``run.json`` says which one is
    the last and which the best. When a validation falls on a saving step the checkpoint is written before it, so that a
    failing validation loses nothing; the training loop validates first when it resumes from such a checkpoint. The best
    model is then a copy of that file. Weights that are NaN or infinite are not saved: the good ones of before
    stay. While gradients of several iterations are added up, a checkpoint waits for the optimizer's step.

    The state is copied and training goes on; a thread writes the copy, proves what lies on the disk, records it, and only
    then removes the oldest. One checkpoint is written at a time: the next one waits for it, and raises its error.

    Args:
        interval: Iterations (epochs with `by_epoch`) between two checkpoints. -1 saves only at the end.
        by_epoch: Count epochs. None follows the training loop.
        save_optimizer: Store the optimizer, without which a run cannot be resumed exactly.
        save_param_scheduler: Store the schedulers.
        save_last: Save when the training ends.
        max_keep_ckpts: Number of ordinary checkpoints to keep; -1 keeps all. The best is kept apart.
        save_best: Metric that decides, e.g. ``"Dice"``; ``"auto"`` takes the first one; None keeps no best.
        rule: ``"greater"`` or ``"less"``; None decides by the name (losses and distances: less).
        save_begin: First iteration (epoch) at which to save.
        beside: Write beside the training; False lets training wait until each checkpoint is proven, and needs no memory
            for a copy longer than that.
        out_dir: Accepted for the sake of configs written for MMEngine, without effect; so are greater_keys, less_keys,
            filename_tmpl, published_keys, file_client_args and backend_args.
    """

    priority = "VERY_LOW"

    def __init__(
        self,
        interval: int = -1,
        by_epoch: bool | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        save_last: bool = True,
        max_keep_ckpts: int = 2,
        save_best: str | list[str] | None = "auto",
        rule: str | list[str] | None = None,
        save_begin: int = 0,
        beside: bool = True,
        out_dir: str | None = None,
        greater_keys: list[str] | None = None,
        less_keys: list[str] | None = None,
        filename_tmpl: str | None = None,
        published_keys: str | list[str] | None = None,
        file_client_args: dict | None = None,
        backend_args: dict | None = None,
    ):
        if rule not in (None, "greater", "less") and not isinstance(rule, list):
            raise ConfigError(f'CheckpointHook: rule {rule!r} is neither "greater" nor "less".')
        if max_keep_ckpts == 0:
            raise ConfigError(
                "CheckpointHook: max_keep_ckpts = 0 would leave nothing to resume from; use -1, 1 or more."
            )
        self.interval, self.by_epoch, self.save_begin = interval, by_epoch, save_begin
        self.content = {"save_optimizer": save_optimizer, "save_param_scheduler": save_param_scheduler}
        self.save_last, self.max_keep, self.beside = save_last, max_keep_ckpts, beside
        self.save_best = save_best[0] if isinstance(save_best, list) else save_best
        self.rule = rule[0] if isinstance(rule, list) else rule
        self._is_due = False

    def before_train(self, runner) -> None:
        if self.by_epoch is None:
            self.by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        self._is_due = False

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        runner.raise_failed_saving()
        step = runner.iter + 1
        if not self.by_epoch:
            self._is_due |= self._on_interval(step) or (step >= runner.max_iters and self.save_last)
        if self._is_due and not is_between_steps(runner.optim_wrapper):
            self._save(runner, step, runner.epoch)

    def after_train_epoch(self, runner) -> None:
        if not self.by_epoch:
            return
        epoch = runner.epoch + 1
        self._is_due |= self._on_interval(epoch) or (epoch >= runner.max_epochs and self.save_last)
        if self._is_due and not is_between_steps(runner.optim_wrapper):
            self._save(runner, runner.iter, epoch)

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        if not getattr(runner, "is_training", False):
            return
        best = self._keep_best(runner, runner.iter, metrics or {})
        known = {key: value for key, value in (metrics or {}).items() if "/" not in key and value is not None}
        means = ", ".join(f"{key} {value:.4f}" for key, value in known.items())
        note = ""
        if best:
            is_best = best["step"] == runner.iter
            note = " (best so far)" if is_best else f" (best {best['value']:.4f} at {best['step']})"
        runner.logger.info(f"validation at step {runner.iter}: {means}{note}")

    def after_train(self, runner) -> None:
        """Save what an early stop would leave unsaved."""
        if self.save_last:
            self.save_now(runner)

    def save_now(self, runner) -> None:
        """Save the iterations done so far if the newest checkpoint is older. To be called between two iterations."""
        if runner.iter <= runner.saved_step:
            return
        if is_between_steps(runner.optim_wrapper):
            runner.logger.warning(
                f"step {runner.iter} lies between two steps of the optimizer (accumulative_counts), where nothing whole can "
                f"be saved; the checkpoint of step {runner.saved_step} stays the last."
            )
            return
        self._save(runner, runner.iter, runner.epoch)

    def _on_interval(self, count: int) -> bool:
        return (
            self.interval > 0
            and count >= self.save_begin
            and (count - self.save_begin) % self.interval == 0
            and count > 0
        )

    def _save(self, runner, step: int, epoch: int) -> None:
        self._is_due = False
        if self._is_sound(runner, step):
            runner.save(step=step, epoch=epoch, keep=self.max_keep, beside=self.beside, **self.content)

    def _is_sound(self, runner, step: int) -> bool:
        """Whether the weights are worth a checkpoint.

        Raises:
            TrainingError: If they are not, and the training is over.
        """
        if is_finite(runner.model):
            return True
        what = f"step {step}: the weights are NaN or infinite and are not saved"
        if step >= runner.max_iters:
            raise TrainingError(f"{what}. Lower the learning rate, or clip gradients (optim_wrapper.clip_grad).")
        runner.logger.warning(f"{what}; the checkpoint before stays.")
        return False

    def _keep_best(self, runner, step: int, metrics: dict[str, float]) -> dict[str, Any] | None:
        """Save the model if it is the best so far; return step, metric and value of the best one."""
        runner.finish_saving()
        best = runner.run_state.best
        if self.save_best is None or not metrics:
            return best
        key = next(iter(metrics)) if self.save_best == "auto" else self.save_best
        if key not in metrics:
            raise ConfigError(f'CheckpointHook: save_best = "{key}", but validation gives {", ".join(metrics)}.')
        value = math.nan if metrics[key] is None else float(metrics[key])

        def decide() -> tuple[bool, float, dict[str, Any] | None]:
            known = best if best and runner.checkpoints.file(best).is_file() else None  # somebody may have removed it
            newly = not known or known["metric"] != key or self._is_better(key, value, known["value"])
            return math.isfinite(value) and newly, value, best

        better, value, best = share(decide)  # the first process keeps the record
        if not better or not self._is_sound(runner, step):
            return best
        runner.save_best(step=step, metric=key, value=value, **self.content)
        return {"step": step, "metric": key, "value": value}

    def _is_better(self, key: str, value: float, best: float) -> bool:
        rule = self.rule or ("less" if lower_is_better(key) else "greater")
        return value < best if rule == "less" else value > best
