"""The same cases on the workers of a dask.distributed cluster, which see the same folders."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import secrets
import threading
from collections.abc import Iterator
from typing import Any

from itkit._support.optional import require
from itkit.errors import UsageError
from itkit.process.agenda import Agenda
from itkit.process.publication import Order, Outcome, Workbench

_CONNECT_S = 20
_IN_RESERVE = 2
_LISTEN_S = 0.5
_one_case = threading.Lock()


class Cluster:
    """Works through an agenda on a cluster.

    Each case is claimed here and done there, in one worker process at a time one. If a worker dies, dask gives its cases
    to others; a case that was recorded already is not done again, and what a worker that was only thought dead still does
    is not published.

    Args:
        agenda: The cases.
        address: Of the scheduler, e.g. ``"tcp://node1:8786"``.

    Raises:
        MissingDependency: If dask.distributed is not installed.
        UsageError: If no scheduler answers.
    """

    def __init__(self, agenda: Agenda, address: str):
        self._agenda, self._finished = agenda, queue.SimpleQueue()
        distributed = require("distributed", extra="dask", purpose="--scheduler")
        try:
            self._client = distributed.Client(address, timeout=_CONNECT_S, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise UsageError(f"no dask scheduler answers at {address!r} ({error}).") from error

    @property
    def size(self) -> int:
        """Worker processes that the cluster has now."""
        return len(self._client.ncores())

    def run(self) -> None:
        """Do all cases."""
        agenda, orders = self._agenda, {}
        agenda.largest_first()
        try:
            while True:
                room = _IN_RESERVE * max(self.size, 1) - len(orders)
                while room > 0 and (order := agenda.next()) is not None:
                    orders[self._submit(order)] = order
                    room -= 1
                if orders:
                    self._listen(orders)
                elif (order := agenda.next_alone()) is not None:
                    orders[self._submit(order)] = order
                elif not agenda.wait():
                    return
        finally:
            with contextlib.suppress(Exception):  # whatever the cluster says now, this run is over
                self._client.cancel(list(orders), force=True)
            self._client.close()

    def _submit(self, order: Order) -> Any:
        key = f"itkit-{secrets.token_hex(8)}"
        future = self._client.submit(perform, self._agenda.bench, order, os.getcwd(), key=key, pure=False)
        future.add_done_callback(self._finished.put)
        return future

    def _listen(self, orders: dict[Any, Order]) -> None:
        with contextlib.suppress(queue.Empty):
            future = self._finished.get(timeout=_LISTEN_S)
            order = orders.pop(future)
            error = future.exception()
            if error is not None:
                self._agenda.lost(order, f"the cluster could not do it ({type(error).__name__}: {error})")
            elif (outcome := future.result()) is None:
                self._agenda.lost(order, "the case was given to two workers, and neither has recorded it")
            elif outcome.short_of_memory:
                self._agenda.again_alone(order, str(outcome.reason))
            else:
                self._agenda.settle(outcome)


def perform(bench: Workbench, order: Order, folder: str) -> Outcome | None:
    """Do one case in a worker of the cluster; None if another attempt has recorded it already.

    Args:
        bench: Does the work.
        order: The case.
        folder: To which relative paths are relative.
    """
    with _one_case, _inside(folder):
        if not order.claim.path.exists():
            return None
        return bench.perform(dataclasses.replace(order, claim=order.claim.renewed()))


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    before = os.getcwd()
    with contextlib.suppress(OSError):  # not there on this machine: absolute paths do without it
        os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
