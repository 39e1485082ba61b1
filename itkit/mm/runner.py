"""MMEngine's Runner with checkpoints that are whole, a state that is written down, and a log that can be read."""

from __future__ import annotations

import contextlib
import logging
import os.path
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from itkit._support.files import write_text
from itkit._support.resources import cpu_seconds
from itkit.artifacts.checkpoint import bare_weights, weight_differences
from itkit.errors import CheckpointError, ConfigError
from itkit.experiment.state import RunState
from itkit.mm import checkpoints, resuming
from itkit.mm.changes import describe_config
from itkit.mm.checkpoint_folder import CheckpointFolder
from itkit.mm.group import share
from itkit.mm.hooks.checkpoint import CheckpointHook
from itkit.mm.loader import guard_loader
from itkit.mm.model_state import load_model_state, unwrap, whole_to_change
from itkit.mm.provenance import describe_datasets
from itkit.mm.saving import Saving, take_state
from itkit.mm.strategies.sync_batch_norm import synchronise_batch_norms
from itkit.registry import MODEL_WRAPPERS, RUNNERS, SCOPE


@RUNNERS.register_module()
class ExperimentRunner(Runner):
    """Trains or tests one model of one experiment.

    Built by `from_cfg`; building trains nothing. Afterwards ``train()`` or ``test()``.

    Attributes:
        run_state: What ``run.json`` holds.
        test_dir: Where results of a test are written.
        checkpoints: The checkpoints of the run on the disk.
        loaded_checkpoint: ``{"path", "step", "sha256"}`` of the weights in use, the path relative to the run folder, or None.
        is_training: Whether `train` is running (validation inside a training differs from a validation alone).
        resume_changed: Whether a run may go on with a config or data other than it began with.
        trust_checkpoint: Whether checkpoints with Python objects, which can run code, are loaded.
        stop_training: Set it to let training stop after the iteration under way (see the loops).
        saved_step: Iterations done at the newest checkpoint, be it still under way; 0 without one.
        description: What the training depends on: ``config`` (see `itkit.mm.changes`), ``dataset``, ``global_batch``.
        cases: Part of the data -> case id -> short checksum, of the datasets that know them.
    """

    run_state: RunState
    test_dir: Path
    loaded_checkpoint: dict[str, Any] | None = None
    is_training = False
    resume_changed = False
    trust_checkpoint = False
    stop_training = False
    saved_step = 0
    description: dict[str, Any] = {}
    cases: dict[str, dict[str, str]] = {}
    _cpu_at_start = 0.0
    _config_text: str | None = None

    @classmethod
    def from_cfg(
        cls,
        cfg: Config,
        *,
        run_state: RunState | None = None,
        test_dir: Path | None = None,
        resume_changed: bool = False,
        trust_checkpoint: bool = False,
    ) -> ExperimentRunner:
        """Build a runner from a prepared config (see `itkit.mm.preparation.prepare`)."""
        runner = super().from_cfg(cfg)
        work_dir = Path(runner.work_dir)
        runner.run_state = run_state or RunState.load(work_dir)
        runner.test_dir = Path(test_dir) if test_dir else work_dir / "test"
        runner.resume_changed, runner.trust_checkpoint = resume_changed, trust_checkpoint
        runner._state_lock = threading.RLock()
        runner._saving = Saving()
        runner.checkpoints = CheckpointFolder(
            work_dir, runner.run_state, runner.record_state, runner.logger.warning, runner._state_lock
        )
        runner.start_clock()
        return runner

    # ---- where things lie ----

    @property
    def checkpoint_dir(self) -> Path:
        """Folder of the checkpoints."""
        return self.checkpoints.path

    @property
    def _log_dir(self) -> str:
        """One folder for the logs of all starts, where MMEngine would make one per start."""
        return os.path.join(self._work_dir, "logs")

    @_log_dir.setter
    def _log_dir(self, value: str) -> None:
        pass

    def dump_config(self) -> None:
        """Write nothing yet: ``config.py`` of a run is that of its last training, see `load_or_resume`."""

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
        """Log everything to the file; to the terminal (stderr) only what the main process says after building is done."""
        logger = super().build_logger(log_level=log_level, log_file=log_file, **kwargs)
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.setStream(sys.stderr)
                handler.setLevel(logging.WARNING if is_main_process() else logging.ERROR)
            elif isinstance(handler, logging.FileHandler):
                handler.handleError = partial(_say_once_that_the_log_is_lost, handler)
        return logger

    def open_terminal_log(self) -> None:
        """From now on the terminal shows what the log file gets; of several processes the main one speaks for all."""
        if not is_main_process():
            return
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
        """Move the model to its device; where several processes share the work, wrap it (None: `RemasteredDDP`).

        ``sync_bn`` of the config then exchanges batch normalisations, see `synchronise_batch_norms`.
        """
        model = model.to(get_device())
        if self.world_size == 1:
            return model
        model = synchronise_batch_norms(model, self.cfg.get("sync_bn"))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return model  # can be tested; training says that there is nothing to train
        wrapper = {"type": f"{SCOPE}.RemasteredDDP", **(model_wrapper_cfg or {})}
        return MODEL_WRAPPERS.build(wrapper, default_args={"module": model})

    def _init_model_weights(self) -> None:
        """Initialise weights as the model says; one that is cut into parts is put together for it."""
        with whole_to_change(self.model):
            super()._init_model_weights()

    def _maybe_compile(self, target: str) -> None:
        """Compile the step of the user's model, also inside a wrapper."""
        wrapped, self.model = self.model, unwrap(self.model)
        try:
            super()._maybe_compile(target)
        finally:
            self.model = wrapped

    # ---- cost ----

    def start_clock(self, cpu_seconds_before: float | None = None) -> None:
        """Count CPU and wall time from now (or from `cpu_seconds_before`) on top of what earlier starts used."""
        self._cpu_at_start = cpu_seconds() if cpu_seconds_before is None else cpu_seconds_before
        self._wall_at_start = time.monotonic()
        self._minutes_before = (self.run_state.cpu_minutes, self.run_state.wall_minutes)

    def cpu_minutes(self) -> float:
        """CPU minutes of this start."""
        return (cpu_seconds() - self._cpu_at_start) / 60

    def count_on_from(self, cpu_minutes: float, wall_minutes: float) -> None:
        """Count this start on top of what earlier ones are now known to have used."""
        self._minutes_before = (cpu_minutes, wall_minutes)

    def record_state(self, state: str | None = None) -> None:
        """Bring ``run.json`` up to date."""
        if not is_main_process():
            return
        with self._state_lock:  # a checkpoint under way records itself from another thread
            if state:
                self.run_state.state = state
            self.run_state.cpu_minutes = round(self._minutes_before[0] + self.cpu_minutes(), 4)
            elapsed_s = time.monotonic() - self._wall_at_start
            self.run_state.wall_minutes = round(self._minutes_before[1] + elapsed_s / 60, 4)
            self.run_state.save(Path(self.work_dir))

    # ---- training and testing ----

    def train(self) -> torch.nn.Module:
        """Train from the last checkpoint, or from the beginning, to the end, or until `stop_training` is set."""
        self.is_training = True
        try:
            model = super().train()
            self.finish_saving()
        finally:
            self.is_training = False
        if not self.stop_training or self.iter >= self.max_iters:
            share(partial(self.record_state, "trained"))
        return model

    def test(self) -> dict:
        """Test the weights that are loaded."""
        self.finish_saving()
        return super().test()

    def load_or_resume(self) -> None:
        """Go on from the newest checkpoint that can be read; else load ``load_from``; else begin anew."""
        if self._has_loaded:
            return
        if self.is_training:
            self._describe_start()
            share(self.checkpoints.tidy)
            if resuming.resume(self):
                self._has_loaded = True
                self.saved_step = self.iter
            share(self._begin_to_train)
        if self._load_from is not None and not self._has_loaded:
            self.load_checkpoint(self._load_from)

    def _describe_start(self) -> None:
        """Find out what the training depends on; the first process looks at the data for all."""
        loaders = {"train": self.train_dataloader, "val": self.val_dataloader if self.val_loop else None}
        datasets = {part: loader.dataset for part, loader in loaders.items() if hasattr(loader, "dataset")}
        data, self.cases = share(lambda: describe_datasets(datasets))
        loader = self.train_dataloader
        batch = getattr(loader, "batch_size", None) or getattr(loader.batch_sampler, "batch_size", None)
        self.description = {
            "config": describe_config(self.cfg),
            "dataset": data,
            "global_batch": None if batch is None else batch * self.world_size,
        }

    def _begin_to_train(self) -> None:
        """Write down that, with what, and on what the run is trained from now; the first process does."""
        self.run_state.max_steps = self.max_iters
        self.run_state.provenance["dataset"] = self.description["dataset"]
        self.run_state.state, self.run_state.failure, self.run_state.stopped = "partial", None, None
        write_text(Path(self.work_dir) / "config.py", self.config_text)
        resuming.note_data(self)
        self.record_state()

    def known_so_far(self) -> dict[str, Any]:
        """Return what of ``run.json`` could not be told from a checkpoint otherwise."""
        names = ("best", "changes", "parameters", "flops", "cpu_minutes", "wall_minutes")
        return {name: getattr(self.run_state, name) for name in names}

    def close(self) -> None:
        """Wait for a checkpoint under way, stop loader workers and close log files, so that the next model starts clean."""
        error = self._saving.finish_quietly()
        if error is not None:
            self.logger.error(f"the checkpoint under way could not be written: {error}")
        for loop in (self._train_loop, self._val_loop, self._test_loop):
            stop = getattr(getattr(loop, "dataloader", None), "close", None)
            if callable(stop):
                stop()
        self.visualizer.close()
        for handler in list(self.logger.handlers):
            with contextlib.suppress(OSError):  # a full disk: said already
                handler.close()
            self.logger.removeHandler(handler)

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
            UntrustedCheckpoint: If it holds objects that could run code, and ``trust_checkpoint`` is not set.
        """
        path = Path(filename)
        checkpoint = checkpoints.load(
            path, map_location, sha256_expected=sha256_expected, trusted=self.trust_checkpoint
        )
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        self.load_weights(bare_weights(checkpoint), filename, strict=strict)
        self._has_loaded = True
        step = checkpoint.get("meta", {}).get("iter") if isinstance(checkpoint.get("meta"), dict) else None
        try:
            name = path.resolve().relative_to(Path(self.work_dir).resolve()).as_posix()
        except ValueError:
            name = path.name
        self.loaded_checkpoint = {"path": name, "step": step, "sha256": sha256_expected or checkpoints.sha256(path)}
        self.logger.info(f"loaded {path}")
        return checkpoint

    def load_weights(self, weights: dict[str, torch.Tensor], where: str, *, strict: bool) -> None:
        """Copy weights, whole and by the names of the bare model, into the model.

        Args:
            weights: Name -> tensor; ``module.`` in front of a name is left out.
            where: What they come from, for messages.
            strict: Refuse names or shapes that are not this model's, instead of leaving them out.

        Raises:
            CheckpointError: If `strict` and something does not fit.
        """
        own = unwrap(self.model).state_dict()
        weights = bare_weights(weights)
        differences = weight_differences(own, weights)
        if differences and strict:
            raise CheckpointError(f"{where}: is of another model. {differences}")
        fitting = {k: v for k, v in weights.items() if k in own and not weight_differences({k: own[k]}, {k: v})}
        load_model_state(self.model, fitting, strict=False)

    # ---- saving ----

    def save(
        self,
        name: str | None = None,
        *,
        step: int,
        epoch: int,
        keep: int = -1,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        beside: bool = True,
    ) -> None:
        """Take the state as it is after `step` iterations and write it as a checkpoint, beside what follows.

        All processes must call this. The checkpoint before is finished first; an error of it is raised here.

        Args:
            name: File name; None: ``iter_<step>.pth``.
            step: Iterations done.
            epoch: Epochs completed.
            keep: Ordinary checkpoints that stay, this one among them; -1 keeps all.
            save_optimizer: Without it a run cannot be resumed exactly.
            save_param_scheduler: The same.
            beside: False returns when the checkpoint is proven and recorded.

        Raises:
            OSError: If this checkpoint (where `beside` is False) or the one before could not be written.
        """
        self.finish_saving()
        state = take_state(
            self, step=step, epoch=epoch, save_optimizer=save_optimizer, save_param_scheduler=save_param_scheduler
        )
        self.saved_step = step
        write = partial(self.checkpoints.write, state, name or f"iter_{step}.pth", step=step, keep=keep)
        self._saving.start(write, beside=beside)

    def save_best(
        self, *, step: int, metric: str, value: float, save_optimizer: bool = True, save_param_scheduler: bool = True
    ) -> None:
        """Let the state after `step` iterations be the best: a copy of the checkpoint of that step, or a new file, beside what
        follows.

        All processes must call this. The checkpoint before is finished first; an error of it is raised here.

        Args:
            step: Iterations done.
            metric: Name of the metric that decides.
            value: Its value.
            save_optimizer: As in `save`.
            save_param_scheduler: As in `save`.
        """
        self.finish_saving()
        source = share(lambda: self.checkpoints.of_step(step))
        if source is not None:
            self._saving.start(partial(self.checkpoints.copy_best, source, metric=metric, value=value))
            return
        state = take_state(
            self, step=step, epoch=self.epoch, save_optimizer=save_optimizer, save_param_scheduler=save_param_scheduler
        )
        self._saving.start(partial(self.checkpoints.write_best, state, step=step, metric=metric, value=value))

    def finish_saving(self) -> None:
        """Wait until the checkpoint under way is proven and recorded. All processes must call this.

        Raises:
            OSError: If it could not be written; every process raises.
        """
        self._saving.finish()

    def raise_failed_saving(self) -> None:
        """Raise the error of a checkpoint that has failed meanwhile, where one process trains alone; does not wait."""
        self._saving.raise_if_failed()

    def save_now(self) -> None:
        """Make sure that the iterations done so far are saved, proven and recorded. All processes must call this.

        To be called between two iterations. While gradients are being accumulated there is nothing whole to save, and the
        checkpoint before stays the newest; the loops stop only at the end of such a window.

        Raises:
            OSError: If a checkpoint could not be written.
        """
        hook = next((hook for hook in self.hooks if isinstance(hook, CheckpointHook)), None) or CheckpointHook()
        hook.save_now(self)
        self.finish_saving()

    def save_checkpoint(
        self, out_dir: str, filename: str, *, by_epoch: bool = True, meta: dict | None = None, **kwargs
    ) -> None:
        """Save as MMEngine's hooks ask for it; the file lies in ``checkpoints`` like all others."""
        known = {"save_optimizer", "save_param_scheduler"}
        step = self.iter if by_epoch else self.iter + 1
        epoch = self.epoch + 1 if by_epoch else self.epoch
        options = {k: v for k, v in kwargs.items() if k in known}
        self.save(filename, step=step, epoch=epoch, beside=False, **options)


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


def require_training_parts(cfg: Config) -> None:
    """Raise ConfigError if a config lacks what training needs."""
    lacking = [key for key in ("model", "train_dataloader", "train_cfg", "optim_wrapper") if cfg.get(key) is None]
    if lacking:
        raise ConfigError(
            f"{cfg.filename}: defines no {', '.join(lacking)}. A model config begins with: with read_base(): from .mgam import *"
        )
