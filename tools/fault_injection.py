"""Break trainings in every way that happens to them, and print what came of each as a table.

Each fault is injected into a training of the tiny experiment of the tests (60 iterations, a checkpoint every 5, a validation
every 20), which is then started again by the same command until it is done. "Equal" says that weights, averaged weights,
optimizer, schedules, random generators, position in the stream and history of the loss in its last checkpoint are those of
the undisturbed run, to the bit.

Runs of one process are forked off this one, which has imported everything already; they are processes of their own and are
killed for good. Runs of several processes are ordinary commands. Moments are drawn from a seeded generator.

    python tools/fault_injection.py [--rows kill write ...] [--kills 40] [--writes 10] [--seed 0] [--folder DIR]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from tiny_experiment import make_data, make_experiment

from itkit.mm import jobs, run  # noqa: F401  (imported before the first fork)

EXPERIMENT = "0.1.Tiny"
ITERATIONS, INTERVAL, VALIDATION = 60, 5, 20
OPTIONS = [
    f"train_cfg.val_interval={VALIDATION}",
    f"default_hooks.checkpoint.interval={INTERVAL}",
    "default_hooks.logger.interval=1",
]
LIMIT_S = 240.0

FAULT_PART = '''
"""A hook that does harm once, as the variable FAULT asks for it."""

import errno, json, os, pathlib, signal, tempfile

import psutil
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


def refuse(code, path=None):
    raise OSError(code, os.strerror(code), path)


@HOOKS.register_module(force=True)
class FaultHook(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        fault = json.loads(os.environ.get("FAULT", "{}"))
        if not fault or runner.rank != fault.get("rank", 0) or runner.iter < fault["step"]:
            return
        stamp = pathlib.Path(fault["stamp"])
        if stamp.exists():
            return
        stamp.touch()
        getattr(self, fault["kind"])()

    def exception(self):
        raise ValueError("the model broke")

    def hang(self):
        os.kill(os.getpid(), signal.SIGSTOP)

    def kill_worker(self):
        me = psutil.Process()
        next(child for child in me.children() if child.cmdline() == me.cmdline()).kill()

    def full_disk(self):
        self._refuse_flush(errno.ENOSPC, 10**9)

    def passing_error(self):
        self._refuse_flush(errno.EIO, 1)

    def read_only(self):
        make = tempfile.mkstemp

        def mkstemp(*args, **kwargs):
            folder = str(kwargs.get("dir"))
            if "checkpoints" in folder:
                refuse(errno.EROFS, os.path.join(folder, ".x" + kwargs["suffix"]))
            return make(*args, **kwargs)

        tempfile.mkstemp = mkstemp

    def _refuse_flush(self, code, times):
        flush, left = os.fsync, [times]

        def fsync(handle):
            if left[0] and "checkpoints/." in os.readlink(f"/proc/self/fd/{handle}"):
                left[0] -= 1
                refuse(code)
            return flush(handle)

        os.fsync = fsync
'''


@dataclass
class Row:
    """One line of the table.

    Attributes:
        equal: In how many of the finished runs the end was that of the undisturbed run.
        outcomes: What was seen -> how often.
    """

    fault: str
    where: str
    injected: int = 0
    finished: int = 0
    equal: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    is_good: bool = True

    def note(self, outcome: str, bad: str = "") -> None:
        """Count one observation; `bad` is what should not have been seen, if anything."""
        text = ", ".join(part for part in (outcome, bad) if part)
        self.outcomes[text] = self.outcomes.get(text, 0) + 1
        self.is_good &= not bad

    def compare(self, lab: Lab, folder: Path, processes: int = 1) -> None:
        """Compare a finished run with the undisturbed one."""
        self.finished += 1
        try:
            difference = lab.difference(folder, processes)
        except FileNotFoundError:
            difference = "its end, which it did not reach"
        self.equal += difference is None
        if difference is not None:
            self.note("", f"DIFFERS in {difference}")

    def as_markdown(self) -> str:
        """Return the line."""
        seen = "; ".join(f"{text} ({count})" if count > 1 else text for text, count in self.outcomes.items())
        equal = "not applicable" if not self.finished else f"{self.equal} of {self.finished}"
        return f"| {self.fault} | {self.where} | {self.injected} | {seen} | {equal} |"


class Command:
    """A command under way."""

    def __init__(self, pid: int, log: Path, process: subprocess.Popen | None = None):
        self.pid, self.log, self._process, self._code = pid, log, process, None

    def poll(self) -> int | None:
        """Return the exit code (negative: a signal), None while it runs."""
        if self._code is None and self._process is not None:
            self._code = self._process.poll()
        elif self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, limit_s: float = LIMIT_S) -> int:
        """Return the exit code; a command that hangs is killed and named."""
        end = time.monotonic() + limit_s
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill_all()
                raise TimeoutError(f"hangs; it wrote {self.log}:\n{self.text()}")
            time.sleep(0.005)
        return self._code

    def signal(self, number: int) -> None:
        """Send a signal to the command's own process."""
        os.kill(self.pid, number)

    def text(self) -> str:
        """Return what it wrote so far."""
        return self.log.read_text(errors="replace")

    def children(self) -> list[psutil.Process]:
        """Return all processes below it."""
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.Error:
            return []

    def kill_all(self) -> None:
        """Kill it and all below it."""
        for process in [*self.children(), *([psutil.Process(self.pid)] if self.poll() is None else [])]:
            try:
                process.kill()
            except psutil.Error:
                continue
        while self.poll() is None:
            time.sleep(0.01)

    def rank(self, number: int) -> psutil.Process:
        """Return the process of rank `number` below a launcher."""
        for process in self.children():
            try:
                words = process.cmdline()
                if process.environ().get("RANK") == str(number) and any(word.endswith("run.py") for word in words):
                    return process  # parents come before their children
            except psutil.Error:
                continue
        raise ProcessLookupError(f"no process of rank {number}")


class Lab:
    """A folder with data and the experiment, in which runs are made, broken and compared.

    Args:
        root: The folder; made if it is missing.
        seed: Of all moments.
    """

    def __init__(self, root: Path, seed: int = 0):
        self.root = root
        self.random = random.Random(seed)
        self._count = 0
        self._references: dict[int, Path] = {}
        self.duration_s = 0.0
        root.mkdir(parents=True, exist_ok=True)
        make_data(root / "data")
        (root / "fault_part.py").write_text(FAULT_PART)
        extra = '\ncustom_imports = dict(imports=["fault_part"])\ncustom_hooks += [dict(type="FaultHook")]\n'
        make_experiment(root, EXPERIMENT, iterations=ITERATIONS, extra=extra)
        sys.path.append(str(root))
        os.environ.update(ITKIT_DATA=str(root / "data"), PYTHONPATH=str(root), CUDA_VISIBLE_DEVICES="")
        os.environ.setdefault("OMP_NUM_THREADS", "1")

    # ---- starting ----

    def new(self) -> Path:
        """Return a folder for the runs of one training."""
        self._count += 1
        return self.root / f"runs_{self._count:03d}"

    def words(self, work: Path, *more: str, options: tuple[str, ...] = ()) -> list[str]:
        """Return the words of a command."""
        roots = ["--config-root", self.root / "configs", "--work-dir-root", work, "--test-work-dir-root", work / "test"]
        return ["0.1", *map(str, roots), *more, "--cfg-options", *OPTIONS, *options]

    def fork(self, work: Path, *more: str, options: tuple[str, ...] = (), fault: dict | None = None) -> Command:
        """Start ``mmrun`` in a process forked off this one."""
        words, log, variable = self.words(work, *more, options=options), self._log(), self._fault(fault)
        pid = os.fork()
        if pid:
            return Command(pid, log)
        code = 99
        try:
            os.setsid()
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            os.environ["FAULT"] = variable
            os.chdir(self.root)
            sys.argv = ["mmrun", *words]
            code = run.main(words)
            (self.root / "modules.json").write_text(json.dumps(list(sys.modules)))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def launch(
        self,
        work: Path,
        *more: str,
        options: tuple[str, ...] = (),
        fault: dict | None = None,
        head: Sequence[str] = ("-m", "itkit.mm.run"),
    ) -> Command:
        """Start ``mmrun`` as a command of its own; `head` is what Python runs."""
        words, log = self.words(work, *more, options=options), self._log()
        with open(log, "w") as stream:
            process = subprocess.Popen(
                [sys.executable, *head, *words],
                stdout=stream,
                stderr=stream,
                cwd=self.root,
                env={**os.environ, "FAULT": self._fault(fault), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"},
                start_new_session=True,
            )
        return Command(process.pid, log, process)

    def _log(self) -> Path:
        self._count += 1
        return self.root / f"log_{self._count:03d}.txt"

    def _fault(self, fault: dict | None) -> str:
        if not fault:
            return "{}"
        self._count += 1
        return json.dumps({"stamp": str(self.root / f"stamp_{self._count:03d}"), **fault})

    # ---- looking ----

    def folder(self, work: Path) -> Path:
        """Return the run folder below `work`."""
        return work / EXPERIMENT / "unet"

    def state(self, work: Path) -> dict[str, Any]:
        """Return what ``run.json`` says; empty if there is none."""
        path = self.folder(work) / "run.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def checkpoints(self, work: Path) -> list[Path]:
        """Return the ordinary checkpoints, the newest last."""
        files = (self.folder(work) / "checkpoints").glob("iter_*.pth")
        return sorted(files, key=lambda path: int(path.stem.rpartition("_")[2]))

    def half_written(self, work: Path) -> list[str]:
        """Return the names of checkpoints that are being written, or were when the run died."""
        try:
            names = os.listdir(self.folder(work) / "checkpoints")
        except FileNotFoundError:
            return []
        return [name for name in names if name.startswith(".")]

    def until(self, command: Command, condition: Callable[[], Any], limit_s: float = LIMIT_S) -> bool:
        """Wait until `condition` holds; False if the command was over before."""
        end = time.monotonic() + limit_s
        while not condition():
            if command.poll() is not None:
                return False
            if time.monotonic() > end:
                command.kill_all()
                raise TimeoutError(f"nothing happened; it wrote:\n{command.text()}")
            time.sleep(0.001)
        return True

    def until_checkpoints(self, command: Command, work: Path, count: int) -> bool:
        """Wait until there are `count` checkpoints."""
        return self.until(command, lambda: len(self.checkpoints(work)) >= count)

    def until_half_written(self, command: Command, work: Path) -> bool:
        """Wait until a checkpoint is being written."""
        return self.until(command, lambda: self.half_written(work))

    def until_iteration(self, command: Command, work: Path, iteration: int) -> bool:
        """Wait until `iteration` is logged."""
        path = self.folder(work) / "scalars.jsonl"
        return self.until(command, lambda: path.is_file() and path.read_bytes().count(b"\n") >= iteration)

    def has_readable_checkpoint(self, work: Path) -> bool:
        """Whether one of the checkpoints is whole; true if none was ever finished."""
        files = self.checkpoints(work)
        return not files or any(_loads(path) for path in files)

    def reference(self, processes: int = 1) -> Path:
        """Return the run folder of the undisturbed training on that many processes."""
        if processes not in self._references:
            work = self.new()
            command = self.fork(work) if processes == 1 else self.launch(work, "--nproc", str(processes))
            if command.wait() != 0:
                raise RuntimeError(f"the undisturbed run failed:\n{command.text()}")
            if processes == 1:
                self._import_what_a_run_imports()
                for _ in range(2):
                    begin = time.monotonic()
                    self.fork(self.new()).wait()
                    self.duration_s = time.monotonic() - begin
            self._references[processes] = self.folder(work)
        return self._references[processes]

    def _import_what_a_run_imports(self) -> None:
        """Import what the first run has imported on its way, so that the next ones need not."""
        for name in json.loads((self.root / "modules.json").read_text()):
            with contextlib.suppress(Exception):  # a part that cannot be imported alone is left to the runs
                if name.partition(".")[0] not in ("fault_part", "unet", "mgam"):
                    importlib.import_module(name)

    def difference(self, folder: Path, processes: int = 1) -> str | None:
        """Return where the last checkpoint in `folder` differs from that of the undisturbed run; None: nowhere."""
        name = f"checkpoints/iter_{ITERATIONS}.pth"
        ours, theirs = (_state(path / name) for path in (folder, self.reference(processes)))
        return _first_difference(ours, theirs, "")

    def finish(self, row: Row, work: Path, *more: str, processes: int = 1, options: tuple[str, ...] = ()) -> None:
        """Start the training again until it is through, and compare its end."""
        command = (
            self.fork(work, *more, options=options)
            if processes == 1
            else self.launch(work, "--nproc", str(processes), *more, options=options)
        )
        if command.wait() != 0:
            row.note("", f"NOT RESUMED: {command.text().strip().splitlines()[-1:]}")
            return
        row.compare(self, self.folder(work), processes)


def _state(path: Path) -> dict[str, Any]:
    """Return what must be equal of a checkpoint."""
    checkpoint = torch.load(path, weights_only=True)
    hub = checkpoint["message_hub"]
    kept = {
        key: checkpoint.get(key) for key in ("state_dict", "raw_state_dict", "optimizer", "param_schedulers", "random")
    }
    kept["step"] = checkpoint["meta"]["iter"]
    kept["stream position"] = hub["runtime_info"].get("stream_position")
    kept["loss"] = hub["log_scalars"].get("train/loss")
    return kept


def _first_difference(one: Any, two: Any, where: str) -> str | None:
    if type(one) is not type(two):
        return where
    if isinstance(one, torch.Tensor):
        return None if one.dtype == two.dtype and torch.equal(one, two) else where
    if isinstance(one, dict):
        if list(one) != list(two):
            return where
        pairs = [(key, one[key], two[key]) for key in one]
    elif isinstance(one, (list, tuple)):
        if len(one) != len(two):
            return where
        pairs = [(index, a, b) for index, (a, b) in enumerate(zip(one, two, strict=True))]
    else:
        return None if one == two or (one != one and two != two) else where
    found = (_first_difference(a, b, f"{where}/{key}") for key, a, b in pairs)
    return next((text for text in found if text is not None), None)


def _valid(lab: Lab, work: Path) -> tuple[str, str]:
    """Return an observation, and what is wrong with it."""
    return "the checkpoint before is valid", "NO VALID CHECKPOINT" * (not lab.has_readable_checkpoint(work))


def _loads(path: Path) -> bool:
    try:
        torch.load(path, weights_only=True)
    except Exception:  # whatever reading a broken file raises, it is broken
        return False
    return True


# ---------------------------------------------------------------- one process


def kill(lab: Lab, kills: int = 40, workers: int = 0) -> Iterator[Row]:
    """SIGKILL at random moments; every run is killed several times before it may end."""
    where = (
        f"one process, {workers} loader workers, anywhere between start and end" if workers else "one process, anywhere"
    )
    row = Row("SIGKILL", where)
    lab.reference()
    options = (f"train_dataloader.num_workers={workers}",) if workers else ()
    per_run = max(2, min(5, kills))
    while row.injected < kills:
        work, killed = lab.new(), 0
        for _ in range(min(per_run, kills - row.injected)):
            command = lab.fork(work, options=options)
            end = time.monotonic() + lab.random.uniform(0.25, 0.95) * lab.duration_s
            while time.monotonic() < end and command.poll() is None:
                time.sleep(0.001)
            if command.poll() is not None:
                lab.duration_s *= 0.9  # it was measured when the machine was slower
                break
            command.signal(signal.SIGKILL)
            command.wait()
            row.injected, killed = row.injected + 1, killed + 1
            half = ", while a checkpoint was being written" if lab.half_written(work) else ""
            step = lab.state(work).get("step")
            row.note(("died after the first checkpoint" if step else "died before it") + half)
            if not lab.has_readable_checkpoint(work):
                row.note("", "NO VALID CHECKPOINT")
        if killed:
            lab.finish(row, work, options=options)
    yield row


def write(lab: Lab, writes: int = 10) -> Iterator[Row]:
    """SIGKILL while a checkpoint is half-written: the temporary file must be left behind to count."""
    row = Row("SIGKILL", "within the writing of a checkpoint")
    lab.reference()
    tries = 0
    while row.injected < writes and tries < 5 * writes:
        work, tries = lab.new(), tries + 1
        wanted = lab.random.randint(0, ITERATIONS // INTERVAL - 2)
        command = lab.fork(work)
        if not (lab.until_checkpoints(command, work, min(wanted, 2)) and lab.until_half_written(command, work)):
            continue
        command.signal(signal.SIGKILL)
        command.wait()
        if not lab.half_written(work):
            continue
        row.injected += 1
        row.note(*_valid(lab, work))
        lab.finish(row, work)
        if lab.half_written(work):
            row.note("", "REMAINS LEFT")
    yield row


def stop(lab: Lab) -> Iterator[Row]:
    """Requests to stop, to one process."""
    for name, code, workers in (("SIGTERM", 75, 0), ("SIGUSR1", 75, 2), ("SIGINT", 130, 2)):
        row = Row(name, f"one process, {workers} loader workers; the signal goes to all of them")
        options = (f"train_dataloader.num_workers={workers}",) if workers else ()
        for _ in range(3):
            work = lab.new()
            command = lab.fork(work, options=options)
            lab.until_iteration(command, work, lab.random.randint(1, 20))
            if command.poll() is not None:
                continue
            os.killpg(command.pid, getattr(signal, name))
            found = command.wait()
            row.injected += 1
            saved = lab.state(work).get("stopped") or {}
            is_saved = saved.get("step") == lab.state(work).get("last", {}).get("step")
            bad = "UNEXPECTED" * (found != code) or "NOT SAVED" * (not is_saved)
            row.note(
                f"exit {found}, saved where it stopped", bad or "TRACEBACK SHOWN" * ("Traceback" in command.text())
            )
            lab.finish(row, work, options=options)
        yield row


def damage(lab: Lab) -> Iterator[Row]:
    """A newest checkpoint that is not what was written."""

    def truncate(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def empty(path: Path) -> None:
        path.write_bytes(b"")

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[lab.random.randrange(len(data))] ^= 1 << lab.random.randrange(8)
        path.write_bytes(bytes(data))

    for what, harm, times in (("truncated", truncate, 1), ("empty", empty, 1), ("one bit flipped", flip, 5)):
        row = Row(f"newest checkpoint {what}", "after a SIGKILL")
        while row.injected < times:
            work = lab.new()
            command = lab.fork(work)
            lab.until(command, lambda work=work: lab.state(work).get("step", 0) >= 2 * INTERVAL)
            command.signal(signal.SIGKILL)
            command.wait()
            newest, recorded = lab.checkpoints(work)[-1], lab.state(work).get("last") or {}
            if not recorded.get("checkpoint", "").endswith(newest.name):
                continue  # killed between the renaming and the record
            inode = newest.read_bytes()
            newest.unlink()
            newest.write_bytes(inode)  # no second name of the file is harmed
            harm(newest)
            row.injected += 1
            command = lab.fork(work)
            if command.wait() != 0:
                row.note("", f"NOT RESUMED: {command.text().strip().splitlines()[-1:]}")
                continue
            row.note("named, the one before is used", "NOT NAMED" * (newest.name not in command.text()))
            row.compare(lab, lab.folder(work))
        yield row


def disk(lab: Lab) -> Iterator[Row]:
    """A file system that refuses to write a checkpoint."""
    for fault, kind in (("disk full", "full_disk"), ("folder becomes read-only", "read_only")):
        row = Row(fault, "while a checkpoint is written")
        work = lab.new()
        command = lab.fork(work, fault={"kind": kind, "step": 22})
        code = command.wait()
        row.injected += 1
        failure = (lab.state(work).get("failure") or {}).get("message", "")
        valid, bad = _valid(lab, work)
        row.note(
            f"exit {code}, the error names the file, {valid}", bad or f"UNCLEAR: {failure}" * ("iter_" not in failure)
        )
        lab.finish(row, work)
        yield row
    row = Row("file system fails once (EIO)", "while a checkpoint is written")
    work = lab.new()
    command = lab.fork(work, fault={"kind": "passing_error", "step": 22})
    row.injected += 1
    row.note("the run goes on", "FAILED" * (command.wait() != 0))
    row.compare(lab, lab.folder(work))
    yield row


def worker(lab: Lab) -> Iterator[Row]:
    """A loader worker that dies."""
    row = Row("loader worker killed", "one process, `--auto-retry 1`")
    work = lab.new()
    options = ("train_dataloader.num_workers=2",)
    command = lab.fork(work, "--auto-retry", "1", options=options, fault={"kind": "kill_worker", "step": 22})
    row.injected += 1
    code = command.wait()
    row.note(f"exit {code}, worker and case named, retried", "NOT NAMED" * ("died of signal 9" not in command.text()))
    row.compare(lab, lab.folder(work))
    yield row


def change(lab: Lab) -> Iterator[Row]:
    """A run that is to go on with another config, and one that is only to go on longer."""
    row = Row("config changed", "between kill and resume")
    work = lab.new()
    command = lab.fork(work)
    lab.until_checkpoints(command, work, 1)
    command.signal(signal.SIGKILL)
    command.wait()
    row.injected += 1
    changed = ("optim_wrapper.optimizer.lr=0.01",)
    command = lab.fork(work, options=changed)
    code = command.wait()
    is_shown = "lr: 0.02 -> 0.01" in command.text()
    row.note(f"refused (exit {code}), the change shown", "NOT REFUSED" * (code != 2 or not is_shown))
    command = lab.fork(work, "--resume-changed", options=changed)
    row.note("goes on with `--resume-changed`", "DOES NOT" * (command.wait() != 0))
    yield row
    row = Row("more iterations asked for", "after the end, from 40 to 60")
    work = lab.new()
    shorter = lab.fork(work, options=("train_cfg.max_iters=40",))
    row.injected += 1
    row.note("goes on without a flag", "FAILED" * (shorter.wait() != 0))
    lab.finish(row, work)
    yield row


# ---------------------------------------------------------------- several processes


def group_kill(lab: Lab, kills: int) -> Iterator[Row]:
    """One of two processes is killed; the launcher starts all again."""
    row = Row("SIGKILL of one process", f"two processes in turn, `--max-restarts {kills}`, moment random")
    work = lab.new()
    lab.reference(2)
    command = lab.launch(work, "--nproc", "2", "--max-restarts", str(kills))
    done = 0
    for index in range(kills):
        wanted = min(done + lab.random.randint(1, 2), ITERATIONS // INTERVAL - 2)
        if not lab.until(command, lambda wanted=wanted: lab.state(work).get("step", 0) >= INTERVAL * wanted):
            break
        number = (index + 1) % 2
        before = {n: _rank_of([command], n) for n in (0, 1)}
        before[number].kill()
        row.injected += 1
        row.note(f"rank {number} killed, all start again")
        lab.until(command, lambda before=before: not any(p.is_running() for p in before.values()))
        done = lab.state(work).get("step", 0) // INTERVAL
        lab.until(command, lambda index=index: f"(restart {index + 1})" in command.text())
    code = command.wait()
    if code:
        row.note("", f"EXIT {code}: {command.text().strip().splitlines()[-1:]}")
    row.compare(lab, lab.folder(work), 2)
    yield row


def group_stop(lab: Lab, cases: list[str]) -> Iterator[Row]:
    """A request to stop, to one process of two, to the launcher, or to all."""
    lab.reference(2)
    for to in cases:
        name = "SIGUSR1" if to == "launcher" else "SIGTERM"
        row = Row(f"{name} to {to}", "two processes, 1 loader worker each")
        options = ("train_dataloader.num_workers=1",)
        work = lab.new()
        command = lab.launch(work, "--nproc", "2", options=options)
        lab.until_iteration(command, work, lab.random.randint(1, 20))
        everyone = command.children()
        if to == "rank 1":
            command.rank(1).send_signal(getattr(signal, name))
        elif to == "launcher":
            command.signal(getattr(signal, name))
        else:
            for process in [psutil.Process(command.pid), *everyone]:
                process.send_signal(getattr(signal, name))
        code = command.wait()
        row.injected += 1
        saved = lab.state(work).get("stopped") or {}
        is_saved = saved.get("step") == lab.state(work).get("last", {}).get("step")
        orphans = sum(p.status() != psutil.STATUS_ZOMBIE for p in psutil.wait_procs(everyone, timeout=10)[1])
        bad = "UNEXPECTED" * (code != 75) or "NOT SAVED" * (not is_saved)
        bad = bad or "TRACEBACK SHOWN" * ("Traceback" in command.text()) or f"{orphans} ORPHANS" * bool(orphans)
        row.note(f"exit {code}, saved where all stopped, all gone", bad)
        lab.finish(row, work, processes=2, options=options)
        yield row


def group_fail(lab: Lab) -> Iterator[Row]:
    """An exception in one process of two."""
    lab.reference(2)
    for what, kind, cause, options in (
        ("exception on rank 1", "exception", "ValueError: the model broke", ()),
        ("loader worker of rank 1 killed", "kill_worker", "data loader worker", ("train_dataloader.num_workers=1",)),
    ):
        row = Row(what, "two processes, `--auto-retry 1`")
        work = lab.new()
        fault = {"kind": kind, "step": 22, "rank": 1}
        command = lab.launch(work, "--nproc", "2", "--auto-retry", "1", options=options, fault=fault)
        code = command.wait()
        row.injected += 1
        text = command.text()
        bad = "CAUSE NOT SHOWN" * (f"process 1 of 2: {cause}" not in text)
        bad = bad or "A CASCADE FOLLOWS" * ("onnection closed" in text or "lost contact" in text)
        row.note(f"exit {code}, the first cause shown, retried together", bad)
        row.compare(lab, lab.folder(work), 2)
        yield row


def group_hang(lab: Lab) -> Iterator[Row]:
    """A process of two that stands still."""
    lab.reference(2)
    row = Row("rank 1 stands still (SIGSTOP)", "two processes, `--dist-timeout 15 --max-restarts 1`")
    work = lab.new()
    fault = {"kind": "hang", "step": 22, "rank": 1}
    command = lab.launch(work, "--nproc", "2", "--dist-timeout", "15", "--max-restarts", "1", fault=fault)
    code = command.wait()
    row.injected += 1
    bad = "NOT NAMED" * ("lost contact with process 1 of 2" not in command.text())
    row.note(f"exit {code}, named, all start again", bad)
    row.compare(lab, lab.folder(work), 2)
    yield row


def agents(lab: Lab) -> Iterator[Row]:
    """Two launchers with one process each, as on two machines."""
    lab.reference(2)
    for what in ("SIGKILL of rank 0", "SIGKILL of rank 1", "SIGTERM to one launcher"):
        row = Row(what, "two launchers with one process each, `--max-restarts 2`")
        work, port = lab.new(), _free_port()
        words = ["--nproc", "1", "--nnodes", "2", "--rdzv-endpoint", f"localhost:{port}", "--max-restarts", "2"]
        both = [lab.launch(work, *words), lab.launch(work, *words)]
        lab.until_checkpoints(both[0], work, 1)
        if what.startswith("SIGKILL"):
            _rank_of(both, int(what[-1])).kill()
        else:
            both[1].signal(signal.SIGTERM)
        codes = sorted(command.wait() for command in both)
        row.injected += 1
        row.note(f"exit {codes[0]} and {codes[1]}", "UNEXPECTED" * (codes not in ([0, 0], [75, 75])))
        if codes == [75, 75]:
            lab.finish(row, work, processes=2)
        elif codes == [0, 0]:
            row.compare(lab, lab.folder(work), 2)
        yield row


def torchrun(lab: Lab, ranks: list[int]) -> Iterator[Row]:
    """Two agents of torchrun, started by hand, as on two machines; one of `ranks` after the other is killed."""
    lab.reference(2)
    for number in ranks:
        row = Row(f"SIGKILL of rank {number}", "two agents of torchrun by hand, `--max-restarts 2`")
        work = lab.new()
        words = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=2", f"--rdzv-endpoint=localhost:{_free_port()}"]
        words = ["-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-id=faults", *words]
        both = [lab.launch(work, head=[*words, run.__file__]) for _ in range(2)]
        lab.until_checkpoints(both[0], work, 1)
        _rank_of(both, number).kill()
        codes = sorted(command.wait() for command in both)
        row.injected += 1
        row.note(f"all start again, exit {codes[0]} and {codes[1]}", "UNEXPECTED" * (codes != [0, 0]))
        row.compare(lab, lab.folder(work), 2)
        yield row


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _rank_of(commands: list[Command], number: int) -> psutil.Process:
    """Return a rank below one of several launchers, waiting for it if it cannot be looked at just now."""
    end = time.monotonic() + 60
    while True:
        for command in commands:
            with contextlib.suppress(ProcessLookupError):
                return command.rank(number)
        if time.monotonic() > end:
            raise ProcessLookupError(f"no process of rank {number}")
        time.sleep(0.05)


ROWS: dict[str, Callable[..., Iterator[Row]]] = {
    "kill": kill,
    "write": write,
    "stop": stop,
    "damage": damage,
    "disk": disk,
    "worker": worker,
    "change": change,
    "group_kill": group_kill,
    "group_stop": group_stop,
    "group_fail": group_fail,
    "group_hang": group_hang,
    "agents": agents,
    "torchrun": torchrun,
}

HEAD = """| fault | where | injected | outcome | end equal to the bit |
|---|---|---|---|---|"""


def main() -> int:
    """Run the table and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="R", help=", ".join(ROWS))
    parser.add_argument("--kills", type=int, default=40, help="kills of a single process at random moments")
    parser.add_argument("--writes", type=int, default=10, help="kills within the writing of a checkpoint")
    parser.add_argument("--group-kills", type=int, default=4, help="kills of one process of two")
    parser.add_argument("--signal-to", nargs="+", default=["rank 1", "launcher", "all"], help="targets of group_stop")
    parser.add_argument("--ranks", nargs="+", type=int, default=[0, 1], help="who is killed under torchrun by hand")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep everything here (default: a temporary folder, removed)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    root = arguments.folder or Path(tempfile.mkdtemp(prefix="fault_injection_"))
    lab = Lab(root.resolve(), arguments.seed)
    begin, broken = time.monotonic(), 0
    print(HEAD, flush=True)
    for name in arguments.rows:
        if name == "kill":
            few = arguments.kills // 4
            rows = [*kill(lab, arguments.kills - few), *kill(lab, few, workers=2)]
        elif name == "write":
            rows = write(lab, arguments.writes)
        elif name == "group_kill":
            rows = group_kill(lab, arguments.group_kills)
        elif name == "group_stop":
            rows = group_stop(lab, arguments.signal_to)
        elif name == "torchrun":
            rows = torchrun(lab, arguments.ranks)
        else:
            rows = ROWS[name](lab)
        for row in rows:
            print(row.as_markdown(), flush=True)
            broken += row.equal != row.finished or not row.injected or not row.is_good
    print(f"\n{time.monotonic() - begin:.0f} s, seed {arguments.seed}", flush=True)
    if arguments.folder is None:
        shutil.rmtree(root, ignore_errors=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
