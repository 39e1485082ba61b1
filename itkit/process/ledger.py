"""What became of each case of an operation: one JSON line a case, so that a second run does only what is left."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from itkit.errors import DataError

LEDGER_NAME = "ledger.jsonl"
STARTED, DONE, FAILED = "started", "done", "failed"


def stamp(path: str | os.PathLike) -> list[int] | None:
    """Return ``[size in bytes, modification time in ns]`` of a file: what makes it look unchanged; None if missing."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns]


class Ledger:
    """The file ``ledger.jsonl`` in the output folder of an operation.

    Each line is ``{"case", "state": "started"|"done"|"failed", "reason", "inputs": {path: stamp}, "outputs": {path: stamp},
    "time"}``; the last line of a case counts. Paths are relative to the folder where they lie inside it.

    Args:
        folder: The operation's output folder.

    Raises:
        DataError: If an existing ledger is not one.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.path = self.folder / LEDGER_NAME
        self.entries: dict[str, dict] = {}
        if not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, 1):
            try:
                if line:
                    entry = json.loads(line)
                    self.entries[entry["case"]] = entry
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines):
                    break  # the writer was killed in the middle of its last line
                raise DataError(f"line {number} is not an entry of a ledger; remove the file.", self.path) from error

    def is_current(
        self, case_id: str, inputs: Iterable[Path], outputs: Iterable[Path] | None, parameters: dict | None = None
    ) -> bool:
        """Say whether the case was done with these inputs and parameters and its outputs are as they were left.

        `outputs` None means: whatever files the entry says it became.
        """
        entry = self.entries.get(case_id)
        if entry is None or entry["state"] != DONE or entry["inputs"] != self._stamps(inputs):
            return False
        if parameters is not None and entry.get("parameters") != parameters:
            return False
        now = (
            {name: stamp(self.folder / name) for name in entry["outputs"]} if outputs is None else self._stamps(outputs)
        )
        return entry["outputs"] == now

    def owns(self, path: Path) -> bool:
        """Say whether `path` is as an earlier run of this operation left it, or was being written when it was killed."""
        name, now = self._name(path), stamp(path)
        return any(
            name in entry["outputs"] and (entry["state"] == STARTED or entry["outputs"][name] == now)
            for entry in self.entries.values()
        )

    def begin(self, case_id: str, inputs: Iterable[Path], outputs: Iterable[Path], **facts) -> None:
        """Note that a case is being worked on: its outputs are this operation's, whatever happens."""
        self._append(case_id, STARTED, None, inputs, outputs, facts)

    def record(
        self, case_id: str, inputs: Iterable[Path], outputs: Iterable[Path], reason: str | None = None, **facts
    ) -> None:
        """Note what became of a case, with further `facts`; with a `reason` it failed."""
        self._append(case_id, DONE if reason is None else FAILED, reason, inputs, outputs, facts)

    def _append(self, case_id: str, state: str, reason: str | None, inputs, outputs, facts: dict) -> None:
        entry = {
            "case": case_id,
            "state": state,
            "reason": reason,
            "inputs": self._stamps(inputs),
            "outputs": self._stamps(outputs),
            "time": round(time.time(), 3),
            **facts,
        }
        with open(self.path, "a+b") as stream:
            # A line that a killed writer left unfinished must not swallow this one.
            if stream.seek(0, os.SEEK_END):
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    whole = self.path.read_bytes()
                    stream.truncate(whole.rfind(b"\n") + 1)
            stream.write((json.dumps(entry, ensure_ascii=False) + "\n").encode())
        self.entries[case_id] = entry

    def _stamps(self, paths: Iterable[Path]) -> dict[str, list[int] | None]:
        return {self._name(path): stamp(path) for path in paths}

    def _name(self, path: Path) -> str:
        path = Path(os.path.abspath(path))
        folder = Path(os.path.abspath(self.folder))
        return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()
