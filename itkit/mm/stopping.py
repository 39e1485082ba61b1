"""Hear the signals that ask a run to end, and let all its processes stop at the same point."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import psutil

from itkit.mm.board import Board

REQUEUE = 75
"""Exit code (EX_TEMPFAIL) of a run that was asked to end and is to be started again."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))
ECHO_S = 1.0
"""A signal this soon after the first is the same request, delivered on another way (batch system, launcher, terminal)."""
LOOK_S = 0.25
"""How often a process looks at the board."""
BEAT_S = 1.0
AGREE_S = 60.0
"""How long a process that is to stop waits for the others to say how far they are."""
LEAVE_S = 30.0
"""How long the main thread may take to end at once before its process is ended."""


@dataclass(frozen=True)
class StopRequest:
    """That somebody asked the run to end.

    Attributes:
        reason: The signal's name, or what else it was.
        rank: The process that heard it first.
    """

    reason: str
    rank: int = 0

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, else the code that says: start again."""
        return 130 if self.reason == "SIGINT" else REQUEUE


class Stopped(KeyboardInterrupt):
    """The run ends because it was asked to.

    Attributes:
        request: Who asked.
        told: Whether all processes know, so that none of them need be started again.
    """

    def __init__(self, request: StopRequest, told: bool):
        super().__init__(request.reason)
        self.request, self.told = request, told


class StopControl:
    """Hears stop requests in this process, and agrees with the other processes where to stop.

    A program asks `may_go_on` at its *points*: places that all processes pass in the same order, such as the beginning of
    an iteration. When a request is heard, each process's watching thread holds its main thread at the next point and
    writes how many points that has passed already; the largest number is where all stop. Until there is a request, a point
    costs one lock and no communication.

    Outside of `training`, or before its first point, there is nothing to be finished: a request raises `Stopped` in the
    main thread at once. A second signal ends the process at once, wherever it is.

    Args:
        leave: Called with an exit code before this process ends itself; returns the code to end with.
    """

    def __init__(self, leave: Callable[[int], int] = lambda code: code):
        self._leave = leave
        self._lock = threading.Condition()
        self._passed, self._held, self._target = 0, False, None
        self._request: StopRequest | None = None
        self._heard_at: float | None = None
        self._silent_at = 0.0  # no signal was waiting to be heard then
        self._own_signals = 0
        self._in_training = self._at_points = self._has_raised = self._is_told = self._is_deaf = False
        self._board: Board | None = None
        self._on_failure: Callable[[dict[str, Any]], None] | None = None
        self._process, self._parent = os.getpid(), os.getppid()
        self._ended = threading.Event()
        self._wakeup: int | None = None
        self._is_alone = int(os.environ.get("WORLD_SIZE", "1")) == 1

    # ---- asked by the main thread ----

    @property
    def request(self) -> StopRequest | None:
        """The request, None as long as nobody asked."""
        return self._request

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Let requests wait for the next point from the first point of the block on.

        Raises:
            Stopped: At the end of the block, if there was a request meanwhile.
        """
        self._in_training = True
        try:
            yield
        finally:
            self._in_training = self._at_points = False
        self.check()

    def may_go_on(self) -> bool:
        """Pass one point; False if the run is to stop here, which then holds for all processes.

        Raises:
            Stopped: If there is a request and the processes could not agree within a minute; nothing can be saved then.
        """
        with self._lock:
            if self._held and not self._lock.wait_for(lambda: self._target is not None, AGREE_S + LEAVE_S):
                raise Stopped(self._request, told=False)
            if self._held and self._passed >= self._target:
                return False
            self._passed += 1
            self._at_points = self._in_training
            return True

    def is_over(self) -> bool:
        """Whether `may_go_on` would say no, without passing a point; for long work between two points."""
        with self._lock:
            return self._held and self._target is not None and self._passed >= self._target

    def check(self) -> None:
        """Raise `Stopped` if there was a request."""
        if self._request is not None:
            self._raise()

    @property
    def is_known_to_all(self) -> bool:
        """Whether all processes have heard of the request and said how far they are."""
        return self._is_told

    def ignore_requests(self) -> None:
        """Let what is under way end as it does."""
        self._is_deaf = True

    def farewell(self) -> bool:
        """Wait a moment until all processes know of the request; return whether they do."""
        if self._board is None:
            return self._is_alone
        end = time.monotonic() + 2
        while not self._is_told and time.monotonic() < end:
            time.sleep(0.02)
        return self._is_told

    # ---- listening ----

    @contextlib.contextmanager
    def listening(self, *, for_good: bool = False) -> Iterator[StopControl]:
        """Hear signals in the block; without effect outside of the main thread.

        Args:
            for_good: Whether the process ends after the block. If it was asked to, further signals are ignored from then on,
                as an echo of the request must not change the exit code; else the handlers of before are back.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        wakeup_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        _listening.append(self)
        self._wakeup = writing
        watcher = threading.Thread(target=self._watch, args=(reading,), name="stop requests", daemon=True)
        watcher.start()
        try:
            yield self
        finally:
            try:
                with self._lock:  # a signal that the watching thread sends has come by then, or is never sent
                    self._ended.set()
            finally:
                self._ended.set()
                _listening.remove(self)
                for number, handler in before.items():
                    signal.signal(number, signal.SIG_IGN if for_good and self._request is not None else handler)
                signal.set_wakeup_fd(wakeup_before)
                self._wake()
                self._wakeup = None
                watcher.join(LEAVE_S)
                os.close(writing)
                os.close(reading)

    def connect(self, board: Board, on_failure: Callable[[dict[str, Any]], None]) -> None:
        """Share requests with the processes of `board`; call `on_failure` with the first failure that one of them notes."""
        self._on_failure = on_failure
        self._board = board
        self._wake()

    def disconnect(self) -> None:
        """Look at the board no more, so that its host can end without an error here; from now on all end by themselves."""
        self._board, self._is_alone = None, True

    def _wake(self) -> None:
        if self._wakeup is not None:
            with contextlib.suppress(BlockingIOError):
                os.write(self._wakeup, b"\0")

    def _on_signal(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a process that was forked off this one inherited the handler
            if number == signal.SIGINT:
                signal.default_int_handler(number, frame)
            os._exit(128 + number)
        if self._is_deaf:
            return
        if self._request is None:
            self._request = StopRequest(signal.Signals(number).name, _rank())
        if not self._at_points:
            self._raise()

    def _raise(self) -> None:
        if not self._has_raised:
            self._has_raised = True
            if hasattr(signal, "SIGCHLD"):  # workers that end too are no news now, and PyTorch would raise
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            raise Stopped(self._request, told=self.farewell())

    # ---- the watching thread ----

    def _watch(self, reading: int) -> None:
        next_beat = 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(reading, selectors.EVENT_READ)
            while not self._ended.is_set():
                begin = time.monotonic()
                if selector.select(self._patience()):
                    for number in os.read(reading, 64):
                        self._hear(number)
                else:
                    self._silent_at = begin
                board, is_orphan = self._board, not self._is_alone and os.getppid() != self._parent
                if board is not None:
                    try:
                        if is_orphan:
                            self._ask(StopRequest("the end of the launcher", _rank()))
                        if time.monotonic() >= next_beat:
                            board.beat()
                            next_beat = time.monotonic() + BEAT_S
                        self._look(board)
                    except RuntimeError:  # the store's host is gone; the collectives will tell
                        if self._board is board:
                            self._board = None
                elif is_orphan:  # and what the others could be told by is gone too
                    self.end_process(REQUEUE, final=False)
                elif self._request is not None and self._is_alone and not self._held:
                    self._hold()
                    self._agree([self._passed])

    def _patience(self) -> float | None:
        if self._is_alone:
            return None if self._request is None else LOOK_S
        return LOOK_S if self._request is None or self._is_settled() else 0.02

    def _is_settled(self) -> bool:
        return self._target is not None and self._is_told

    def _hear(self, number: int) -> None:
        """Take one signal. When it was sent is not known, only that it was after the last silence: this thread may be late."""
        if number not in SIGNALS or self._is_deaf:
            return
        if number == SIGNALS[0] and self._own_signals:
            self._own_signals -= 1
        elif self._heard_at is None:
            self._heard_at = time.monotonic()
            if self._request is None:
                self._request = StopRequest(signal.Signals(number).name, _rank())
        elif self._silent_at - self._heard_at > ECHO_S:
            self.end_process(128 + number)

    def _ask(self, request: StopRequest) -> None:
        """Take a request that is not a signal to this process."""
        self._request = self._request or request
        with self._lock:
            if self._at_points or self._has_raised or self._ended.is_set():
                return
            self._heard_at = time.monotonic()
            self._own_signals += 1
            signal.pthread_kill(threading.main_thread().ident, SIGNALS[0])
        threading.Thread(target=self._end_if_stuck, daemon=True).start()

    def _end_if_stuck(self) -> None:
        if not self._ended.wait(LEAVE_S):
            self.end_process(self._request.exit_code)

    def _hold(self) -> None:
        with self._lock:
            self._held = True

    def _agree(self, passed: list[int]) -> None:
        with self._lock:
            self._target = max(passed)
            self._lock.notify_all()
        self._is_told = True

    def _look(self, board: Board) -> None:
        failure = board.read("failure")
        if failure is not None and self._on_failure is not None:
            self._on_failure(failure)
            return
        note = asdict(self._request) if self._request is not None else None
        note = board.propose("stop", note) if note and not self._held else board.read("stop")
        if note is None:
            return
        if not self._held:
            self._request = StopRequest(**note)
            self._hold()
            board.sign("passed", self._passed)
            self._ask(self._request)
        if self._target is None:
            passed = board.signed("passed")
            if passed is not None:
                self._agree(passed)

    # ---- ends ----

    def end_process(self, code: int, *, final: bool = True) -> NoReturn:
        """End this process and its children now, from any thread and past a process group that is broken.

        Args:
            code: Exit code.
            final: False if a launcher may start the processes again.
        """
        end_children()
        with contextlib.suppress(OSError, ValueError):
            if sys.stderr.isatty():
                sys.stderr.write("\x1b[?25h")  # a progress bar hides the cursor
            sys.stderr.flush()
        os._exit(self._leave(code) if final else code)


_listening: list[StopControl] = []


def _forget_wakeup() -> None:
    """Let signals of a forked process not be heard as if its parent had got them."""
    if _listening:
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_wakeup)


def end_children() -> None:
    """Kill all processes that this one started."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
