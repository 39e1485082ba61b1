"""The whole work on one case: its inputs noted, its files staged, moved to their places together, and recorded."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itkit import __version__
from itkit._support.files import replace_when_complete, writing_to_stage
from itkit._support.heard import hearing
from itkit.errors import DataError, ItkitError, UsageError
from itkit.process.contents import Facts, compare_output, describe_output, hash_input, measure_input
from itkit.process.ledger import DONE, FAILED, Ledger
from itkit.process.operation import Operation, Product, Stage, Task
from itkit.process.presence import Claim

_KEPT_FOLDERS = 16


@dataclass(frozen=True)
class Order:
    """One case to be worked on.

    Attributes:
        task: The case.
        claim: The right to work on it.
        owned: File in the ledger's words -> what it may be like and still be this case's own, of an earlier run.
        after_crash: A run has died in the destination; a file there may be the case's own although the ledger does not
            know it (loss of power).
        alone: No other case is being worked on meanwhile.
    """

    task: Task
    claim: Claim
    owned: dict[str, list[Facts]] = field(default_factory=dict)
    after_crash: bool = False
    alone: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of it.

    Attributes:
        case_id: The case.
        reason: Why it failed; None if it is done.
        notes: What a user should know.
        seconds: Wall time.
        short_of_memory: It failed because memory could not be had; alone it may succeed.
    """

    case_id: str
    reason: str | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    short_of_memory: bool = False


class Workbench:
    """Works on the cases of one run, in whatever process it finds itself.

    Args:
        operation: What to do.
        overwrite: Replace files that are not the case's own.
        number: Tells several benches of one process apart.
    """

    def __init__(self, operation: Operation, overwrite: bool, *, number: int = 0):
        self.operation, self.overwrite, self._number = operation, overwrite, number
        self._abandoned = False
        self._parameters = operation.parameters()
        self._sources = [os.path.realpath(source) for source in operation.sources]
        self._ledger: Ledger | None = None
        self._stage: Stage | None = None

    def __reduce__(self):
        return type(self), (self.operation, self.overwrite)

    def perform(self, order: Order) -> Outcome:
        """Do one case from reading to recording; a failure becomes its reason."""
        task, started = order.task, time.perf_counter()
        stage, product, outputs = self._own_stage(order.claim.run_id), Product(), {}
        inputs: dict[str, Facts | None] = {}
        short_of_memory = False
        reason: str | None = None
        try:
            if not order.after_crash:
                self._require_free(order, dict.fromkeys(task.outputs))
            inputs = self._inputs(task, stage)
            product = self._process(task, stage)
            reason = product.failure
            self._require_unchanged(task, inputs)
            if reason is None:
                outputs = self._publish(order, stage)
        except MemoryError:
            short_of_memory = not order.alone
            reason = "there is not enough memory for it" + (", not even alone." if order.alone else ".")
        except ItkitError as error:
            reason = str(error)
            short_of_memory = isinstance(error.__cause__, MemoryError) and not order.alone
        except OSError as error:
            reason = _os_reason(error)
        except Exception as error:  # the border of one case: the others go on
            reason = f"{type(error).__name__}: {error}"
        finally:
            stage.clear(keep=_KEPT_FOLDERS)
        reason = None if reason is None else stage.as_final(reason)
        seconds = time.perf_counter() - started
        if short_of_memory:
            return Outcome(task.case_id, reason, (), seconds, short_of_memory=True)
        if reason is not None:
            outputs = self._left(order)
        entry = self.entry(
            task, inputs, outputs, reason, seconds=round(seconds, 4), record=product.record, notes=list(product.notes)
        )
        try:
            if order.claim.holds():
                self.ledger.append(entry)
        except OSError as error:
            reason = reason or f"is done, but could not be noted: {_os_reason(error)}"
        order.claim.release()
        return Outcome(task.case_id, reason, product.notes, seconds)

    def entry(self, task: Task, inputs: dict, outputs: dict, reason: str | None, **facts: Any) -> dict[str, Any]:
        """Return the ledger's entry of a case."""
        return {
            "case": task.case_id, "state": DONE if reason is None else FAILED, "reason": reason,
            "operation": self.operation.name, "parameters": self._parameters, "inputs": inputs, "outputs": outputs,
            "seconds": 0.0, "notes": [], "record": {}, **facts, "itkit": __version__,
        }  # fmt: skip

    def _own_stage(self, run_id: str) -> Stage:
        """The staging folder of this process; making and removing one a case would cost more than many a case."""
        if self._stage is None:
            worker = f"{os.getpid()}-{self._number}" if self._number else f"{os.getpid()}"
            self._stage = Stage(self.operation.roots, f"{run_id}/{socket.gethostname()[:40]}-{worker}")
            self._stage.abandoned = self._abandoned
        return self._stage

    def abandon(self) -> None:
        """Let the case that is worked on here end without a result; called from another thread."""
        self._abandoned = True
        if self._stage is not None:
            self._stage.abandoned = True

    def _inputs(self, task: Task, stage: Stage) -> dict[str, Facts | None]:
        found: dict[str, Facts | None] = {}
        for path in task.inputs:
            facts = measure_input(path)
            if facts is None:
                hash_input(path)  # knows which file is missing, or why it cannot be read
                raise DataError("no such file.", path)
            stage.checksums[path] = hash_input(path)
            found[self.ledger.name(path)] = {**facts, "sha256": stage.checksums[path]}
        return found

    def _require_unchanged(self, task: Task, inputs: dict[str, Facts | None]) -> None:
        for path in task.inputs:
            then, now = inputs[self.ledger.name(path)], measure_input(path)
            if now is None or any(now[key] != then[key] for key in now):
                raise DataError("changed while it was read.", path)

    def _process(self, task: Task, stage: Stage) -> Product:
        with writing_to_stage(), hearing() as heard:
            product = self.operation.process(task, stage)
        notes = (*product.notes, *heard)
        return Product(product.record, notes, product.failure)

    def _publish(self, order: Order, stage: Stage) -> dict[str, Facts]:
        """Move the case's files to their places; refuse to replace what is not this case's."""
        stage.require_wanted()
        files = stage.files()
        self._require_outside_sources(final for _, final in files)
        described = {final: describe_output(staged, stage.checksums.get(staged)) for staged, final in files}
        self._require_free(order, described)
        outputs = {self.ledger.name(final): facts for final, facts in described.items()}
        if not order.claim.holds():
            raise DataError("another run has taken this case over, since this one gave no sign of life.")
        if outputs or order.owned:
            self.ledger.begin(order.task.case_id, outputs)
        moved: list[Path] = []
        try:
            for staged, final in files:
                _move(staged, final)
                moved.append(final)
        except OSError:
            for final in moved:
                final.unlink(missing_ok=True)
            raise
        for name in order.owned.keys() - outputs.keys():
            path = self.ledger.path_of(name)
            if any(compare_output(path, facts) in ("same", "lost") for facts in order.owned[name]):
                path.unlink(missing_ok=True)
        return outputs

    def _require_outside_sources(self, finals: Iterable[Path]) -> None:
        for folder in {os.path.realpath(parent) for parent in {os.path.dirname(final) for final in finals}}:
            for source in self._sources:
                if folder == source or folder.startswith(source + os.sep):
                    raise UsageError(f"{folder}: lies inside the source {source}, where nothing is ever written.")

    def _require_free(self, order: Order, finals: Mapping[Path, Facts | None]) -> None:
        """Refuse to replace what is not this case's, unless it is what would be written anyhow."""
        for final, facts in finals.items():
            if not os.path.lexists(final):
                continue
            own = (compare_output(final, facts) for facts in order.owned.get(self.ledger.name(final), ()))
            if any(state in ("same", "lost") for state in own) or (facts and compare_output(final, facts) == "same"):
                continue
            self.ledger.refresh()
            owner = self.ledger.owner(final)
            if owner not in (None, order.task.case_id) and self._has_inputs(owner):
                raise DataError(f"is there already, made from the case {owner}; rename one of the two.", final)
            if not self.overwrite:
                how = "was written by this tool, and changed since" if owner else "was not written by this tool"
                raise DataError(f"exists and {how}; remove it or use --overwrite.", final)

    def _has_inputs(self, case_id: str) -> bool:
        entry = self.ledger.entry(case_id) or {}
        return any(self.ledger.path_of(name).exists() for name in entry.get("inputs", {}))

    def _left(self, order: Order) -> dict[str, Facts]:
        """The files of an earlier run that are still there although the case failed now: they stay this case's."""
        left = {}
        for name, candidates in order.owned.items():
            for facts in candidates:
                if compare_output(self.ledger.path_of(name), facts) == "same":
                    left[name] = facts
        return left

    @property
    def ledger(self) -> Ledger:
        """The ledger; what it holds is read only when the case needs to know."""
        if self._ledger is None:
            self._ledger = Ledger(self.operation.destination, self.operation.name, read=False)
        return self._ledger


def _move(staged: Path, final: Path) -> None:
    try:
        try:
            os.replace(staged, final)
        except (FileNotFoundError, NotADirectoryError):
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, final)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with replace_when_complete(final) as temporary:  # a folder of the destination lies on another device
            shutil.copy2(staged, temporary)
        times = os.stat(staged)
        with contextlib.suppress(OSError):
            os.utime(final, ns=(times.st_atime_ns, times.st_mtime_ns))


def _os_reason(error: OSError) -> str:
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    advice = " Make room and run it again." if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
    return f"{where}{error.strerror or error}.{advice}"
