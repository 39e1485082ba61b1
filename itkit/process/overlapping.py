"""Several consecutive cases at once in one process, so that one is read and another written while a third is worked on."""

from __future__ import annotations

import contextlib
import queue
import threading

from itkit.process.agenda import Agenda
from itkit.process.operation import Abandoned
from itkit.process.publication import Order, Outcome, Workbench

_PATIENCE_S = 10.0


class Overlap:
    """Works through an agenda with a few threads, each of which does whole cases.

    The operation itself lets only one case at a time do what must not be done twice at once (see `Operation.overlapped`).
    Cases are begun in their order. A case that was short of memory is done again when nothing else is.

    Args:
        agenda: The cases.
        cases: How many are worked on at a time.
    """

    def __init__(self, agenda: Agenda, cases: int):
        self._agenda, self._cases = agenda, cases
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[tuple[Order, Outcome | BaseException]] = queue.SimpleQueue()
        bench = agenda.bench
        self._benches = [Workbench(bench.operation, bench.overwrite, number=number) for number in range(1, cases + 1)]

    def run(self) -> None:
        """Do all cases."""
        threads = [threading.Thread(target=self._work, args=(bench,), daemon=True) for bench in self._benches]
        for thread in threads:
            thread.start()
        try:
            self._run()
        except BaseException:
            for bench in self._benches:
                bench.abandon()
            raise
        finally:
            for _ in threads:
                self._orders.put(None)
            for thread in threads:  # after an interruption: what is under way ends at its next step
                thread.join(_PATIENCE_S)

    def _run(self) -> None:
        under_way = 0
        while True:
            while under_way < self._cases and (order := self._agenda.next()) is not None:
                self._orders.put(order)
                under_way += 1
            if under_way:
                order, outcome = self._outcomes.get()
                under_way -= 1
                if isinstance(outcome, BaseException):
                    raise outcome
                if outcome.short_of_memory:
                    self._agenda.again_alone(order, str(outcome.reason))
                else:
                    self._agenda.settle(outcome)
            elif (alone := self._agenda.next_alone()) is not None:
                self._agenda.settle(self._agenda.bench.perform(alone))
            elif not self._agenda.wait():
                return

    def _work(self, bench: Workbench) -> None:
        while (order := self._orders.get()) is not None:
            with contextlib.suppress(Abandoned):
                try:
                    self._outcomes.put((order, bench.perform(order)))
                except Abandoned:
                    raise
                except BaseException as error:  # it must reach the main thread, whatever it is
                    self._outcomes.put((order, error))
