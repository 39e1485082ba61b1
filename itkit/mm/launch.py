"""Start several processes of `mmrun` with torchrun's agent, pass signals on, and give back one exit code."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import psutil

from itkit._support.resources import cpu_seconds
from itkit.errors import UsageError
from itkit.mm.agenda import VARIABLE, Agenda
from itkit.mm.stopping import REQUEUE, SIGNALS, StopRequest, end_children

FOLDER_VARIABLE = "ITKIT_LAUNCH"
_AGENT_LOG = "torch.distributed.elastic"


def nproc(text: str) -> int | str:
    """Return the value of ``--nproc``: a number of processes, or ``"gpu"`` for one per GPU."""
    if text in ("gpu", "auto"):
        return "gpu"
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of at least 1 nor gpu")
    return int(text)


def is_one_of_several() -> bool:
    """Whether a launcher started this process as one of a group (that may have one member)."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """Number of this process, 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes of the group, 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def restarts() -> int:
    """How often the launcher of this machine has started the group again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def group_name() -> str | None:
    """Return what all processes of this start and of its restarts have in common; None without a launcher."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    if not run or run == "none":
        return None
    return f"{run} in job {os.environ.get('SLURM_JOB_ID', 'none')}"


# ---- exit codes, as a process of the group sees them ----


def decided_exit_code() -> int | None:
    """Return the exit code with which this command has ended already, None if it is to work.

    torchrun starts all processes again when one ends with a code, whatever the code means. A command that was asked to end,
    or has failed for good, leaves a note for the processes that are started then.
    """
    if not is_one_of_several():
        return None
    for name in ("asked to end", "exit code"):
        for folder in _folders():
            with contextlib.suppress(OSError, ValueError):
                code = int((folder / name).read_text())
                if code:
                    return code
    return None


def leave(code: int, *, together: bool = True) -> int:
    """Return the code to exit with when the command ends with `code`.

    Under ``mmrun --nproc`` a final code is left as a note for the launcher, and the process ends with 0, so that the agent
    neither starts it again nor ends the others before they are through. Under a torchrun that somebody else started it is
    the code itself; then the note is left only where a stop was asked for, as failures may be tried again.

    Args:
        code: Of this process.
        together: Whether the others end now too; if not, the agent is to end them.
    """
    if not is_one_of_several():
        return code
    if FOLDER_VARIABLE in os.environ:
        folder = Path(os.environ[FOLDER_VARIABLE])
        try:
            (folder / f"exit code of {rank()}").write_text(str(code))
            if code:
                (folder / "exit code").write_text(str(code))
        except OSError:
            return code
        return 0 if together else code
    if code in (REQUEUE, 130):
        for folder in _folders():
            with contextlib.suppress(OSError):
                (folder / "exit code").write_text(str(code))
    return code


def _folders() -> list[Path]:
    """Folders that all starts of the processes of one agent share."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # <folder of the agent>/attempt_<n>/<rank>/error.json
    folders = [Path(os.environ[FOLDER_VARIABLE])] if FOLDER_VARIABLE in os.environ else []
    return folders + ([Path(error_file).parents[2]] if error_file and len(Path(error_file).parents) > 3 else [])


def tell_agent(message: str, trace: str | None = None) -> None:
    """Let torchrun's own summary name the first cause."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path and FOLDER_VARIABLE not in os.environ:
        extra = {"py_callstack": trace or message, "timestamp": str(int(time.time()))}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}))


def start_anew(agenda: Agenda) -> NoReturn:
    """Execute this process's program again, in this process, from any of its threads.

    The process keeps its number, its launcher and its output; memory, threads, files and what it holds of a GPU are gone.
    """
    end_children()
    for handle in _open_handles():
        with contextlib.suppress(OSError):
            os.set_inheritable(handle, False)
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, *sys.orig_argv[1:]]
    text = replace(agenda, cpu_s=cpu_seconds()).as_text()
    os.execve(sys.executable, command, {**os.environ, VARIABLE: text})


def _open_handles() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/dev/fd") if int(name) > 2]
    except OSError:
        return list(range(3, 1024))


# ---- the launcher itself ----


def start(
    words: list[str],
    processes: int | str,
    *,
    max_restarts: int,
    nodes: int = 1,
    endpoint: str | None = None,
    say: Callable[[str], None],
) -> int:
    """Run ``mmrun`` with `words` in several processes and return the exit code that a single one would give.

    Args:
        words: The whole command line.
        processes: Processes on this machine, or ``"gpu"``.
        max_restarts: How often all processes are started again after one died.
        nodes: Machines; each runs this command.
        endpoint: ``host:port`` where several machines meet; None for one machine.
        say: Called with each line meant for the user.
    """
    launcher = _Launcher(words, processes, max_restarts, nodes, endpoint, say)
    return launcher.run()


class _Launcher:
    def __init__(self, words: list[str], processes: Any, max_restarts: int, nodes: int, endpoint: str | None, say: Any):
        self.words, self.processes, self.nodes, self.endpoint = words, processes, nodes, endpoint
        self.max_restarts, self.say = max_restarts, say
        self.request: StopRequest | None = None
        self.code: int | None = None
        self.deaths: list[tuple[int, int]] = []

    def run(self) -> int:
        if self.processes == "gpu":
            self.processes = _count_gpus()
        self.folder = Path(tempfile.mkdtemp(prefix="mmrun_"))
        environment = dict(os.environ)
        self._prepare_environment()
        before = {number: signal.signal(number, self._pass_on) for number in SIGNALS}
        # In a thread: there the agent leaves the signals alone, and this one is free to hear them.
        agent = threading.Thread(target=self._run_agent, daemon=True)
        try:
            agent.start()
            while agent.is_alive():
                agent.join(0.2)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            os.environ.clear()
            os.environ.update(environment)
        if self.code != 1:  # else what the processes wrote can be looked at
            shutil.rmtree(self.folder, ignore_errors=True)
        return self.code if self.code is not None else 1

    def _prepare_environment(self) -> None:
        environment = os.environ
        environment[FOLDER_VARIABLE] = str(self.folder)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // self.processes)))
        environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else every broken connection is a page of C++ frames
        # With a store in the first process and not in this one, restarts across machines do not wait for ever for what the
        # processes before them wrote, and the processes can still agree where to stop when this one is killed.
        environment.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")

    def _run_agent(self) -> None:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        log = logging.getLogger(_AGENT_LOG)
        log.setLevel(logging.ERROR)
        handler = _Listener(self._agent_said)
        log.handlers, log.propagate = [handler], False
        for name in list(logging.root.manager.loggerDict):
            if name.startswith(_AGENT_LOG + "."):
                child = logging.getLogger(name)
                child.handlers, child.propagate = [], True
                child.setLevel(logging.NOTSET)
        config = LaunchConfig(
            min_nodes=self.nodes,
            max_nodes=self.nodes,
            nproc_per_node=self.processes,
            run_id=f"mmrun-{os.environ.get('SLURM_JOB_ID', '0') if self.nodes > 1 else uuid.uuid4().hex}",
            rdzv_backend="c10d",
            rdzv_endpoint=self.endpoint or "localhost:0",
            max_restarts=self.max_restarts,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(
                log_dir=str(self.folder), redirects=dict.fromkeys(range(1, self.processes), Std.ALL)
            ),
        )
        if self.nodes == 1:
            config.local_addr = "localhost"
        script = str(Path(__file__).resolve().with_name("run.py"))
        try:
            elastic_launch(config, sys.executable)("-u", script, *self.words)
            self.code = self._code_left()
        except ChildFailedError as error:
            self.code = self._code_left(otherwise=1)
            self._explain(error.failures)
        except Exception as error:  # border: whatever the agent raises ends the command, not in silence
            self.say(
                f"mmrun: the processes could not be started: {type(error).__name__}: {' '.join(str(error).split())}"
            )
            (self.folder / "launcher.traceback.txt").write_text("".join(traceback.format_exception(error)))
            self.code = 1

    def _code_left(self, otherwise: int = 0) -> int:
        """Return the exit code that the processes of this machine noted; `otherwise` if none noted a failure."""
        codes = [int(file.read_text() or 1) for file in sorted(self.folder.glob("exit code of *"))]
        if any(codes):
            return next(code for code in codes if code)
        if self.request is not None and (otherwise or len(codes) < self.processes):
            return self.request.exit_code
        return otherwise if len(codes) == self.processes else 1

    # ---- what the agent says ----

    def _agent_said(self, record: logging.LogRecord) -> None:
        """Say which process died of what; the agent reports it as (exit code, local rank, pid, program)."""
        arguments = record.args if isinstance(record.args, tuple) else ()
        if len(arguments) == 4 and isinstance(arguments[0], int) and isinstance(arguments[1], int):
            code, local = arguments[0], arguments[1]
            self.deaths.append((local, code))
            if self.request is None and decided_exit_code() is None:
                self.say(f"mmrun: process {local} of {self.processes} on this machine {_how(code)}")
        elif self.request is None and "failed" not in str(record.msg):
            self.say(f"mmrun: launcher: {record.getMessage()}")

    def _explain(self, failures: dict[int, Any]) -> None:
        """Show the last lines of processes that are not shown otherwise and died without saying why."""
        if self.request is not None:
            return
        for local, code in self.deaths[-1:]:
            if local == 0 or -code in (signal.SIGKILL, signal.SIGTERM):
                continue
            files = sorted(self.folder.glob(f"mmrun-*/attempt_*/{local}/stderr.log"), key=os.path.getmtime)
            text = files[-1].read_text(errors="replace").splitlines()[-15:] if files else []
            if text:
                self.say(f"mmrun: process {local} wrote at last ({files[-1]}):\n" + "\n".join(f"  {x}" for x in text))

    # ---- signals ----

    def _pass_on(self, number: int, frame: Any) -> None:
        if self.request is None:  # a second signal ends all at once, see `StopControl`
            self.request = StopRequest(signal.Signals(number).name)
            with contextlib.suppress(OSError):
                (self.folder / "asked to end").write_text(str(self.request.exit_code))
        for process in self._ranks():
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    @staticmethod
    def _ranks() -> list[psutil.Process]:
        try:
            return psutil.Process().children()
        except psutil.Error:
            return []


class _Listener(logging.Handler):
    def __init__(self, hear: Callable[[logging.LogRecord], None]):
        super().__init__(logging.ERROR)
        self.hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self.hear(record)


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else "without a name"
    hint = " (mostly: the system ran out of memory)" if name == "SIGKILL" else ""
    return f"was killed by signal {-code}, {name}{hint}"


def _count_gpus() -> int:
    import torch

    count = torch.cuda.device_count()
    if not count:
        raise UsageError("--nproc gpu: there is no GPU here; give a number of processes.")
    return count
