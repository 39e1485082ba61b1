"""Run an operation over its cases: skip what is done, stage, publish, record, and never let one case stop the others."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from itkit.errors import DataError, ItkitError, UsageError
from itkit.process.ledger import Ledger
from itkit.process.operation import Ask, Operation, Product, Stage, Task

Progress = Callable[[int, int, str], None]
"""Called with (cases finished, cases in all, name of the last one)."""


@dataclass(frozen=True)
class RunOptions:
    """How an operation is run; none of it changes the results.

    Attributes:
        workers: Processes; 1 works in this one, None plans the number from cores and memory.
        overwrite: Do all cases again and replace what is there.
        dry_run: Only say what would be done.
    """

    workers: int | None = 1
    overwrite: bool = False
    dry_run: bool = False


@dataclass
class RunSummary:
    """What a run did.

    Attributes:
        done: Case ids that were worked on (in a dry run: would be).
        current: Case ids that were up to date.
        failed: Case id -> reason.
        notes: Case id -> what a user should know of a case that is done.
        documents: Files written about the whole run.
        seconds: Wall time.
    """

    done: list[str] = field(default_factory=list)
    current: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    documents: list[Path] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 if every case is done, else 1."""
        return 1 if self.failed else 0


@dataclass(frozen=True)
class _Attempt:
    """What a worker sends back."""

    product: Product | None
    reason: str | None
    seconds: float


def run_operation(
    operation: Operation,
    options: RunOptions | None = None,
    *,
    progress: Progress | None = None,
    ask: Ask = lambda question: False,
) -> tuple[RunSummary, dict[str, dict]]:
    """Do every case of `operation` that is missing, failed, or stale.

    A case's files are written to a staging folder and moved to their places when all of them are complete; what was
    planned is in the ledger before, so that a killed run leaves nothing half and nothing unknown. A file that this
    operation has not written is never replaced unless `options.overwrite` is set.

    Args:
        operation: What to do.
        options: How; None: one process, nothing overwritten.
        progress: Hears of every finished case.
        ask: Puts questions to the user; as it stands every answer is no.

    Returns:
        The summary, and the ledger's entry of every case of this run that was ever tried.

    Raises:
        UsageError: If the destination lies inside the source.
        DataError: If the source is missing or empty, or the destination cannot be written.
    """
    started, options = time.monotonic(), options or RunOptions()
    tasks = list(operation.tasks())
    _require_distinct(tasks)
    ledger, summary = Ledger(operation.destination), RunSummary()
    parameters, todo = operation.parameters(), []
    for task in tasks:
        if not options.overwrite and ledger.is_current(task.case_id, task.inputs, None, parameters):
            summary.current.append(task.case_id)
        else:
            todo.append(task)
    if options.dry_run:
        summary.done = [task.case_id for task in todo]
        return summary, {}
    try:
        for root in operation.roots:
            Path(root).mkdir(parents=True, exist_ok=True)
        for number, (task, attempt) in enumerate(_attempts(operation, todo, ledger, options), 1):
            reason, outputs, stage = attempt.reason, [], _stage(operation, task)
            if reason is None:
                try:
                    outputs = _publish(operation, task, stage, ledger, options, parameters)
                except (DataError, UsageError) as error:
                    reason = str(error)
            _discard(stage)
            product = attempt.product or Product()
            ledger.record(
                task.case_id, task.inputs, outputs, reason, operation=operation.name, parameters=parameters,
                seconds=round(attempt.seconds, 4), record=product.record, notes=list(product.notes),
            )  # fmt: skip
            if reason is None:
                summary.done.append(task.case_id)
                if product.notes:
                    summary.notes[task.case_id] = product.notes
            else:
                summary.failed[task.case_id] = reason
            if progress:
                progress(number, len(todo), task.case_id)
        entries = {task.case_id: ledger.entries[task.case_id] for task in tasks if task.case_id in ledger.entries}
        summary.documents = list(operation.finish(entries, ask))
    except OSError as error:
        raise DataError(f"cannot be written ({error.strerror or error}).", operation.destination) from error
    summary.seconds = time.monotonic() - started
    return summary, entries


def _require_distinct(tasks: Sequence[Task]) -> None:
    seen: set[str] = set()
    for task in tasks:
        if task.case_id in seen:
            raise DataError(f"two files make one case, {task.case_id}; keep one of them.", task.inputs[0])
        seen.add(task.case_id)


def _attempts(
    operation: Operation, tasks: Sequence[Task], ledger: Ledger, options: RunOptions
) -> Iterator[tuple[Task, _Attempt]]:
    free = []
    for task in tasks:
        taken = None if options.overwrite else _taken(ledger, task.outputs)
        if taken:
            yield task, _Attempt(None, taken, 0.0)
        else:
            free.append(task)
    workers = options.workers or os.cpu_count() or 1
    if workers <= 1 or len(free) < 2:
        for task in free:
            yield task, attempt(operation, task)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(free)), mp_context=context) as pool:
        running = {pool.submit(attempt, operation, task): task for task in free}
        for future in as_completed(running):
            error = future.exception()
            yield (
                running[future],
                future.result() if error is None else _Attempt(None, f"the worker died ({error})", 0.0),
            )


def attempt(operation: Operation, task: Task) -> _Attempt:
    """Work on one case; a failure becomes its reason."""
    started = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", UserWarning)
            product = operation.process(task, _stage(operation, task))
    except ItkitError as error:
        return _Attempt(None, str(error), time.perf_counter() - started)
    except Exception as error:  # the border of one case: the others go on
        return _Attempt(None, f"{type(error).__name__}: {error}", time.perf_counter() - started)
    notes = (*product.notes, *(str(warning.message) for warning in heard if warning.category is UserWarning))
    return _Attempt(Product(product.record, notes), None, time.perf_counter() - started)


def _stage(operation: Operation, task: Task) -> Stage:
    return Stage(operation.roots, hashlib.sha256(task.case_id.encode()).hexdigest()[:16])


def _publish(
    operation: Operation, task: Task, stage: Stage, ledger: Ledger, options: RunOptions, parameters: dict
) -> list[Path]:
    """Move the case's files to their places; refuse to replace what is not this operation's."""
    files = stage.files()
    finals = [final for _, final in files]
    for final in finals:
        for source in operation.sources:
            if final.resolve().is_relative_to(source.resolve()):
                raise UsageError(f"{final}: lies inside the source {source}, where nothing is ever written.")
    taken = None if options.overwrite else _taken(ledger, finals)
    if taken:
        raise DataError(taken)
    ledger.begin(task.case_id, task.inputs, finals, operation=operation.name, parameters=parameters)
    for staged, final in files:
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, final)
    return finals


def _taken(ledger: Ledger, outputs: Sequence[Path]) -> str | None:
    for path in outputs:
        if os.path.lexists(path) and not ledger.owns(path):
            return f"{path}: exists and was not written by this run's ledger; remove it or use --overwrite."
    return None


def _discard(stage: Stage) -> None:
    for root in stage.roots:
        shutil.rmtree(stage.folder(root), ignore_errors=True)
        with contextlib.suppress(OSError):
            (root / Stage.FOLDER).rmdir()
