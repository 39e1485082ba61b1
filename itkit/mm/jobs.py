"""One model at a time: check it, train it, test it, and say in one line what happened."""

from __future__ import annotations

import contextlib
import copy
import errno
import itertools
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process

from itkit._support.files import write_text
from itkit._support.resources import cpu_seconds
from itkit.errors import ConfigError, ItkitError, TrainingError
from itkit.experiment import lock
from itkit.experiment.names import Experiment, Roots
from itkit.experiment.state import CHECKPOINT_FOLDER, RESULT_FILE, RunState, is_tested, load_result
from itkit.mm.config import load_config
from itkit.mm.config_check import check_config
from itkit.mm.plan import channels_of, count_flops, describe_plan, patch_of
from itkit.mm.preparation import prepare
from itkit.mm.processes import join
from itkit.mm.provenance import describe_run
from itkit.mm.runner import ExperimentRunner, require_training_parts


@dataclass(frozen=True)
class Request:
    """What the command line asks to be done with each model."""

    train: bool = True
    test: bool = False
    check: bool = False
    smoke: bool = False
    use_last: bool = False
    auto_retry: int = 0
    detect_anomaly: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)
    launcher: str = "none"


@dataclass(frozen=True)
class Outcome:
    """What came of one model.

    Attributes:
        message: One line for the summary.
        error: The reason of a failure, else None.
        traceback_file: Where the traceback of a failure lies.
    """

    experiment: str
    model: str
    message: str
    error: BaseException | None = None
    traceback_file: Path | None = None

    @property
    def exit_code(self) -> int:
        """0 if all went well, else that of the error."""
        return 0 if self.error is None else getattr(self.error, "exit_code", 1)


class Job:
    """One model of one experiment.

    Args:
        experiment: Where its configs are.
        model: Its name.
        roots: Where runs and test results go.
        request: What to do.
        say: Called with each line meant for the user.
    """

    def __init__(self, experiment: Experiment, model: str, roots: Roots, request: Request, say: Callable[[str], None]):
        self.experiment, self.model, self.request, self._say = experiment, model, request, say
        work = roots.work / ".smoke" if request.smoke else roots.work
        test = roots.work / ".smoke" / "test" if request.smoke else roots.test
        self.run_dir = work / experiment.name / model
        self.test_dir = test / experiment.name / model
        self.title = f"{experiment.name}/{model}"

    def say(self, text: str) -> None:
        """Tell the user, with the model's name in front; only the first process of several speaks."""
        if is_main_process():
            self._say(f"{self.title}: {text}")

    def run(self) -> Outcome:
        """Do what was asked; an error becomes an outcome and never stops the models that follow."""
        attempt = 0
        while True:
            try:
                return Outcome(self.experiment.name, self.model, self._do())
            except Exception as error:  # border: one failing model does not stop the others
                file = self._write_traceback(error)
                message = one_line(error)
                retry = attempt < self.request.auto_retry and not isinstance(error, (ConfigError, lock.RunLocked))
                self.say(f"failed: {message}" + (f"\n  traceback: {file}" if file else ""))
                self._record_failure(error, message, file)
                if not retry:
                    return Outcome(self.experiment.name, self.model, message, error, file)
                attempt += 1
                self.say(f"retry {attempt} of {self.request.auto_retry}, from the last checkpoint")
                release_memory()

    # ---- steps ----

    def _do(self) -> str:
        cfg = self._load()
        join(self.request.launcher)
        if self.request.check:
            if self.request.train:
                require_training_parts(cfg)
            plan = describe_plan(cfg)
            self.say("is well formed\n" + plan)
            return "checked"
        if self.request.smoke:
            shutil.rmtree(self.run_dir, ignore_errors=True)
            shutil.rmtree(self.test_dir, ignore_errors=True)
        with self._held():
            done = []
            if self.request.train:
                done.append(self._train(cfg))
            if self.request.test and self.request.train and cfg.get("test_dataloader") is None:
                self.say("defines no test_dataloader, so it is not tested")
            elif self.request.test:
                done.append(self._test(cfg))
        if self.request.smoke:
            self.say("smoke test passed")
            done.append("smoke test passed")
        return "; ".join(done)

    def _load(self) -> Config:
        cfg = load_config(self.experiment, self.model, self.request.overrides)
        check_config(cfg)
        return cfg

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        if not is_main_process() or int(os.environ.get("RANK", "0")) > 0:
            yield
            return
        with contextlib.ExitStack() as held:
            try:
                stale = held.enter_context(lock.hold(self.run_dir))
            except OSError as error:
                raise TrainingError(
                    f"{self.run_dir}: the work directory cannot be written ({error.strerror}). Choose another with "
                    "--work-dir-root or the variable mm_workdir."
                ) from error
            if stale:
                self.say(f"takes over from process {stale.get('pid')} on {stale.get('host')}, which has died")
            yield

    def _build(self, cfg: Config, state: RunState) -> ExperimentRunner:
        prepared = prepare(
            copy.deepcopy(cfg),
            work_dir=self.run_dir,
            detect_anomaly=self.request.detect_anomaly,
            smoke=self.request.smoke,
            launcher=self.request.launcher,
        )
        # MMEngine keeps logger, visualizer and message hub under this name: no two runners of a process may share it.
        prepared.experiment_name = f"{self.title}_{time.strftime('%Y%m%d_%H%M%S')}_{next(_runner_numbers)}"
        return ExperimentRunner.from_cfg(prepared, run_state=state, test_dir=self.test_dir)

    def _train(self, cfg: Config) -> str:
        require_training_parts(cfg)
        state = RunState.load(self.run_dir)
        wanted = cfg.train_cfg.get("max_iters")
        if wanted is not None and (not isinstance(wanted, (int, float)) or wanted < 1):
            raise ConfigError(f"train_cfg: max_iters must be a positive whole number, got {wanted!r}.")
        if state.state == "trained" and (wanted is None or state.max_steps >= wanted):
            best = (
                f", best {state.best['metric']} {state.best['value']:.4f} at {state.best['step']}" if state.best else ""
            )
            self.say(f"is trained already ({state.step} steps{best}); nothing to do")
            return "was trained already"
        if state.last and not any((self.run_dir / CHECKPOINT_FOLDER).glob("iter_*.pth")):
            self.say(f"the checkpoints up to step {state.step} are gone, so it begins anew")
            state = RunState(self.experiment.name, self.model)
        cpu_before = clock()
        runner = self._build(cfg, state)
        runner.start_clock(cpu_before)
        runner.run_state.provenance = describe_run(self.experiment.folder, runner.seed)
        runner.run_state.parameters = sum(p.numel() for p in runner.model.parameters())
        if runner.run_state.flops is None and patch_of(cfg):
            runner.run_state.flops = count_flops(runner.model, patch_of(cfg), channels_of(runner.model))
        runner.run_state.state, runner.run_state.failure = "partial", None
        runner.record_state()
        if wanted is not None and state.step > wanted:
            self.say(f"is at step {state.step} already, beyond the {wanted} asked for; nothing to train")
        elif runner.run_state.last:
            self.say(f"resumes after step {state.step} of {wanted or state.max_steps}")
        else:
            self.say(f"trains on {get_device()}, {runner.run_state.parameters:,} parameters")
        runner.open_terminal_log()
        with closing(runner):
            runner.train()
        best = runner.run_state.best
        note = f"trained, {runner.run_state.step} steps in {runner.run_state.cpu_minutes:.1f} CPU minutes"
        if best:
            note += f", best {best['metric']} {best['value']:.4f} at {best['step']}"
        self.say(note)
        return note

    def _test(self, cfg: Config) -> str:
        state = RunState.load(self.run_dir)
        if cfg.get("test_dataloader") is None:
            raise ConfigError(f"{cfg.filename}: defines no test_dataloader, so there is nothing to test on.")
        use_last = self.request.use_last
        if not use_last and state.best is None and state.last is not None:
            self.say("has no best checkpoint, because it was never validated; testing the last one")
            use_last = True
        path, step = state.checkpoint(self.run_dir, last=use_last)
        record = state.last if use_last else state.best
        result = load_result(self.test_dir)
        if (
            result
            and is_tested(state, result)
            and result.get("sha256") == record.get("sha256")
            and result["step"] == step
        ):
            self.say(f"was tested with this very checkpoint ({path.name}) already; see {self.test_dir / RESULT_FILE}")
            return "was tested already"
        runner = self._build(cfg, state)
        runner.open_terminal_log()
        with closing(runner):
            runner.load_checkpoint(str(path), sha256_expected=record.get("sha256"))
            metrics = runner.test()
        note = f"tested step {step}: " + ", ".join(
            f"{k} {v:.4f}" for k, v in metrics.items() if "/" not in k and v is not None
        )
        self.say(note)
        return note

    # ---- failures ----

    def _write_traceback(self, error: BaseException) -> Path | None:
        if isinstance(error, lock.RunLocked) or self.request.check:
            return None
        name = time.strftime("%Y%m%d_%H%M%S") + (f"_rank{os.environ['RANK']}" if "RANK" in os.environ else "")
        file = self.run_dir / "logs" / f"{name}.traceback.txt"
        try:
            while file.exists():  # two failures in one second
                file = file.with_name(f"_{file.name}")
            write_text(file, "".join(traceback.format_exception(error)))
        except OSError:
            return None
        return file

    def _record_failure(self, error: BaseException, message: str, file: Path | None) -> None:
        if isinstance(error, lock.RunLocked) or self.request.check or not is_main_process():
            return
        try:
            state = RunState.load(self.run_dir)
            if state.state != "trained":
                state.state = "failed"
            relative = None if file is None else os.path.relpath(file, self.run_dir)
            state.failure = {"message": message, "traceback_file": relative, "step": state.step}
            state.save(self.run_dir)
        except (OSError, ItkitError) as problem:
            both = isinstance(error, OSError) and isinstance(problem, OSError)
            if file is not None and not both and one_line(problem) != message:  # else the failure itself says why
                self.say(f"the failure could not be recorded: {one_line(problem)}")


_runner_numbers = itertools.count()
_clock_used = False


def clock() -> float:
    """Return the CPU seconds at which a model's account begins: 0 for the first model of a process, which pays the start-up."""
    global _clock_used
    first, _clock_used = not _clock_used, True
    return 0.0 if first else cpu_seconds()


@contextlib.contextmanager
def closing(runner: ExperimentRunner) -> Iterator[None]:
    """Free what a runner holds (log files, loader workers, visualizers) when the block ends, well or not."""
    try:
        yield
    finally:
        runner.close()
        release_memory()


def release_memory() -> None:
    """Give cached GPU memory back before the next model."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def one_line(error: BaseException) -> str:
    """Return an error as one clear line: itkit's own message as it is, any other with its type in front."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        full = " Free some space and start again; what was finished is kept." * (error.errno == errno.ENOSPC)
        return f"{error.filename}: {error.strerror}.{full}"
    text = " ".join(str(error).split()) if not isinstance(error, ConfigError) else str(error)
    return text if isinstance(error, ItkitError) else f"{type(error).__name__}: {text}"
