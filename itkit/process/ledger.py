"""What became of each case of an operation: one JSON line a case, so that a second run does only what is left."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from itkit._support.files import replace_when_complete
from itkit.errors import DataError, UsageError

LEDGER_NAME = "ledger.jsonl"
STARTED, DONE, FAILED = "started", "done", "failed"
_CHUNK = 1 << 20
_SUPERFLUOUS_LINES = 1000
_KEPT_ENTRIES = 1000


def stamp(path: str | os.PathLike) -> list[int] | None:
    """Return ``[size in bytes, modification time in ns]`` of a file: what makes it look unchanged; None if missing."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns]


class Ledger:
    """The file ``ledger.jsonl`` in the output folder of an operation.

    A line says of a case: ``case``, ``state`` (``"started"``: its files are being moved to their places; ``"done"``;
    ``"failed"``), ``reason``, ``operation``, ``parameters``, ``inputs`` and ``outputs`` (path -> ``size``, ``mtime_ns``,
    ``sha256``), ``seconds``, ``notes``, ``record``, ``itkit`` (version), ``time``. The last line of a case counts. Paths
    are relative to the folder where they lie inside it. Lines that are not whole are passed over: a writer was killed.

    Several processes may append at once, also on several machines where the file system has locks. In memory are only
    the places of the lines, about 250 bytes a case.

    Args:
        folder: The operation's output folder.
        operation: Name of the operation; None to look into a ledger of any.
        read: Read it now; otherwise not before `refresh`.

    Raises:
        DataError: If an existing ledger is not one, or cannot be read.
        UsageError: If it is another operation's.
    """

    def __init__(self, folder: str | os.PathLike, operation: str | None = None, *, read: bool = True):
        self.folder, self.operation = Path(folder), operation
        self.path = self.folder / LEDGER_NAME
        self._below = os.path.abspath(self.folder)
        self._forget()
        if read:
            self.refresh()

    def __del__(self):
        self._forget()

    def _forget(self) -> None:
        if getattr(self, "_reader", None) is not None:
            os.close(self._reader)
        self._reader: int | None = None
        self._settled: dict[str, tuple[int, int, float]] = {}
        self._begun: dict[str, tuple[int, int, float]] = {}
        self._owners: dict[str, str] | None = None
        self._inode, self._read_bytes, self._lines, self._bad = None, 0, 0, None

    @property
    def entries(self) -> Mapping[str, dict]:
        """Case id -> its last entry that is ``done`` or ``failed``, each read when it is asked for."""
        return Entries(self, self._settled)  # a view of this moment

    def entry(self, case_id: str) -> dict | None:
        """Return the last entry of a case that is ``done`` or ``failed``."""
        place = self._settled.get(case_id)
        return None if place is None else self._line(place)

    def begun(self, case_id: str) -> dict | None:
        """Return the ``started`` entry of a case whose end is not noted: a run was killed while it moved the files."""
        place = self._begun.get(case_id)
        return None if place is None else self._line(place)

    def settled_at(self, case_id: str) -> float:
        """Return when the case was settled last, in seconds since 1970; 0 for a case that never was."""
        place = self._settled.get(case_id)
        return 0.0 if place is None else place[2]

    def refresh(self) -> None:
        """Take notice of what others have appended."""
        try:
            with open(self.path, "rb") as stream:
                state = os.fstat(stream.fileno())
                if state.st_ino != self._inode or state.st_size < self._read_bytes:
                    self._forget()
                    self._inode = state.st_ino
                if state.st_size > self._read_bytes:
                    stream.seek(self._read_bytes)
                    self._take(stream)
        except FileNotFoundError:
            self._forget()
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror}).", self.path) from error

    def _take(self, stream) -> None:
        for line in stream:
            if not line.endswith(b"\n"):
                break  # it is being written, or its writer was killed
            place, self._read_bytes = (self._read_bytes, len(line)), self._read_bytes + len(line)
            if line == b"\n":
                continue
            self._lines += 1
            try:
                entry = json.loads(line)
                case_id, state, operation = entry["case"], entry["state"], entry.get("operation")
                place = (*place, float(entry["time"]))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                self._bad = self._bad or (self._lines, error)
                continue
            if self.operation and operation and operation != self.operation:
                raise UsageError(
                    f"{self.path}: is the ledger of {operation}; a folder holds the results of one tool. Choose another "
                    f"destination for {self.operation}."
                )
            if self._owners is not None:
                self._owners.update(dict.fromkeys(entry.get("outputs", ()), case_id))
            if state == STARTED:
                self._begun[case_id] = place
            else:
                self._settled[case_id] = place
                self._begun.pop(case_id, None)
        if self._bad and not self._settled and not self._begun:
            raise DataError(f"line {self._bad[0]} is not an entry of a ledger; remove the file.", self.path)

    def owned(self, case_id: str) -> dict[str, list[dict]]:
        """Return path -> facts of the files that are this case's, as they were left or as they were being moved."""
        found: dict[str, list[dict]] = {}
        for entry in (self.entry(case_id), self.begun(case_id)):
            for name, facts in (entry or {}).get("outputs", {}).items():
                found.setdefault(name, []).append(facts)
        return found

    def owner(self, path: Path) -> str | None:
        """Return the case whose file `path` is by its name; None if it is no case's."""
        if self._owners is None:
            owners: dict[str, str] = {}
            for places in (self._settled, self._begun):
                for case_id, place in places.items():
                    owners.update(dict.fromkeys(self._line(place)["outputs"], case_id))
            self._owners = owners
        return self._owners.get(self.name(path))

    def begin(self, case_id: str, outputs: Mapping[str, dict]) -> None:
        """Note which files are now moved to their places: they are this case's, whatever happens.

        Raises:
            OSError: If the ledger cannot be written.
        """
        self.append({"case": case_id, "state": STARTED, "operation": self.operation, "outputs": outputs})

    def append(self, entry: Mapping[str, Any]) -> None:
        """Append one entry; ``time`` is added.

        Raises:
            OSError: If the ledger cannot be written; then nothing of the entry stands in it.
        """
        line = _as_line({**entry, "time": round(time.time(), 3)})
        handle = self._open_locked()
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line  # the end of a killed writer's line must not swallow this one
            try:
                written = os.write(handle, line)
                while written < len(line):
                    written += os.write(handle, line[written:])
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, size)
                error.filename = os.fspath(self.path)
                raise
        finally:
            os.close(handle)

    def compact(self) -> None:
        """Drop lines that later ones have replaced, once they are many. Only for the single run in the folder.

        Raises:
            OSError: If the ledger cannot be written.
        """
        if self._lines <= 2 * len(self._settled) + len(self._begun) + _SUPERFLUOUS_LINES:
            return
        handle = self._open_locked()
        try:
            self.refresh()
            places = sorted([*self._settled.values(), *self._begun.values()])
            with replace_when_complete(self.path) as temporary, open(temporary, "wb") as stream:
                for start, length, _ in places:
                    stream.write(os.pread(handle, length, start))
        finally:
            os.close(handle)
        self.refresh()

    def name(self, path: str | os.PathLike) -> str:
        """Return how `path` is called in the ledger."""
        path = os.path.abspath(path)
        return path[len(self._below) + 1 :] if path.startswith(self._below + os.sep) else path

    def path_of(self, name: str) -> Path:
        """Return the file that the ledger calls `name`."""
        return Path(self._below, name)

    def _open_locked(self) -> int:
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            with contextlib.suppress(OSError):  # a file system without locks: appending must do
                fcntl.flock(handle, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(handle).st_ino == os.stat(self.path).st_ino:
                    return handle
            os.close(handle)  # it was compacted between our open and our lock: take the new one

    def _line(self, place: tuple[int, int, float]) -> dict:
        if self._reader is None:
            self._reader = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return _normal(json.loads(os.pread(self._reader, place[1], place[0])))


class Entries(Mapping):
    """Case id -> entry, read from the ledger when it is asked for; of few cases each is read once. Not to be changed."""

    def __init__(self, ledger: Ledger, case_ids: Iterable[str]):
        self._ledger, self._case_ids = ledger, dict.fromkeys(case_ids)
        self._kept: dict[str, dict] = {}

    def __getitem__(self, case_id: str) -> dict:
        if case_id in self._kept:
            return self._kept[case_id]
        if case_id not in self._case_ids:
            raise KeyError(case_id)
        entry = self._ledger.entry(case_id)
        if len(self._kept) < _KEPT_ENTRIES:
            self._kept[case_id] = entry
        return entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._case_ids)

    def __len__(self) -> int:
        return len(self._case_ids)

    def __contains__(self, case_id: object) -> bool:
        return case_id in self._case_ids


def _normal(entry: dict) -> dict:
    """Fill in what lines of itkit 0.1 do not say: there a file was ``[size, mtime_ns]``."""
    for part in ("inputs", "outputs"):
        files = entry.setdefault(part, {})
        for name, facts in files.items():
            if isinstance(facts, list):
                files[name] = dict(zip(("size", "mtime_ns"), facts, strict=False))
            elif facts is None:
                files[name] = {}
    entry.setdefault("record", {})
    return entry


def same_facts(one: Any, other: Any) -> bool:
    """Say whether two values are written the same way."""
    return json.dumps(one, sort_keys=True, default=str) == json.dumps(other, sort_keys=True, default=str)


def _as_line(entry: dict) -> bytes:
    try:
        return json.dumps(entry, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # a file name that is no UTF-8
        return json.dumps(entry, default=str).encode() + b"\n"
