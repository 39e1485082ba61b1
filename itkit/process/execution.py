"""Run an operation over its cases: skip what is done, stage, publish, record, and never let one case stop the others."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itkit._support.files import flush_file_system
from itkit.errors import DataError, ItkitError, UsageError
from itkit.process.agenda import CURRENT, Agenda, Progress, RunSummary, Step, judge
from itkit.process.ledger import FAILED, Entries, Ledger, same_facts
from itkit.process.operation import Ask, Operation, Task
from itkit.process.presence import Claim, Presence

__all__ = ["Progress", "RunOptions", "RunSummary", "Shard", "Step", "run_operation"]
_FINISH = "\0finish"
_POLL_S = 0.2


@dataclass(frozen=True)
class Shard:
    """One part of a run that is divided between machines.

    Attributes:
        number: Which part, from 1.
        count: How many there are.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``"2/8"``.

        Raises:
            UsageError: If it is not of that form, or the part does not exist.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        number, count = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= number <= count:
            raise UsageError(f"--shard {text}: write PART/PARTS with 1 <= PART <= PARTS, e.g. 1/8.")
        return cls(number, count)

    def of(self, tasks: Sequence[Task]) -> list[Task]:
        """Return every `count`-th case, beginning with the `number`-th: what falls to this part."""
        return list(tasks[self.number - 1 :: self.count])


@dataclass(frozen=True)
class RunOptions:
    """How an operation is run; none of it changes the results.

    Attributes:
        workers: Processes; 1 works in this one, None plans the number from cores and memory.
        overwrite: Do all cases again and replace what is there.
        dry_run: Only say what would be done.
        shard: The part of the cases to do; None: all.
        scheduler: Address of a dask.distributed scheduler whose workers do the cases; None: this machine does.
    """

    workers: int | None = 1
    overwrite: bool = False
    dry_run: bool = False
    shard: Shard | None = None
    scheduler: str | None = None


def run_operation(
    operation: Operation,
    options: RunOptions | None = None,
    *,
    progress: Progress | None = None,
    ask: Ask = lambda question: False,
) -> tuple[RunSummary, Mapping[str, dict]]:
    """Do every case of `operation` that is missing, failed, or stale.

    A case's files are written to a staging folder and moved to their places when all of them are complete; what was
    planned is in the ledger before, so that a killed run leaves nothing half and nothing unknown. A file that this
    operation has not written is never replaced unless `options.overwrite` is set. Other runs may work in the same
    destination at the same time, with the same parameters: a case is done by one of them.

    Args:
        operation: What to do.
        options: How; None: one process, nothing overwritten.
        progress: Hears of every finished case.
        ask: Puts questions to the user; as it stands every answer is no.

    Returns:
        The summary, and the ledger's entry of every case that was ever tried (of all shards).

    Raises:
        UsageError: If the destination lies inside the source, is another tool's, or another run works there with other
            parameters.
        DataError: If the source is missing or empty, or the destination cannot be written.
    """
    started, options = time.monotonic(), options or RunOptions()
    several = options.scheduler is None and options.workers != 1
    if several and not options.dry_run:
        from itkit.process.workers import warm_up

        warm_up(operation)
    tasks = list(operation.tasks())
    _require_distinct(tasks)
    mine = options.shard.of(tasks) if options.shard else tasks
    if options.dry_run:
        ledger = Ledger(operation.destination, operation.name)
        agenda = Agenda(operation, mine, ledger, overwrite=options.overwrite)
        summary, summary.done, summary.failed = agenda.summary, agenda.planned, agenda.blocked
        summary.seconds = time.monotonic() - started
        return summary, {}
    try:
        with _present(operation) as presence:
            ledger = Ledger(operation.destination, operation.name)
            after_crash = presence.sweep()
            if not presence.others():
                ledger.compact()
            agenda = Agenda(
                operation, mine, ledger, presence,
                overwrite=options.overwrite, after_crash=after_crash, progress=progress,
            )  # fmt: skip
            agenda.refuse()
            agenda.summary.workers = _work(agenda, options, several)
            entries = _finish(operation, agenda, tasks, options, ask)
            if agenda.summary.done:
                _make_safe(operation, agenda)
            presence.sweep()
    except OSError as error:
        raise DataError(
            f"cannot be written ({error.strerror or error}).", error.filename or operation.destination
        ) from (error)
    agenda.summary.sort([task.case_id for task in mine])
    agenda.summary.gone = len(ledger.entries.keys() - {task.case_id for task in tasks})
    agenda.summary.seconds = time.monotonic() - started
    return agenda.summary, entries


def _require_distinct(tasks: Sequence[Task]) -> None:
    seen: set[str] = set()
    for task in tasks:
        if task.case_id in seen:
            raise DataError(f"two files make one case, {task.case_id}; keep one of them.", task.inputs[0])
        seen.add(task.case_id)


@contextlib.contextmanager
def _present(operation: Operation) -> Iterator[Presence]:
    facts: dict[str, Any] = {"operation": operation.name, "parameters": operation.parameters()}
    for root in (operation.destination, *operation.roots):
        Path(root).mkdir(parents=True, exist_ok=True)
    presence = Presence(Path(operation.destination), [Path(root) for root in operation.roots], facts)
    try:
        for other in presence.others():
            if any(key in other and not same_facts(other[key], value) for key, value in facts.items()):
                raise UsageError(
                    f"{os.fspath(operation.destination)}: process {other.get('pid')} on {other.get('host')} works there "
                    f"with {other.get('operation')} and other parameters. Wait for it, or choose another destination."
                )
        yield presence
    finally:
        presence.close()


def _work(agenda: Agenda, options: RunOptions, several: bool) -> int:
    """Do the cases, here, in worker processes, or on a cluster; return the number of processes."""
    cases = agenda.remaining
    if cases:
        agenda.operation.begin(here=options.scheduler is None and not (several and cases > 1))
    if options.scheduler:
        from itkit.process.cluster import Cluster

        cluster = Cluster(agenda, options.scheduler)
        size = cluster.size
        cluster.run()
        return size
    if several and agenda.remaining > 1:
        from itkit.process.workers import Pool, plan_workers

        workers = min(options.workers or plan_workers(agenda.remaining), agenda.remaining)
        if workers > 1:
            Pool(agenda, workers).run()
            return workers
    at_once = min(agenda.operation.overlapped, cases)
    if at_once > 1:
        from itkit.process.overlapping import Overlap

        Overlap(agenda, at_once).run()
        return 1
    while True:
        while (order := agenda.next()) is not None:
            outcome = agenda.bench.perform(order)
            if outcome.short_of_memory:
                agenda.again_alone(order, str(outcome.reason))
                outcome = agenda.bench.perform(agenda.next_alone())
            agenda.settle(outcome)
        if not agenda.wait():
            return 1


def _finish(
    operation: Operation, agenda: Agenda, tasks: Sequence[Task], options: RunOptions, ask: Ask
) -> Mapping[str, dict]:
    """Let the operation write its documents, one run at a time; of several shards the one that ends last does it."""
    claim = agenda.presence.claim(_FINISH)
    while not isinstance(claim, Claim):
        time.sleep(_POLL_S)
        claim = agenda.presence.claim(_FINISH)
    try:
        agenda.ledger.refresh()
        entries = Entries(agenda.ledger, [t.case_id for t in tasks if agenda.ledger.settled_at(t.case_id)])
        if options.shard:
            agenda.summary.elsewhere = _unsettled(operation, agenda, tasks)
        if not agenda.summary.elsewhere:
            try:
                agenda.summary.documents = list(operation.finish(entries, ask))
            except ItkitError as error:  # the cases are done and must be told all the same
                agenda.summary.problems.append(str(error))
            except OSError as error:
                agenda.summary.problems.append(f"the documents could not be written: {error}")
        return entries
    finally:
        claim.release()


def _make_safe(operation: Operation, agenda: Agenda) -> None:
    """Wait until the results are on the disk, all at once: waiting for each would cost more than many a case does."""
    for root in dict.fromkeys(map(os.fspath, (operation.destination, *operation.roots))):
        try:
            flush_file_system(root)
        except OSError as error:
            agenda.summary.problems.append(
                f"{root}: some results may not have reached the disk ({error.strerror or error})."
            )


def _unsettled(operation: Operation, agenda: Agenda, tasks: Sequence[Task]) -> int:
    """How many cases of other shards are neither done nor failed with these parameters."""
    parameters, own = operation.parameters(), {*agenda.summary.done, *agenda.summary.current, *agenda.summary.failed}
    count = 0
    for task in tasks:
        if task.case_id in own:
            continue
        entry = agenda.ledger.entry(task.case_id) or {}
        failed = entry.get("state") == FAILED and same_facts(entry.get("parameters"), parameters)
        count += not failed and judge(operation, agenda.ledger, task, parameters).state != CURRENT
    return count
