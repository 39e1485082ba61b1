"""Who works in a destination: runs that say that they are alive, their claims to cases, and what dead ones left."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itkit._support.leases import Lease, read_holder
from itkit.process.operation import Stage

ALIVE = "alive"
CLAIMS = "claims"
_UNFINISHED = re.compile(r"\.\w{8}\.part-.")
_TRUST_S = 1.0
_BEING_WRITTEN_S = 60.0


@dataclass(frozen=True)
class Claim:
    """The right to work on one case, held by one attempt of one run.

    Attributes:
        path: The file that says so.
        owner: What stands in it: the run, and after a first attempt which one.
        run_id: The run.
    """

    path: Path
    owner: str
    run_id: str

    def holds(self) -> bool:
        """Say whether the claim is still this attempt's; a run that was thought dead has lost it."""
        return _read(self.path) == self.owner

    def release(self) -> None:
        """Give the case free, if it is still this attempt's."""
        if self.holds():
            with contextlib.suppress(OSError):
                self.path.unlink()

    def renewed(self) -> Claim:
        """Take the claim over for a new attempt of the same run; what an earlier attempt still does is not published."""
        attempt = secrets.token_hex(4)
        claim = Claim(self.path, json.dumps({"run": self.run_id, "attempt": attempt}), self.run_id)
        temporary = self.path.with_name(f"{self.path.name}.{attempt}")
        temporary.write_text(claim.owner, encoding="utf-8")
        os.replace(temporary, self.path)
        return claim


class Presence:
    """One run in the folders that it writes to.

    Below each of them, ``.itkit-staging/<run>/`` holds the unfinished files of the run and the file ``alive``; below the
    destination, ``.itkit-staging/claims/`` holds one file a case that is being worked on: a link to ``alive``, or where
    there are no links a small file. Every file system lets only one of two machines make it.

    Args:
        destination: The folder of the ledger.
        roots: The folders below which files are written.
        facts: What another run may read about this one; plain data.

    Raises:
        OSError: If the folders cannot be written.
    """

    def __init__(self, destination: Path, roots: Sequence[Path], facts: dict[str, Any]):
        self.run_id = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
        folders = dict.fromkeys(Path(os.path.abspath(folder)) for folder in (destination, *roots))
        self._stagings = [folder / Stage.FOLDER for folder in folders]
        self._claims = self._stagings[0] / CLAIMS
        self._leases: list[Lease] = []
        self._known: dict[str, tuple[float, dict | None]] = {}
        self._links = True
        try:
            for staging in self._stagings:
                self._leases.append(self._enter(staging, {"run": self.run_id, **facts}))
            self._claims.mkdir(exist_ok=True)
        except OSError:
            self.close()
            raise
        self._alive = self._leases[0].path
        self._owner = _read(self._alive)

    def _enter(self, staging: Path, facts: dict[str, Any]) -> Lease:
        while True:
            (staging / self.run_id).mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # a run that ends removes what it finds empty
                return Lease(staging / self.run_id / ALIVE, facts)

    def close(self) -> None:
        """Leave: nothing of this run stays but what was published."""
        for lease in self._leases:
            lease.release()
        for staging in self._stagings:
            shutil.rmtree(staging / self.run_id, ignore_errors=True)
        for claim in self._own_claims():
            with contextlib.suppress(OSError):
                claim.unlink()
        for folder in (self._claims, *self._stagings):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def others(self) -> list[dict]:
        """Return what the other live runs in the destination say of themselves."""
        runs = (self._holder(name) for name in _names(self._stagings[0]) if name not in (CLAIMS, self.run_id))
        return [holder for holder in runs if holder is not None]

    def sweep(self) -> bool:
        """Remove what dead runs have left, unfinished files and claims; return whether there were any."""
        found = False
        for staging in self._stagings:
            for name in _names(staging):
                if name not in (CLAIMS, self.run_id) and read_holder(staging / name / ALIVE) is None:
                    shutil.rmtree(staging / name, ignore_errors=True)
                    found = True
        if found and not self.others():
            for staging in self._stagings:  # documents that a dead run was writing
                for name in _names(staging.parent):
                    if _UNFINISHED.match(name):
                        (staging.parent / name).unlink(missing_ok=True)
        for token in _names(self._claims):
            claim, owner = self._claims / token, _read(self._claims / token)
            if owner and self._holder(_run_of(owner)) is None:
                taken = self._take_over(claim, owner)
                if taken:
                    taken.release()
        return found

    def claim(self, case_id: str) -> Claim | dict:
        """Return the claim to a case, or what is known of the live run that has it."""
        return self._claim(self._claims / case_token(case_id))

    def _claim(self, path: Path) -> Claim | dict:
        while True:
            try:
                return self._make(path)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                owner = _read(path)
                if owner is None:
                    continue  # released this moment
                if _run_of(owner) == self.run_id:
                    return Claim(path, owner, self.run_id).renewed()
                holder = self._holder(_run_of(owner)) if owner else self._unnamed(path)
                if holder is not None:
                    return holder
                taken = self._take_over(path, owner)
                if taken is not None:
                    return taken

    def _make(self, path: Path) -> Claim:
        if self._links:
            try:
                os.link(self._alive, path)
                return Claim(path, self._owner, self.run_id)
            except (FileNotFoundError, FileExistsError):
                raise
            except OSError:
                self._links = False  # a file system without them
        with open(path, "x", encoding="utf-8") as stream:
            stream.write(self._owner)
        return Claim(path, self._owner, self.run_id)

    def _take_over(self, path: Path, owner: str) -> Claim | None:
        """Take the claim of a dead run; None if another run was quicker.

        The right to replace the claim of one dead owner is itself decided by ``O_EXCL``, and used only if the claim is
        still the dead one's then.
        """
        right = path.with_name(f"{path.name}.after.{hashlib.sha256(owner.encode()).hexdigest()[:16]}")
        claim = self._claim(right)
        if not isinstance(claim, Claim):
            return None
        if _read(path) != owner:
            claim.release()
            return None
        os.replace(right, path)
        return Claim(path, claim.owner, self.run_id)

    @staticmethod
    def _unnamed(path: Path) -> dict | None:
        """A claim without a name is being written, unless it is old."""
        try:
            return {} if time.time() - path.stat().st_mtime < _BEING_WRITTEN_S else None
        except FileNotFoundError:
            return {}

    def _holder(self, run_id: str) -> dict | None:
        since, holder = self._known.get(run_id, (-1.0, None))
        if since < 0 or time.monotonic() - since > _TRUST_S:
            holder = read_holder(self._stagings[0] / run_id / ALIVE)
            self._known[run_id] = (time.monotonic(), holder)
        return holder

    def _own_claims(self) -> Iterator[Path]:
        for token in _names(self._claims):
            if _run_of(_read(self._claims / token) or "") == self.run_id:
                yield self._claims / token


def case_token(case_id: str) -> str:
    """Return a short name for a case that any file system takes."""
    return hashlib.sha256(case_id.encode(errors="surrogateescape")).hexdigest()[:16]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _read(path: Path) -> str | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError:
        return ""
    try:
        return os.read(handle, 1 << 16).decode(errors="replace")
    finally:
        os.close(handle)


def _run_of(owner: str) -> str:
    try:
        return str(json.loads(owner)["run"])
    except (ValueError, KeyError, TypeError):
        return ""
