"""Let all processes of a run fail together: the first cause is written down and shown once, and they start anew."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from itkit.experiment import lock
from itkit.experiment.state import RunState
from itkit.mm import launch
from itkit.mm.agenda import Agenda, Failure
from itkit.mm.background import THREAD_NAME
from itkit.mm.board import Board
from itkit.mm.stopping import StopControl

HEAR_S = 30.0
"""How long the first process waits until all others have heard of a failure."""
SAVE_S = 60.0
"""How long a checkpoint that is being written may take to be completed."""
CAUSE_S = 3.0
"""How long a process that lost contact looks for a note about the cause."""


def record_failure(run_dir: Path, message: str, traceback_file: str | None) -> None:
    """Write the failure of a run to its ``run.json``.

    Raises:
        OSError: If it cannot be written.
        CheckpointError: If ``run.json`` cannot be read.
    """
    state = RunState.load(run_dir)
    if state.state != "trained":
        state.state = "failed"
    relative = None if traceback_file is None else os.path.relpath(traceback_file, run_dir)
    state.failure = {"message": message, "traceback_file": relative, "step": state.step}
    state.save(run_dir)


class FailTogether:
    """Makes the failure of one process that of all.

    The process that fails writes a note on the board; the first one counts. Every process's watching thread reads it, also
    while its main thread waits in a collective operation that will never end. The first process shows the cause and writes
    it to ``run.json``. Then all start anew and find in their agenda whether to try again or to go on with the next model.

    Args:
        board: Of the processes.
        control: Whose watching thread reads the board.
        agenda: What is done, kept up to date by the main thread.
        auto_retry: Further attempts for a model that failed.
        record: Called in the first process with the failure, to show it and write it down.
    """

    def __init__(
        self,
        board: Board,
        control: StopControl,
        agenda: Agenda,
        auto_retry: int,
        record: Callable[[Failure, Agenda], None],
    ):
        self.board, self.control, self.agenda = board, control, agenda
        self.auto_retry, self.record = auto_retry, record
        self._acting = threading.Lock()

    def fail(self, failure: Failure) -> NoReturn:
        """Let all processes fail because of `failure`, or of what another process wrote before."""
        self.act(self.board.propose("failure", asdict(failure)))
        threading.Event().wait()  # the watching thread was faster and starts this process anew

    def fail_for_known_cause(self) -> None:
        """After contact was lost: fail together if a process said why; return if none did."""
        end = time.monotonic() + CAUSE_S
        while time.monotonic() < end:
            note = self.board.read("failure")
            if note is not None:
                self.act(note)
                threading.Event().wait()
            time.sleep(0.1)

    def act(self, note: dict[str, Any]) -> None:
        """Do what is to be done after the failure in `note`; return only if another thread does it already."""
        if not self._acting.acquire(blocking=False):
            return
        failure = Failure(**note)
        agenda = self.agenda.after(failure, self.auto_retry)
        try:
            if self.board.rank == 0:
                _let_saving_end()
                self.record(failure, agenda)
                self._wait_for_others()
            else:
                self.board.sign("heard")
                self._wait_for_first()
        except RuntimeError:
            pass  # the store is gone with its host; what is left to do needs none
        lock.let_go()
        if self.board.rank == failure.rank:
            launch.tell_agent(failure.message)
        launch.start_anew(agenda)

    def _wait_for_others(self) -> None:
        """Keep the store, which may live in this process, until all have read the note."""
        end = time.monotonic() + HEAR_S
        while self.board.signed("heard", range(1, self.board.world_size)) is None and time.monotonic() < end:
            time.sleep(0.02)
        self.board.sign("heard")

    def _wait_for_first(self) -> None:
        end = time.monotonic() + HEAR_S + SAVE_S
        while self.board.signed("heard", [0]) is None and time.monotonic() < end:
            time.sleep(0.02)


def _let_saving_end() -> None:
    for thread in threading.enumerate():
        if thread.name == THREAD_NAME:
            thread.join(SAVE_S)
