"""Do one slow thing at a time beside the training, and lose no error of it."""

from __future__ import annotations

import threading
from collections.abc import Callable

THREAD_NAME = "itkit-saving"


class OneAtATime:
    """Runs jobs in a thread, at most one at a time, and keeps what the last one raised until somebody asks.

    The thread is none that ends with the process: Python waits for it at its exit.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Run `job` beside what follows. The one before must be over and its error taken."""
        if self._thread is not None or self._error is not None:
            raise RuntimeError("the job before is not over, or nobody has asked what came of it")
        self._thread = threading.Thread(target=self._run, args=(job,), name=THREAD_NAME)
        self._thread.start()

    def wait(self) -> BaseException | None:
        """Wait for the job under way; return what it raised, once, or None."""
        thread = self._thread
        if thread is not None:
            thread.join()
            self._thread = None
        error, self._error = self._error, None
        return error

    @property
    def has_failed(self) -> bool:
        """Whether a job is over and raised something that was not taken yet. Does not wait."""
        return self._error is not None

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # the border between two threads: whoever waits raises it
            self._error = error
