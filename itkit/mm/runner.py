"""MMEngine's Runner with checkpoints that are whole, a state that is written down, and a log that can be read."""

from __future__ import annotations

import contextlib
import logging
import os.path
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from itkit._support.files import write_text
from itkit._support.resources import cpu_seconds
from itkit._support.suggestions import nearest
from itkit.errors import CheckpointError, ConfigError
from itkit.experiment.state import CHECKPOINT_FOLDER, RunState
from itkit.mm import checkpoints
from itkit.mm.loader import guard_loader
from itkit.mm.provenance import describe_datasets
from itkit.registry import MODEL_WRAPPERS, RUNNERS


@RUNNERS.register_module()
class ExperimentRunner(Runner):
    """Trains or tests one model of one experiment.

    Built by `from_cfg`; building trains nothing. Afterwards ``train()`` or ``test()``.

    Attributes:
        run_state: What ``run.json`` holds.
        test_dir: Where results of a test are written.
        loaded_checkpoint: ``{"path", "step", "sha256"}`` of the weights in use, the path relative to the run folder, or None.
        is_training: Whether `train` is running (validation inside a training differs from a validation alone).
    """

    run_state: RunState
    test_dir: Path
    loaded_checkpoint: dict[str, Any] | None = None
    is_training = False
    _cpu_at_start = 0.0
    _config_text: str | None = None

    @classmethod
    def from_cfg(
        cls, cfg: Config, *, run_state: RunState | None = None, test_dir: Path | None = None
    ) -> ExperimentRunner:
        """Build a runner from a prepared config (see `itkit.mm.preparation.prepare`)."""
        runner = super().from_cfg(cfg)
        work_dir = Path(runner.work_dir)
        runner.run_state = run_state or RunState.load(work_dir)
        runner.test_dir = Path(test_dir) if test_dir else work_dir / "test"
        runner.start_clock()
        return runner

    # ---- where things lie ----

    @property
    def checkpoint_dir(self) -> Path:
        """Folder of the checkpoints."""
        return Path(self.work_dir) / CHECKPOINT_FOLDER

    @property
    def _log_dir(self) -> str:
        """One folder for the logs of all starts, where MMEngine would make one per start."""
        return os.path.join(self._work_dir, "logs")

    @_log_dir.setter
    def _log_dir(self, value: str) -> None:
        pass

    def dump_config(self) -> None:
        """Write the resolved config as ``config.py``."""
        if is_main_process():
            write_text(Path(self.work_dir) / "config.py", self.config_text)

    @property
    def config_text(self) -> str:
        """The resolved config as text, formatted once."""
        if self._config_text is None:
            try:
                self._config_text = self.cfg.pretty_text
            except SyntaxError:  # MMEngine's formatter gave up
                self._config_text = repr(self.cfg)
        return self._config_text

    # ---- what is said on the terminal ----

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs) -> MMLogger:
        """Log everything to the file; to the terminal (stderr) only what is said after building is done."""
        logger = super().build_logger(log_level=log_level, log_file=log_file, **kwargs)
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.setStream(sys.stderr)
                handler.setLevel(logging.WARNING)
            elif isinstance(handler, logging.FileHandler):
                handler.handleError = partial(_say_once_that_the_log_is_lost, handler)
        return logger

    def open_terminal_log(self) -> None:
        """From now on the terminal shows what the log file gets."""
        for handler in self.logger.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.INFO)
                handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
                handler.addFilter(_is_for_the_terminal)

    # ---- building ----

    @staticmethod
    def build_dataloader(dataloader, seed: int | None = None, diff_rank_seed: bool = False):
        """Build a loader whose dead workers and failing cases are named."""
        if not isinstance(dataloader, dict):
            return dataloader
        loader = Runner.build_dataloader(dataloader, seed=seed, diff_rank_seed=diff_rank_seed)
        return guard_loader(loader, seed=seed or 0) if isinstance(loader, DataLoader) else loader

    def wrap_model(self, model_wrapper_cfg: dict | None, model: torch.nn.Module) -> torch.nn.Module:
        """Move the model to its device; wrap it only where several processes share the work."""
        if self.world_size == 1:
            return model.to(get_device())
        if not torch.cuda.is_available() and model_wrapper_cfg and "device_ids" in model_wrapper_cfg:
            settings = {**model_wrapper_cfg, "module": model}
            return MODEL_WRAPPERS.build(settings)
        return super().wrap_model(model_wrapper_cfg, model)

    # ---- cost ----

    def start_clock(self, cpu_seconds_before: float | None = None) -> None:
        """Count CPU and wall time from now (or from `cpu_seconds_before`) on top of what earlier starts used."""
        self._cpu_at_start = cpu_seconds() if cpu_seconds_before is None else cpu_seconds_before
        self._wall_at_start = time.monotonic()
        self._minutes_before = (self.run_state.cpu_minutes, self.run_state.wall_minutes)

    def cpu_minutes(self) -> float:
        """CPU minutes of this start."""
        return (cpu_seconds() - self._cpu_at_start) / 60

    def record_state(self, state: str | None = None) -> None:
        """Bring ``run.json`` up to date."""
        if not is_main_process():
            return
        if state:
            self.run_state.state = state
        self.run_state.cpu_minutes = round(self._minutes_before[0] + self.cpu_minutes(), 4)
        self.run_state.wall_minutes = round(self._minutes_before[1] + (time.monotonic() - self._wall_at_start) / 60, 4)
        self.run_state.save(Path(self.work_dir))

    # ---- training and testing ----

    def train(self) -> torch.nn.Module:
        """Train from the last checkpoint, or from the beginning, to the end."""
        self.is_training = True
        try:
            model = super().train()
        finally:
            self.is_training = False
        self.run_state.failure = None
        self.record_state("trained")
        return model

    def load_or_resume(self) -> None:
        """Go on from the newest checkpoint that can be read; else load ``load_from``; else begin anew."""
        if self._has_loaded:
            return
        if self.is_training:
            self.run_state.max_steps = self.max_iters
            self.run_state.provenance["dataset"] = describe_datasets(self._datasets())
            candidates = self._checkpoints_newest_first()
            for path, digest in candidates:
                try:
                    checkpoint = checkpoints.load(path, get_device(), sha256_expected=digest)
                except CheckpointError as error:
                    self.logger.warning(f"{error} Trying the one before.")
                    continue
                self._resume_from(checkpoint, path)
                self._has_loaded = True
                return
            if candidates:
                raise CheckpointError(
                    f"{self.checkpoint_dir}: none of {len(candidates)} checkpoints can be read. "
                    "Remove the run folder to start anew."
                )
            self.run_state.state = "partial"
            self.record_state()
        if self._load_from is not None:
            self.load_checkpoint(self._load_from)

    def _datasets(self) -> dict[str, Any]:
        loaders = {"train": self.train_dataloader, "val": self.val_dataloader if self.val_loop else None}
        return {part: loader.dataset for part, loader in loaders.items() if hasattr(loader, "dataset")}

    def close(self) -> None:
        """Stop loader workers and close log files, so that the next model of the process starts clean."""
        for loop in (self._train_loop, self._val_loop, self._test_loop):
            stop = getattr(getattr(loop, "dataloader", None), "close", None)
            if callable(stop):
                stop()
        self.visualizer.close()
        for handler in list(self.logger.handlers):
            with contextlib.suppress(OSError):  # a full disk: said already
                handler.close()
            self.logger.removeHandler(handler)

    def _checkpoints_newest_first(self) -> list[tuple[Path, str | None]]:
        known = {r["checkpoint"]: r.get("sha256") for r in (self.run_state.last, self.run_state.best) if r}
        files = sorted(self.checkpoint_dir.glob("iter_*.pth"), key=lambda p: -int(p.stem.rpartition("_")[2]))
        return [(p, known.get(f"{CHECKPOINT_FOLDER}/{p.name}")) for p in files]

    def _resume_from(self, checkpoint: dict[str, Any], path: Path) -> None:
        self._resume = True
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        self._load_weights(checkpoint["state_dict"], str(path), strict=True)
        meta = checkpoint["meta"]
        self.train_loop._iter, self.train_loop._epoch = meta["iter"], meta["epoch"]
        for key, value in checkpoint["message_hub"].items():
            self.message_hub.update_info(key, value)
        if "optimizer" in checkpoint:
            self.optim_wrapper.load_state_dict(checkpoint["optimizer"])
        else:
            self.logger.warning(f"{path}: has no optimizer state; going on with a fresh optimizer.")
        self._load_schedulers(checkpoint.get("param_schedulers"))
        checkpoints.set_random_state(checkpoint["random"])
        self.logger.info(f"resumed at step {self.iter} from {path.name}")

    def _load_schedulers(self, states) -> None:
        if states is None or self.param_schedulers is None:
            return
        pairs = (
            [(s, t) for key, group in self.param_schedulers.items() for s, t in zip(group, states[key], strict=True)]
            if isinstance(self.param_schedulers, dict)
            else zip(self.param_schedulers, states, strict=True)
        )
        for scheduler, state in pairs:
            scheduler.load_state_dict(state)

    def load_checkpoint(
        self,
        filename: str,
        map_location: Any = "cpu",
        strict: bool = True,
        revise_keys: list | None = None,
        sha256_expected: str | None = None,
    ):
        """Load weights for testing or as a starting point; `sha256_expected` is the checksum recorded when they were written.

        Raises:
            CheckpointError: If the file is damaged, or its keys or shapes are not this model's.
        """
        path = Path(filename)
        checkpoint = checkpoints.load(path, map_location, sha256_expected=sha256_expected)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        self._load_weights(checkpoint.get("state_dict", checkpoint), filename, strict=strict)
        self._has_loaded = True
        step = checkpoint.get("meta", {}).get("iter") if isinstance(checkpoint.get("meta"), dict) else None
        try:
            name = path.resolve().relative_to(Path(self.work_dir).resolve()).as_posix()
        except ValueError:
            name = path.name
        self.loaded_checkpoint = {"path": name, "step": step, "sha256": sha256_expected or checkpoints.sha256(path)}
        self.logger.info(f"loaded {path}")
        return checkpoint

    def _load_weights(self, weights: dict[str, torch.Tensor], where: str, *, strict: bool) -> None:
        model = self.model.module if is_model_wrapper(self.model) else self.model
        own = model.state_dict()
        weights = {k.removeprefix("module."): v for k, v in weights.items()}
        missing = [k for k in own if k not in weights]
        unexpected = [k for k in weights if k not in own]
        shapes = [k for k in own if k in weights and own[k].shape != weights[k].shape]
        if (missing or unexpected or shapes) and strict:
            raise CheckpointError(
                f"{where}: is of another model. {_differences(own, weights, missing, unexpected, shapes)}"
            )
        model.load_state_dict({k: v for k, v in weights.items() if k in own and k not in shapes}, strict=False)

    # ---- saving ----

    def write_checkpoint(
        self, name: str, *, step: int, epoch: int, save_optimizer: bool = True, save_param_scheduler: bool = True
    ) -> dict[str, Any]:
        """Write a checkpoint as it is after `step` iterations; return ``{"step", "checkpoint", "sha256"}``.

        Raises:
            OSError: If it cannot be written. Earlier checkpoints are untouched.
        """
        model = self.model.module if is_model_wrapper(self.model) else self.model
        dataset_meta = getattr(getattr(self.train_dataloader, "dataset", None), "metainfo", None)
        checkpoint: dict[str, Any] = {
            "meta": {
                "iter": step,
                "epoch": epoch,
                "seed": self.seed,
                "experiment_name": self.experiment_name,
                "cfg": self.config_text,
                "time": time.strftime("%Y-%m-%d %H:%M:%S"),
                "dataset_meta": checkpoints.plain(dataset_meta),
            },
            "state_dict": {k: v.detach().cpu() for k, v in model.state_dict().items()},
            "message_hub": checkpoints.plain(dict(self.message_hub.runtime_info)),
            "random": checkpoints.random_state(),
        }
        if save_optimizer:
            checkpoint["optimizer"] = checkpoints.plain(self.optim_wrapper.state_dict())
        if save_param_scheduler and self.param_schedulers is not None:
            checkpoint["param_schedulers"] = self._scheduler_states()
        self.call_hook("before_save_checkpoint", checkpoint=checkpoint)
        record = {"step": step, "checkpoint": f"{CHECKPOINT_FOLDER}/{name}"}
        if is_main_process():
            record["sha256"] = checkpoints.save(checkpoint, self.checkpoint_dir / name)
        return record

    def _scheduler_states(self):
        def state(scheduler):
            return checkpoints.plain(scheduler.state_dict())

        if isinstance(self.param_schedulers, dict):
            return {key: [state(s) for s in group] for key, group in self.param_schedulers.items()}
        return [state(s) for s in self.param_schedulers]

    def save_checkpoint(
        self, out_dir: str, filename: str, *, by_epoch: bool = True, meta: dict | None = None, **kwargs
    ) -> None:
        """Save as MMEngine's hooks ask for it; the file lies in ``checkpoints`` like all others."""
        known = {"save_optimizer", "save_param_scheduler"}
        step = self.iter if by_epoch else self.iter + 1
        epoch = self.epoch + 1 if by_epoch else self.epoch
        record = self.write_checkpoint(
            filename, step=step, epoch=epoch, **{k: v for k, v in kwargs.items() if k in known}
        )
        self.run_state.step, self.run_state.last = step, record
        self.record_state()


def _say_once_that_the_log_is_lost(handler: logging.FileHandler, record: logging.LogRecord) -> None:
    """Let a run go on whose log file cannot be written any more."""
    error = sys.exc_info()[1]
    handler.handleError = lambda record: None
    sys.stderr.write(f"{handler.baseFilename}: the log cannot be written ({error}); the run goes on.\n")


def _is_for_the_terminal(record: logging.LogRecord) -> bool:
    """Leave out what the progress shows already; the log file keeps it."""
    return not record.getMessage().startswith(
        ("Exp name", "Iter(train)", "Epoch(train)", "Iter(val)", "Epoch(val)", "Iter(test)", "Epoch(test)")
    )


def _differences(own: dict, weights: dict, missing: list[str], unexpected: list[str], shapes: list[str]) -> str:
    parts = []
    if missing:
        parts.append(f"missing {len(missing)} ({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''})")
    if unexpected:
        near = nearest(unexpected[0], missing, count=1)
        parts.append(
            f"unexpected {len(unexpected)} ({', '.join(unexpected[:3])})" + (f", nearest {near[0]}" if near else "")
        )
    for key in shapes[:3]:
        parts.append(f"{key} has shape {tuple(weights[key].shape)}, the model wants {tuple(own[key].shape)}")
    return "; ".join(parts) + "."


def require_training_parts(cfg: Config) -> None:
    """Raise ConfigError if a config lacks what training needs."""
    lacking = [key for key in ("model", "train_dataloader", "train_cfg", "optim_wrapper") if cfg.get(key) is None]
    if lacking:
        raise ConfigError(
            f"{cfg.filename}: defines no {', '.join(lacking)}. A model config begins with: with read_base(): from .mgam import *"
        )
