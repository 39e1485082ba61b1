"""A file that says that a process is alive: locked for its own machine, touched now and then for the others."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

HEARTBEAT_S = 20.0
STALE_S = 300.0
"""A lease of another machine that nobody has touched for so long belongs to nobody."""


class Lease:
    """The file `path`, held by this process until `release` or until the process ends, however it ends.

    Args:
        path: The file; nobody else may take the same one. Its folder exists.
        facts: What others may read about the holder; plain data. ``pid`` and ``host`` are added.

    Raises:
        OSError: If the file cannot be written.
    """

    def __init__(self, path: Path, facts: dict[str, Any]):
        self.path = path
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with contextlib.suppress(OSError):  # a file system without locks: the heartbeat must do
            fcntl.flock(self._handle, fcntl.LOCK_EX)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), **facts}
        os.pwrite(self._handle, json.dumps(holder, default=str).encode(), 0)
        self._stop = threading.Event()
        threading.Thread(target=self._beat, daemon=True, name=f"heartbeat {path.name}").start()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        """Let go and remove the file."""
        self._stop.set()
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self._handle)


def read_holder(path: Path) -> dict[str, Any] | None:
    """Return the facts of the live process that holds the lease `path`; None if nobody does.

    On the holder's machine the kernel knows (``flock``). From another machine, or where the file system has no locks,
    the heartbeat decides: every 20 s, and after 300 s without one the holder counts as dead.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        try:
            holder = json.loads(os.pread(handle, 65536, 0))
        except ValueError:
            holder = {}  # it is being written
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return holder
        except OSError:
            pass
        else:
            if holder.get("host") == socket.gethostname():
                return None
        return holder if time.time() - os.fstat(handle).st_mtime < STALE_S else None
    finally:
        os.close(handle)
