"""Try again what a network file system refused for a moment."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

WAITS_S = (0.1, 0.5, 2.0, 8.0)
"""Seconds before the second, third ... attempt; after the last one the error stands."""

_NAMES = (
    "EIO EAGAIN EBUSY EINTR ESTALE ETIMEDOUT ECONNRESET ECONNABORTED ENETDOWN ENETUNREACH EHOSTDOWN EHOSTUNREACH "
    "EREMOTEIO ENOLCK ENOTCONN EPIPE"
)
TRANSIENT = frozenset(getattr(errno, name) for name in _NAMES.split() if hasattr(errno, name))
"""Errors that pass; a full disk (ENOSPC, EDQUOT), a read-only file system and a missing right are none of them."""


def retrying(
    action: Callable[[], T], *, waits_s: Sequence[float] | None = None, say: Callable[[str], None] | None = None
) -> T:
    """Return what `action` returns, calling it again after an error of the file system that may pass.

    Args:
        action: Can be called again after it failed; what it wrote in part does no harm.
        waits_s: Seconds to wait before each further attempt; None: `WAITS_S`.
        say: Called with one line before each further attempt.

    Raises:
        OSError: The last error, or at once one that does not pass by itself, such as a full disk.
    """
    waits_s = WAITS_S if waits_s is None else waits_s
    for attempt, wait_s in enumerate(waits_s, 1):
        try:
            return action()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
            if say is not None:
                where = f"{error.filename}: " if error.filename else ""
                say(f"{where}{error.strerror}; attempt {attempt + 1} of {len(waits_s) + 1} in {wait_s:g} s")
        time.sleep(wait_s)
    return action()
