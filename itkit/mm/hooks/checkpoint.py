"""Save checkpoints and record which is the last and which the best."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop

from itkit.errors import ConfigError, TrainingError
from itkit.measures.direction import lower_is_better
from itkit.registry import HOOKS


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Save every `interval` iterations (or epochs), at the end, and whenever validation finds a better model.

    Takes the arguments of MMEngine's hook of this name. Files lie in ``<run>/checkpoints``; ``run.json`` says which one is
    the last and which the best. When a validation falls on a saving step the checkpoint is written before it, so that a
    failing validation loses nothing; the training loop validates first when it resumes from such a checkpoint. Weights
    that are NaN or infinite are not saved: the good ones of before stay.

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
        self.save_optimizer, self.save_param_scheduler, self.save_last = save_optimizer, save_param_scheduler, save_last
        self.max_keep = max_keep_ckpts
        self.save_best = save_best[0] if isinstance(save_best, list) else save_best
        self.rule = rule[0] if isinstance(rule, list) else rule

    def before_train(self, runner) -> None:
        if self.by_epoch is None:
            self.by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self.by_epoch:
            return
        step = runner.iter + 1
        last = step >= runner.max_iters
        if self._on_interval(step) or (last and self.save_last):
            self._save(runner, step)

    def after_train_epoch(self, runner) -> None:
        if not self.by_epoch:
            return
        epoch = runner.epoch + 1
        if self._on_interval(epoch) or (epoch >= runner.max_epochs and self.save_last):
            self._save(runner, runner.iter, epoch=epoch)

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        if not getattr(runner, "is_training", False):
            return
        self._keep_best(runner, runner.iter, metrics or {})
        known = {key: value for key, value in (metrics or {}).items() if "/" not in key and value is not None}
        means = ", ".join(f"{key} {value:.4f}" for key, value in known.items())
        best = runner.run_state.best
        note = ""
        if best:
            is_best = best["step"] == runner.iter
            note = " (best so far)" if is_best else f" (best {best['value']:.4f} at {best['step']})"
        runner.logger.info(f"validation at step {runner.iter}: {means}{note}")

    def after_train(self, runner) -> None:
        """Save what an early stop would leave unsaved."""
        if self.save_last and runner.iter > runner.run_state.step:
            self._save(runner, runner.iter)

    def _on_interval(self, count: int) -> bool:
        return (
            self.interval > 0
            and count >= self.save_begin
            and (count - self.save_begin) % self.interval == 0
            and count > 0
        )

    def _save(self, runner, step: int, epoch: int | None = None, name: str | None = None) -> dict[str, Any] | None:
        if not all(bool(torch.isfinite(weight).all()) for weight in runner.model.parameters()):
            what = f"step {step}: the weights are NaN or infinite and are not saved"
            if step >= runner.max_iters:
                raise TrainingError(f"{what}. Lower the learning rate, or clip gradients (optim_wrapper.clip_grad).")
            runner.logger.warning(f"{what}; the checkpoint before stays.")
            return None
        record = runner.write_checkpoint(
            name or f"iter_{step}.pth",
            step=step,
            epoch=runner.epoch if epoch is None else epoch,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
        )
        if name is None and is_main_process():
            runner.run_state.step = step
            runner.run_state.last = record
            runner.record_state()
            self._remove_old(runner)
        return record

    def _keep_best(self, runner, step: int, metrics: dict[str, float]) -> None:
        if self.save_best is None or not metrics:
            return
        key = next(iter(metrics)) if self.save_best == "auto" else self.save_best
        if key not in metrics:
            raise ConfigError(f'CheckpointHook: save_best = "{key}", but validation gives {", ".join(metrics)}.')
        value = math.nan if metrics[key] is None else float(metrics[key])
        best = runner.run_state.best
        if best and not (Path(runner.work_dir) / best["checkpoint"]).is_file():
            best = None  # somebody removed it
        if not math.isfinite(value) or (
            best and best["metric"] == key and not self._is_better(key, value, best["value"])
        ):
            return
        record = self._save(runner, step, name=f"best_iter_{step}.pth")
        if record is None or not is_main_process():
            return
        runner.run_state.best = {**record, "metric": key, "value": value}
        runner.record_state()
        for old in runner.checkpoint_dir.glob("best_iter_*.pth"):
            if old.name != Path(record["checkpoint"]).name:
                old.unlink(missing_ok=True)

    def _is_better(self, key: str, value: float, best: float) -> bool:
        rule = self.rule or ("less" if lower_is_better(key) else "greater")
        return value < best if rule == "less" else value > best

    def _remove_old(self, runner) -> None:
        if self.max_keep < 0:
            return
        files = sorted(runner.checkpoint_dir.glob("iter_*.pth"), key=lambda p: int(p.stem.rpartition("_")[2]))
        current = Path(runner.run_state.last["checkpoint"]).name
        for old in [p for p in files if p.name != current][: max(0, len(files) - self.max_keep)]:
            old.unlink(missing_ok=True)
