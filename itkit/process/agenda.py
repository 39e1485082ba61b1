"""What a run has to do and has done: which cases and why, in which order, what other runs do meanwhile, what came of it."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from itkit.errors import DataError
from itkit.process.contents import compare_output, is_same_input, measure_input
from itkit.process.ledger import DONE, FAILED, Ledger, same_facts
from itkit.process.operation import Operation, Task
from itkit.process.presence import Claim, Presence
from itkit.process.publication import Order, Outcome, Workbench

CURRENT, TODO, REFUSED = "current", "to do", "refused"
_POLL_S = 0.2
_WEIGHT_OF_A_CASE = 1 << 16


@dataclass(frozen=True)
class Step:
    """One case finished, for whoever shows progress.

    Attributes:
        case_id: The case.
        reason: Why it failed; None if it is done.
        number: Cases finished by this run, this one included.
        total: Cases to do.
        share: Part of the work that is behind, by the size of the inputs; 0 to 1.
    """

    case_id: str
    reason: str | None
    number: int
    total: int
    share: float


Progress = Callable[[Step], None]


@dataclass(frozen=True)
class Verdict:
    """What the ledger says about a case before it is worked on.

    Attributes:
        state: `CURRENT`, `TODO` or `REFUSED`.
        why: What is missing, failed, changed or in the way; empty for a current case.
    """

    state: str
    why: str = ""


def judge(operation: Operation, ledger: Ledger, task: Task, parameters: dict, *, overwrite: bool = False) -> Verdict:
    """Say whether a case is up to date, has to be done (and why), or must not be touched."""
    if overwrite:
        return Verdict(TODO, "all cases are done again (--overwrite)")
    entry = ledger.entry(task.case_id)
    if entry is None and ledger.begun(task.case_id) is None:
        return Verdict(TODO, "not done yet")
    if ledger.begun(task.case_id) is not None:
        return Verdict(TODO, "an earlier run was stopped while it moved the results")
    if entry["state"] == FAILED:
        return Verdict(TODO, f"failed before: {entry['reason']}")
    changed = _changed_input(ledger, task, entry)
    if changed is not None:
        return changed
    then = entry.get("parameters") or {}
    if not same_facts(then, parameters):
        keys = [key for key in {**then, **parameters} if then.get(key) != parameters.get(key)]
        return Verdict(TODO, "; ".join(f"{key} was {then.get(key)!r}, is {parameters.get(key)!r}" for key in keys))
    states = {name: compare_output(ledger.path_of(name), facts) for name, facts in entry["outputs"].items()}
    changes = [name for name, state in states.items() if state == "changed"]
    if changes:
        return Verdict(
            REFUSED,
            f"{ledger.path_of(changes[0])}: was changed since it was written. Keep it elsewhere and remove it here, or use "
            "--overwrite.",
        )
    for state, what in (
        ("missing", "is gone"),
        ("lost", "is not whole: the machine stopped before it was on the disk"),
    ):
        names = [name for name, found in states.items() if found == state]
        if names:
            return Verdict(TODO, f"the result {names[0]} {what}")
    moved = [name for name in map(ledger.name, task.outputs) if name not in entry["outputs"]]
    if moved:
        return Verdict(TODO, f"the result {moved[0]} was not made then")
    return Verdict(CURRENT)


def _changed_input(ledger: Ledger, task: Task, entry: dict) -> Verdict | None:
    """What the inputs of a case say against its entry; None if they are the ones it was done with."""
    then, now = entry["inputs"], [ledger.name(path) for path in task.inputs]
    try:
        if set(then) == set(now):
            changed = [path for path, name in zip(task.inputs, now, strict=True) if not is_same_input(path, then[name])]
            return Verdict(TODO, f"the input {changed[0]} has changed") if changed else None
        pairs = zip(task.inputs, then.values(), strict=False)
        if len(then) == len(now) and all(is_same_input(path, facts) for path, facts in pairs):
            return None  # the source was moved
    except DataError as error:
        return Verdict(TODO, f"the input cannot be read: {error}")
    others = [name for name in then if name not in now and ledger.path_of(name).exists()]
    if others and not set(then) & set(now):
        return Verdict(
            REFUSED,
            f"{task.inputs[0]}: the destination holds the results of another case of this name, {others[0]}. Choose another "
            "destination, or use --overwrite.",
        )
    return Verdict(TODO, "it consists of other files than before")


@dataclass
class RunSummary:
    """What a run did.

    Attributes:
        done: Case ids that were worked on (in a dry run: would be).
        current: Case ids that were up to date, or that another run did meanwhile.
        failed: Case id -> reason.
        notes: Case id -> what a user should know of a case that is done.
        why: Case id -> why it is (or would be) done.
        documents: Files written about the whole run.
        problems: What went wrong besides the cases.
        elsewhere: Cases that other shards have still to do; the documents are written by the one that ends last.
        gone: Cases of the ledger that the source does not have any more.
        workers: Processes that worked.
        seconds: Wall time.
    """

    done: list[str] = field(default_factory=list)
    current: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    documents: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    elsewhere: int = 0
    gone: int = 0
    workers: int = 1
    seconds: float = 0.0

    def sort(self, case_ids: Sequence[str]) -> None:
        """Put everything in the order of `case_ids`, which does not depend on who was quicker."""
        rank = {case_id: number for number, case_id in enumerate(case_ids)}
        for names in (self.done, self.current):
            names.sort(key=rank.__getitem__)
        for facts in (self.failed, self.notes, self.why):
            ordered = sorted(facts.items(), key=lambda item: rank[item[0]])
            facts.clear()
            facts.update(ordered)

    @property
    def exit_code(self) -> int:
        """0 if every case is done, else 1."""
        return 1 if self.failed or self.problems else 0


class Agenda:
    """The cases of one run: hands out one after the other, claimed, and takes what came of each.

    Args:
        operation: What is done.
        tasks: The cases of this run (of this shard).
        ledger: The destination's ledger.
        presence: This run in the destination; None for a dry run.
        overwrite: Do all cases again.
        after_crash: A run has died in the destination.
        progress: Hears of every finished case.
    """

    def __init__(
        self, operation: Operation, tasks: Sequence[Task], ledger: Ledger, presence: Presence | None = None, *,
        overwrite: bool = False, after_crash: bool = False, progress: Progress | None = None,
    ):  # fmt: skip
        self.operation, self.ledger, self.presence, self.progress = operation, ledger, presence, progress
        self.after_crash = after_crash
        self.bench, self.summary = Workbench(operation, overwrite), RunSummary()
        self._parameters, self._overwrite = operation.parameters(), overwrite
        self._weights: dict[str, int] = {}
        self._settled_at: dict[str, float] = {}
        self._finished_weight, self._settled = 0, 0
        self._crashes: dict[str, str] = {}
        self._todo: deque[Task] = deque()
        self._deferred: deque[Task] = deque()
        self._alone: deque[Order] = deque()
        self._blocked: list[tuple[Task, str, bool]] = []
        self._plan(tasks)
        self.total = len(self._todo) + len(self._blocked)
        self._total_weight = sum(self._weights.values()) or 1

    def _plan(self, tasks: Sequence[Task]) -> None:
        makers: dict[Path, str] = {}
        for task in tasks:
            for output in task.outputs:
                makers.setdefault(output, task.case_id)
        shared = {makers[o]: t.case_id for t in tasks for o in t.outputs if makers[o] != t.case_id}
        shared |= {other: first for first, other in shared.items()}
        for task in tasks:
            verdict = judge(self.operation, self.ledger, task, self._parameters, overwrite=self._overwrite)
            if verdict.state == CURRENT:
                self.summary.current.append(task.case_id)
                continue
            self.summary.why[task.case_id] = verdict.why
            self._settled_at[task.case_id] = self.ledger.settled_at(task.case_id)
            self._weights[task.case_id] = _weight(task)
            if task.case_id in shared:
                reason = f"it and {shared[task.case_id]} would become the same file; rename one."
                self._blocked.append((task, reason, True))
            elif verdict.state == REFUSED:
                self._blocked.append((task, verdict.why, False))  # the entry of what was done stays
            else:
                self._todo.append(task)

    @property
    def planned(self) -> list[str]:
        """Case ids that are left to do."""
        return [task.case_id for task in self._todo]

    @property
    def blocked(self) -> dict[str, str]:
        """Case id -> why it must not be done."""
        return {task.case_id: reason for task, reason, _ in self._blocked}

    @property
    def remaining(self) -> int:
        """How many cases have not been handed out yet, as far as they are free."""
        return len(self._todo)

    def largest_first(self) -> None:
        """Hand out large cases first, so that no worker is left alone with one at the end."""
        self._todo = deque(sorted(self._todo, key=lambda task: -self._weights[task.case_id]))

    def refuse(self) -> None:
        """Settle the cases that must not be done."""
        for task, reason, noted in self._blocked:
            if noted:
                self._note_failure(task, reason)
            self.settle(Outcome(task.case_id, reason))

    def next(self) -> Order | None:
        """Claim and return the next case; None if no free one is left now (see `wait`)."""
        while self._todo:
            order = self._claimed(self._todo.popleft())
            if order is not None:
                return order
        return None

    def next_alone(self) -> Order | None:
        """Return the next case that must have all memory for itself."""
        return self._alone.popleft() if self._alone else None

    def wait(self) -> bool:
        """Wait a moment for cases that other runs are working on; False if there are none."""
        if not self._deferred:
            return False
        time.sleep(_POLL_S)
        self._todo, self._deferred = self._deferred, deque()
        return True

    def _claimed(self, task: Task) -> Order | None:
        claim = self.presence.claim(task.case_id)
        if not isinstance(claim, Claim):
            self._deferred.append(task)
            return None
        self.ledger.refresh()
        if self.ledger.settled_at(task.case_id) != self._settled_at[task.case_id]:
            claim.release()
            self._take_from_ledger(task.case_id)
            return None
        return self._order(task, claim)

    def _order(self, task: Task, claim: Claim, *, alone: bool = False) -> Order:
        return Order(task, claim, self.ledger.owned(task.case_id), self.after_crash, alone)

    def settle(self, outcome: Outcome) -> None:
        """Take what came of a case."""
        case_id = outcome.case_id
        self._settled += 1
        self._finished_weight += self._weights[case_id]
        if outcome.reason is None:
            self.summary.done.append(case_id)
            again = (f"{self._crashes[case_id]}; then done alone",) if case_id in self._crashes else ()
            if outcome.notes or again:
                self.summary.notes[case_id] = (*outcome.notes, *again)
        else:
            self.summary.failed[case_id] = outcome.reason
        self._report(case_id, outcome.reason)

    def crashed(self, order: Order, how: str) -> None:
        """Take notice that the process that worked on a case is dead: once more, alone, or failed."""
        self.ledger.refresh()
        case_id = order.task.case_id
        if self.ledger.settled_at(case_id) != self._settled_at[case_id]:  # it died after its work
            self._settle_from_ledger(case_id)
        elif order.alone:
            reason = f"{how}, also with no other case beside it"
            self._note_failure(order.task, reason)
            self.settle(Outcome(case_id, reason))
        else:
            self.again_alone(order, how)

    def again_alone(self, order: Order, how: str) -> None:
        """Put a case aside until no other case is being worked on.

        Args:
            order: The case.
            how: What happened to it.
        """
        self._crashes[order.task.case_id] = how.rstrip(".")
        claim = order.claim.renewed()
        self._alone.append(self._order(order.task, claim, alone=True))

    def lost(self, order: Order, reason: str) -> None:
        """Give up a case whose worker cannot be had back."""
        self.ledger.refresh()
        if self.ledger.settled_at(order.task.case_id) != self._settled_at[order.task.case_id]:
            self._settle_from_ledger(order.task.case_id)
            return
        self._note_failure(order.task, reason)
        self.settle(Outcome(order.task.case_id, reason))

    def give_back(self, order: Order) -> None:
        """Take back a case that nobody has begun."""
        order.claim.release()
        self._todo.appendleft(order.task)

    def _settle_from_ledger(self, case_id: str) -> None:
        entry = self.ledger.entry(case_id)
        self.settle(Outcome(case_id, entry["reason"], tuple(entry.get("notes", ())), entry.get("seconds", 0.0)))

    def _take_from_ledger(self, case_id: str) -> None:
        """Another run has settled the case since this one made its plan."""
        entry = self.ledger.entry(case_id)
        self._settled += 1
        self._finished_weight += self._weights[case_id]
        if entry["state"] == DONE:
            self.summary.current.append(case_id)
        else:
            self.summary.failed[case_id] = entry["reason"]
        self._report(case_id, entry["reason"])

    def _report(self, case_id: str, reason: str | None) -> None:
        if self.progress:
            share = self._finished_weight / self._total_weight
            self.progress(Step(case_id, reason, self._settled, self.total, min(share, 1.0)))

    def _note_failure(self, task: Task, reason: str) -> None:
        entry = self.ledger.entry(task.case_id) or {}
        with contextlib.suppress(OSError):  # a full disk: it is told all the same
            self.ledger.append(self.bench.entry(task, entry.get("inputs", {}), entry.get("outputs", {}), reason))


def _weight(task: Task) -> int:
    return _WEIGHT_OF_A_CASE + sum((measure_input(path) or {"size": 0})["size"] for path in task.inputs)
