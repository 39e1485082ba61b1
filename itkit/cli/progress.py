"""How far work over cases is, and how long still: a bar on a terminal, a line now and then elsewhere, failures at once."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import TextIO

from itkit.process.execution import Progress, Step

_BAR_EVERY_S, _LINE_EVERY_S = 0.1, 30.0
_BAR_WIDTH = 30


@contextlib.contextmanager
def case_progress(title: str, *, quiet: bool = False, stream: TextIO | None = None) -> Iterator[Progress | None]:
    """Show on stderr how far the work is while the block runs.

    Args:
        title: Name of the tool.
        quiet: Show nothing.
        stream: Where to; None: stderr.
    """
    if quiet:
        yield None
        return
    face = _Face(title, stream or sys.stderr)
    try:
        yield face.finished
    finally:
        face.clear()


class _Face:
    def __init__(self, title: str, stream: TextIO):
        self._title, self._stream, self._terminal = title, stream, stream.isatty()
        self._started = self._shown = time.monotonic()
        self._failed, self._dirty = 0, False

    def finished(self, step: Step) -> None:
        """Take notice of a finished case."""
        now = time.monotonic()
        if step.reason is not None:
            self._failed += 1
            self.clear()
            self._stream.write(f"  failed  {step.case_id}: {step.reason}\n")
        if now - self._shown < (_BAR_EVERY_S if self._terminal else _LINE_EVERY_S) and not (
            self._terminal and step.reason
        ):
            return
        self._shown = now
        left = duration((now - self._started) * (1 - step.share) / step.share) if step.share else "?"
        failed = f", {self._failed} failed" if self._failed else ""
        if self._terminal:
            done = int(_BAR_WIDTH * step.share)
            bar = "#" * done + "-" * (_BAR_WIDTH - done)
            text = f"{self._title} [{bar}] {step.number}/{step.total}{failed}, {left} left  {step.case_id}"
            self.clear()
            if step.number == step.total:
                return  # the documents follow, perhaps with a question
            self._stream.write(text[: shutil.get_terminal_size().columns - 1])
            self._dirty = True
        else:
            self._stream.write(f"{self._title}: {step.number} of {step.total} cases{failed}, {left} left\n")
        self._stream.flush()

    def clear(self) -> None:
        """Take the bar away."""
        if self._dirty:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._dirty = False


def duration(seconds: float) -> str:
    """Return a length of time as people say it: ``"42 s"``, ``"3 min"``, ``"1 h 20 min"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
