"""One model at a time: check it, train it, test it, and say in one line what happened."""

from __future__ import annotations

import contextlib
import copy
import errno
import itertools
import os
import shutil
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process

from itkit._support.files import write_text
from itkit._support.resources import cpu_seconds
from itkit.errors import ChangedRun, ConfigError, ItkitError, LostContact, TrainingError, UsageError
from itkit.experiment import lock
from itkit.experiment.names import Experiment, Roots
from itkit.experiment.state import CHECKPOINT_FOLDER, RESULT_FILE, RunState, is_tested, load_result
from itkit.mm import launch
from itkit.mm.agenda import Agenda, Failure, Outcome
from itkit.mm.checkpoint_folder import CheckpointFolder
from itkit.mm.config import load_config
from itkit.mm.config_check import check_config
from itkit.mm.failing import FailTogether, record_failure
from itkit.mm.group import agree, describe_loss, is_known_to_all, is_lost_contact, join, share
from itkit.mm.plan import build_on_meta, channels_of, count_flops, describe_plan, patch_of
from itkit.mm.preparation import prepare
from itkit.mm.provenance import describe_run
from itkit.mm.runner import ExperimentRunner, require_training_parts
from itkit.mm.stop_hook import StopHook, ValidationAbandoned
from itkit.mm.stopping import StopControl
from itkit.registry import EXPORTERS


@dataclass(frozen=True)
class Request:
    """What the command line asks to be done with each model."""

    train: bool = True
    test: bool = False
    export: str | None = None
    check: bool = False
    smoke: bool = False
    use_last: bool = False
    auto_retry: int = 0
    detect_anomaly: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)
    launcher: str = "none"
    choose_parallel: bool = False
    dist_timeout_s: float | None = None
    resume_changed: bool = False
    trust_checkpoint: bool = False


def run_all(
    jobs: list[tuple[Experiment, str]],
    roots: Roots,
    request: Request,
    say: Callable[[str], None],
    control: StopControl,
    agenda: Agenda,
) -> list[Outcome]:
    """Do what was asked with each model, one after the other, and return what came of each.

    Args:
        jobs: Experiments and names of models.
        roots: Where runs and test results go.
        request: What to do.
        say: Called with each line meant for the user.
        control: Hears stop requests.
        agenda: What the processes have done before they started anew.

    Raises:
        Stopped: If somebody asked the command to end.
        LostContact: If another process has died, so that this one cannot go on.
    """
    together = None
    if request.launcher == "pytorch":
        try:
            board = join(request.dist_timeout_s, agenda.start)
        except LostContact as error:
            if launch.rank() == 0:
                say(f"mmrun: {error}")
            raise
        if board is not None:

            def record(failure: Failure, then: Agenda) -> None:
                experiment = next(e for e, _ in jobs if e.name == failure.experiment)
                Job(experiment, failure.model, roots, request, say, control).record_failure_of_all(failure, then)

            restarts = launch.restarts()
            if restarts and board.rank == 0:
                say(f"mmrun: all {board.world_size} processes were started again (restart {restarts})")
            together = FailTogether(board, control, agenda, request.auto_retry, record)
            control.connect(board, together.act)
    for experiment, model in jobs:
        if agenda.outcome_of(experiment.name, model) is None:
            control.check()
            outcome = Job(experiment, model, roots, request, say, control, together).run()
            agenda.outcomes.append(outcome)
    with contextlib.suppress(RuntimeError):  # one that died now has done all it was to do
        agree(control.disconnect)  # the store may end with the first process that leaves
    return agenda.outcomes


class Job:
    """One model of one experiment.

    Args:
        experiment: Where its configs are.
        model: Its name.
        roots: Where runs and test results go.
        request: What to do.
        say: Called with each line meant for the user.
        control: Hears stop requests.
        together: Of the other processes, if there are any.
    """

    def __init__(
        self,
        experiment: Experiment,
        model: str,
        roots: Roots,
        request: Request,
        say: Callable[[str], None],
        control: StopControl,
        together: FailTogether | None = None,
    ):
        self.experiment, self.model, self.request, self._say = experiment, model, request, say
        self.control, self.together = control, together
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
                agree(lambda: None)  # from here on all processes are at this model
                return Outcome(self.experiment.name, self.model, self._do())
            except LostContact:
                raise
            except Exception as error:  # border: one failing model does not stop the others
                if self.together is not None and not is_known_to_all(error):
                    self._fail_with_others(error)
                message = one_line(error)
                file = self._write_traceback(error) if is_main_process() else None
                retry = attempt < self.request.auto_retry and _may_retry(error)
                self.say(f"failed: {message}" + (f"\n  traceback: {file}" if file else ""))
                self._record_failure(error, message, file)
                if not retry:
                    code = getattr(error, "exit_code", 1)
                    return Outcome(self.experiment.name, self.model, message, code, file and str(file))
                attempt += 1
                self.say(f"retry {attempt} of {self.request.auto_retry}, from the last checkpoint")
                release_memory()

    # ---- steps ----

    def _do(self) -> str:
        cfg = agree(self._load)
        if self.request.check:
            plan = agree(lambda: describe_plan(cfg))
            self.say("is well formed\n" + plan)
            return "checked"
        with self._held():
            if self.request.smoke:
                share(self._remove_smoke)
            done = []
            if self.request.train:
                done.append(self._train(cfg))
            if self.request.test and self.request.train and cfg.get("test_dataloader") is None:
                self.say("defines no test_dataloader, so it is not tested")
            elif self.request.test:
                done.append(self._test(cfg))
            if self.request.export:
                done.append(self._export(cfg))
        if self.request.smoke:
            self.say("smoke test passed")
            done.append("smoke test passed")
        return "; ".join(done)

    def _load(self) -> Config:
        cfg = load_config(self.experiment, self.model, self.request.overrides)
        check_config(cfg)
        if self.request.export:
            self._exporter().require_packages()
        if self.request.train:
            require_training_parts(cfg)
            wanted = cfg.train_cfg.get("max_iters")
            if wanted is not None and (not isinstance(wanted, (int, float)) or wanted < 1):
                raise ConfigError(f"train_cfg: max_iters must be a positive whole number, got {wanted!r}.")
        elif self.request.test and not self.request.check and cfg.get("test_dataloader") is None:
            raise ConfigError(f"{cfg.filename}: defines no test_dataloader, so there is nothing to test on.")
        if self.request.choose_parallel and (cfg.get("parallel") or "none") == "none":
            cfg.parallel = "ddp"
            self.say('parallel = "ddp", as the config does not say how several processes share the work')
        return cfg

    def _remove_smoke(self) -> None:
        for folder in (self.run_dir, self.test_dir):
            for entry in folder.glob("*"):
                if entry.name == lock.LOCK_FILE:
                    continue
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the run folder; the first process does it for all."""
        with contextlib.ExitStack() as held:
            stale = share(lambda: self._hold(held))
            if stale and (stale.get("pid"), stale.get("host")) != (os.getpid(), socket.gethostname()):
                self.say(f"takes over from process {stale.get('pid')} on {stale.get('host')}, which has died")
            yield

    def _hold(self, held: contextlib.ExitStack) -> dict[str, Any] | None:
        try:
            return held.enter_context(lock.hold(self.run_dir, launch.group_name()))
        except OSError as error:
            raise TrainingError(
                f"{self.run_dir}: the work directory cannot be written ({error.strerror}). Choose another with "
                "--work-dir-root or the variable mm_workdir."
            ) from error

    def _build(self, cfg: Config, state: RunState) -> ExperimentRunner:
        prepared = agree(
            lambda: prepare(
                copy.deepcopy(cfg),
                work_dir=self.run_dir,
                detect_anomaly=self.request.detect_anomaly,
                smoke=self.request.smoke,
                launcher=self.request.launcher,
            )
        )
        # MMEngine keeps logger, visualizer and message hub under this name: no two runners of a process may share it.
        prepared.experiment_name = f"{self.title}_{time.strftime('%Y%m%d_%H%M%S')}_{next(_runner_numbers)}"
        return ExperimentRunner.from_cfg(
            prepared,
            run_state=state,
            test_dir=self.test_dir,
            resume_changed=self.request.resume_changed,
            trust_checkpoint=self.request.trust_checkpoint,
        )

    def _train(self, cfg: Config) -> str:
        state = share(lambda: RunState.load(self.run_dir))
        wanted = cfg.train_cfg.get("max_iters")
        if state.state == "trained" and (wanted is None or state.max_steps >= wanted):
            best = (
                f", best {state.best['metric']} {state.best['value']:.4f} at {state.best['step']}" if state.best else ""
            )
            self.say(f"is trained already ({state.step} steps{best}); nothing to do")
            return "was trained already"
        if state.last and not share(lambda: any((self.run_dir / CHECKPOINT_FOLDER).glob("iter_*.pth"))):
            self.say(f"the checkpoints up to step {state.step} are gone, so it begins anew")
            state = RunState(self.experiment.name, self.model)
        cpu_before = clock(self.together.agenda.cpu_s if self.together else 0.0)
        runner = self._build(cfg, state)
        runner.start_clock(cpu_before)
        runner.run_state.provenance = describe_run(self.experiment.folder, runner.seed)
        runner.run_state.parameters = sum(p.numel() for p in runner.model.parameters())
        if runner.run_state.flops is None and patch_of(cfg):
            network = runner.model if runner.world_size == 1 else build_on_meta(cfg)  # not one that is cut into parts
            runner.run_state.flops = count_flops(network, patch_of(cfg), channels_of(network))
        if wanted is not None and state.step > wanted:
            self.say(f"is at step {state.step} already, beyond the {wanted} asked for; nothing to train")
        elif runner.run_state.last:
            self.say(f"resumes after step {state.step} of {wanted or state.max_steps}")
        else:
            self.say(f"trains on {get_device()}, {runner.run_state.parameters:,} parameters")
        runner.open_terminal_log()
        runner.register_hook(StopHook(self.control))
        with closing(runner), self._failing_with_others(), self.control.training():
            try:
                runner.train()
            except ValidationAbandoned:
                runner.stop_training = True
            if runner.stop_training and self.control.request is not None:
                self._save_and_stop(runner)
        best = runner.run_state.best
        note = f"trained, {runner.run_state.step} steps in {runner.run_state.cpu_minutes:.1f} CPU minutes"
        if best:
            note += f", best {best['metric']} {best['value']:.4f} at {best['step']}"
        self.say(note)
        return note

    def _save_and_stop(self, runner: ExperimentRunner) -> NoReturn:
        """Save where all processes stopped, write down that somebody asked for it, and end the command."""
        request = self.control.request
        runner.save_now()
        runner.run_state.stopped = {"by": request.reason, "step": runner.iter}
        runner.record_state("partial")
        is_saved = runner.saved_step == runner.iter
        note = "saved" if is_saved else f"the checkpoint of step {runner.saved_step} stays the last"
        self.say(f"stopped by {request.reason} after step {runner.iter} of {runner.max_iters}; {note}")
        self.control.check()

    def _test(self, cfg: Config) -> str:
        state, path, record, is_done = share(self._choose_checkpoint_to_test)
        step = int(record["step"])
        if is_done:
            self.say(f"was tested with this very checkpoint ({path.name}) already; see {self.test_dir / RESULT_FILE}")
            return "was tested already"
        runner = self._build(cfg, state)
        runner.open_terminal_log()
        with closing(runner), self._failing_with_others():
            runner.load_checkpoint(str(path), sha256_expected=record.get("sha256"))
            metrics = runner.test()
        note = f"tested step {step}: " + ", ".join(
            f"{k} {v:.4f}" for k, v in metrics.items() if "/" not in k and v is not None
        )
        self.say(note)
        return note

    def _choose_checkpoint_to_test(self) -> tuple[RunState, Path, dict[str, Any], bool]:
        """Return state, file and record of the checkpoint, and whether it was tested already."""
        state, path, record = self._choose_checkpoint("testing")
        result = load_result(self.test_dir)
        is_done = (
            is_tested(state, result)
            and result.get("sha256") == record.get("sha256")
            and result.get("step") == int(record["step"])
        )
        return state, path, record, is_done

    def _choose_checkpoint(self, doing: str) -> tuple[RunState, Path, dict[str, Any]]:
        """Return state, file and record of the best checkpoint, or of the last one where it was asked for or is the only one."""
        state = RunState.load(self.run_dir)
        use_last = self.request.use_last
        if not use_last and state.best is None and state.last is not None:
            self.say(f"has no best checkpoint, because it was never validated; {doing} the last one")
            use_last = True
        path, _ = state.checkpoint(self.run_dir, last=use_last)
        if not use_last:
            folder = CheckpointFolder(self.run_dir, state, lambda: state.save(self.run_dir), self.say)
            folder.mend_best(may_forget=False)
        return state, path, state.last if use_last else state.best

    def _exporter(self) -> Any:
        """What writes the format that was asked for; the engine knows it by name alone."""
        return EXPORTERS.get(f"{self.request.export.capitalize()}Exporter")()

    def _export(self, cfg: Config) -> str:
        """Write the chosen checkpoint into the run folder in another format, and record it in ``run.json``."""
        note = share(lambda: self._export_and_record(cfg))
        self.say(note)
        return note

    def _export_and_record(self, cfg: Config) -> str:
        state, path, record = self._choose_checkpoint("exporting")
        step = int(record["step"])
        line, document = self._exporter().export(
            cfg,
            path,
            self.run_dir,
            provenance={"experiment": self.experiment.name, "model": self.model, "step": step},
            sha256_expected=record.get("sha256"),
            trust_checkpoint=self.request.trust_checkpoint,
            say=self.say,
        )
        state.exports = {**(state.exports or {}), self.request.export: document}
        state.save(self.run_dir)
        return f"exported step {step} to {self.run_dir / document['file']}: {line}"

    # ---- failures ----

    @contextlib.contextmanager
    def _failing_with_others(self) -> Iterator[None]:
        """Tell the other processes of an error before anything else is cleaned up, which might wait for them."""
        try:
            yield
        except Exception as error:
            if self.together is not None and not is_known_to_all(error):
                self._fail_with_others(error)
            raise

    def _fail_with_others(self, error: Exception) -> NoReturn:
        """End this model in all processes because of `error` in this one.

        Raises:
            LostContact: If the error is that another process has died, and no process knows why.
            Stopped: If the others have left because they were asked to.
        """
        failure = Failure(
            self.experiment.name,
            self.model,
            rank=launch.rank(),
            message=one_line(error),
            exit_code=getattr(error, "exit_code", 1),
            may_retry=_may_retry(error),
            traceback_file=None,
            run_dir=str(self.run_dir),
        )
        is_loss, message = is_lost_contact(error), failure.message
        file = self._write_traceback(error) if is_main_process() or not is_loss else None
        if is_loss and self.control.is_known_to_all:
            self.control.check()
        with contextlib.suppress(RuntimeError):  # the store may be gone with its host
            if not is_loss:
                self.together.fail(replace(failure, traceback_file=file and str(file)))
            self.control.ignore_requests()  # a launcher that ends the survivors of a death says so with SIGTERM
            self.together.fail_for_known_cause()
        if is_loss:
            message = describe_loss(error, self.together.board)
        self.say(f"failed: {message}")
        self._record_failure(error, message, file)
        raise LostContact(message) from error

    def record_failure_of_all(self, failure: Failure, then: Agenda) -> None:
        """Show and write down the failure of one process; called in the first one."""
        who = f"process {failure.rank} of {launch.world_size()}: " if failure.rank else ""
        trace = f"\n  traceback: {failure.traceback_file}" if failure.traceback_file else ""
        self.say(f"failed: {who}{failure.message}{trace}")
        self._record_failure(None, failure.message, failure.traceback_file and Path(failure.traceback_file))
        attempt = then.attempts.get(self.title)
        if attempt:
            self.say(f"retry {attempt} of {self.request.auto_retry}, of all processes, from the last checkpoint")

    def _write_traceback(self, error: BaseException) -> Path | None:
        if isinstance(error, (lock.RunLocked, ChangedRun)) or self.request.check:
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

    def _record_failure(self, error: BaseException | None, message: str, file: Path | None) -> None:
        if isinstance(error, (lock.RunLocked, ChangedRun)) or self.request.check or not is_main_process():
            return
        try:
            record_failure(self.run_dir, message, file and str(file))
        except (OSError, ItkitError) as problem:
            both = isinstance(error, OSError) and isinstance(problem, OSError)
            if file is not None and not both and one_line(problem) != message:  # else the failure itself says why
                self.say(f"the failure could not be recorded: {one_line(problem)}")


def _may_retry(error: BaseException) -> bool:
    """Whether a further attempt could do better."""
    return not isinstance(error, (ConfigError, UsageError, lock.RunLocked))


_runner_numbers = itertools.count()
_clock_used = False


def clock(cpu_s_at_start: float = 0.0) -> float:
    """Return the CPU seconds at which a model's account begins.

    Args:
        cpu_s_at_start: Used by this process before its program started. The first model of a process pays the start-up.
    """
    global _clock_used
    first, _clock_used = not _clock_used, True
    return cpu_s_at_start if first else cpu_seconds()


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
    text = str(error) if isinstance(error, (ConfigError, ChangedRun)) else " ".join(str(error).split())
    return text if isinstance(error, ItkitError) else f"{type(error).__name__}: {text}"
