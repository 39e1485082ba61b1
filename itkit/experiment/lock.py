"""One process at a time in a work directory; a lock left by a dead process is recognised and taken over."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from itkit.errors import RunLocked

LOCK_FILE = "run.lock"
HEARTBEAT_S = 20.0
FOREIGN_STALE_S = 300.0


@contextlib.contextmanager
def hold(folder: Path, group: str | None = None) -> Iterator[dict[str, Any] | None]:
    """Hold the work directory `folder` for the length of the block.

    On one machine the kernel decides (``flock``), so the lock of a process that was killed is free at once, also while
    processes that it forked live on. For a holder on another machine (a network file system on which ``flock`` does not
    reach across), the age of the file decides: a live holder touches it every 20 s, and after 300 s without a touch it
    counts as dead. A holder that belonged to this very start of several processes (`group`) is dead too: its launcher ended
    it before it started this one.

    Args:
        folder: The work directory; made if it is missing.
        group: Name of the start of several processes that this process belongs to; None for a single process.

    Yields:
        What is known of a dead holder whose lock was taken over, else None.

    Raises:
        RunLocked: If a live process holds it; the message names process, machine, command and start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    handle = _open_locked(path)
    _held[handle] = path
    stop = threading.Event()
    try:
        stale = _read(handle)
        if stale and stale.get("host") != socket.gethostname():
            age = time.time() - os.fstat(handle).st_mtime
            if age < FOREIGN_STALE_S and not (group and group == stale.get("group")):
                raise RunLocked(_refusal(folder, stale))
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "command": " ".join(sys.argv),
            "started": _now(),
            "group": group,
        }
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(holder).encode(), 0)
        threading.Thread(target=_heartbeat, args=(handle, stop), daemon=True).start()
        try:
            yield stale
        finally:
            stop.set()
            if handle in _held:
                path.unlink(missing_ok=True)
    finally:
        if _held.pop(handle, None) is not None:
            os.close(handle)


_held: dict[int, Path] = {}


def _let_go_in_child() -> None:
    """Close what a forked process inherited: a lock lives as long as one open handle of it."""
    while _held:
        os.close(_held.popitem()[0])


def let_go() -> None:
    """Give up every lock of this process, from any thread, because its program is about to be executed again."""
    while _held:
        handle, path = _held.popitem()
        path.unlink(missing_ok=True)
        os.close(handle)


os.register_at_fork(after_in_child=_let_go_in_child)


def _open_locked(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read(handle)
            os.close(handle)
            raise RunLocked(_refusal(path.parent, holder or {})) from error
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == os.stat(path).st_ino:
                return handle
        os.close(handle)  # the former holder removed the file between our open and our lock: take the new one


def _read(handle: int) -> dict[str, Any] | None:
    try:
        return json.loads(os.pread(handle, 65536, 0))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None


def _heartbeat(handle: int, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with contextlib.suppress(OSError):
            os.utime(handle)


def _refusal(folder: Path, holder: dict[str, Any]) -> str:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}, started {holder.get('started', '?')}"
    return f"{folder}: is in use by {who} ({holder.get('command', 'unknown command')}). Wait for it, or stop it first."


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
