"""Worker processes on this machine: quick to start, one core each, within the memory, and expendable."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import pickle
import signal
import sys
import time
import types
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import connection

from itkit._support.resources import memory_kills, resident_bytes, usable_cores, usable_memory_bytes
from itkit._support.threads import ONE_THREAD, one_thread
from itkit.errors import ItkitError
from itkit.io.claims import MAX_DEFLATE_RATIO
from itkit.io.headers import volume_suffix
from itkit.process.agenda import Agenda
from itkit.process.operation import Operation, Task
from itkit.process.publication import Order, Outcome, Workbench

WORKER_BYTES = 150 << 20
"""What a worker takes before it works."""
MEMORY_SHARE = 0.8
"""Part of the usable memory that cases may take together."""
_CHUNK_S, _CHUNK_CASES = 0.2, 64
_RESERVE_BYTES = 1 << 16
"""What a pipe certainly holds although nobody reads it."""
_RETIRE_BYTES = 1 << 30


def plan_workers(cases: int) -> int:
    """Return how many workers the cores and the memory of this machine carry; what cases need is minded as they run."""
    return max(1, min(usable_cores(), cases, int(MEMORY_SHARE * usable_memory_bytes() / 2 / WORKER_BYTES)))


@dataclass
class _Worker:
    """One process, and the orders it has, the one it works on first."""

    process: multiprocessing.process.BaseProcess
    pipe: connection.Connection
    orders: deque[Order] = field(default_factory=deque)
    needs: dict[str, int] = field(default_factory=dict)
    first_bytes: int = 0
    retiring: bool = False


class Pool:
    """Works through an agenda in several processes.

    A worker gets small cases in chunks and always has one chunk in reserve. The estimates of what is worked on at the
    same time fit into the memory; a case that alone does not fit is worked on alone. If a worker dies, the case it worked
    on is done once more when nothing else runs; its other cases go to other workers.

    Args:
        agenda: The cases.
        workers: Number of processes.
    """

    def __init__(self, agenda: Agenda, workers: int):
        self._agenda, self._operation = agenda, agenda.operation
        self._size, self._workers = workers, []
        self._room_bytes = int(MEMORY_SHARE * max(usable_memory_bytes() - workers * WORKER_BYTES, 0))
        self._pending: deque[Order] = deque()
        self._seconds, self._cases, self._kills = 0.0, 0, memory_kills()
        self._context = multiprocessing.get_context("forkserver")

    def run(self) -> None:
        """Do all cases."""
        self._agenda.largest_first()
        try:
            while True:
                self._feed()
                if any(worker.orders for worker in self._workers):
                    self._listen()
                elif not self._one_alone() and not self._agenda.wait():
                    return
        finally:
            self._close()

    def _feed(self) -> None:
        for round_ in (1, 2):  # first a chunk for each, then a reserve for each
            for number in range(self._size):
                if number >= len(self._workers):
                    if self._peek() is None:
                        return
                    self._workers.append(start_worker(self._context, self._agenda.bench))
                worker = self._workers[number]
                if not worker.retiring and len(worker.orders) <= (round_ - 1) * self._chunk():
                    self._give(worker, self._chunk())

    def _chunk(self) -> int:
        mean_s = self._seconds / self._cases if self._cases else _CHUNK_S
        share = self._agenda.remaining // (4 * self._size)
        return max(1, min(int(_CHUNK_S / max(mean_s, 1e-6)), share, _CHUNK_CASES))

    def _give(self, worker: _Worker, count: int) -> None:
        orders: list[Order] = []
        while len(orders) < count:
            order = self._peek()
            if order is None:
                break
            needed = self._needed(order.task)
            others = sum(max(w.needs.values(), default=0) for w in self._workers if w is not worker)
            here = max([needed, *worker.needs.values()])
            if others + here > self._room_bytes and (others or worker.orders or orders):
                break
            self._pending.popleft()
            worker.needs[order.task.case_id] = needed
            orders.append(order)
        if orders:
            self._send(worker, orders)

    def _send(self, worker: _Worker, orders: list[Order]) -> None:
        words = pickle.dumps(orders)
        if len(words) > _RESERVE_BYTES and worker.orders:
            # It might wait for us to listen while we wait for it: such a parcel waits until it has nothing else to do.
            self._pending.extendleft(reversed(orders))
            for order in orders:
                del worker.needs[order.task.case_id]
            return
        worker.orders += orders
        with contextlib.suppress(OSError):  # it is dead: that is noticed where it is listened to
            worker.pipe.send_bytes(words)

    def _peek(self) -> Order | None:
        if not self._pending:
            order = self._agenda.next()
            if order is None:
                return None
            self._pending.append(order)
        return self._pending[0]

    def _needed(self, task: Task) -> int:
        try:
            if type(self._operation).memory_bytes is Operation.memory_bytes:
                most = _most_bytes(task)
                if most is not None and most * self._size <= self._room_bytes:
                    return most  # however well it is compressed: its header need not be read here
            return self._operation.memory_bytes(task)
        except (ItkitError, OSError):
            return 0  # whatever is wrong with it, the work on it will say

    def _listen(self) -> None:
        busy = {worker.pipe: worker for worker in self._workers}
        for pipe in connection.wait(list(busy)):
            worker = busy[pipe]
            try:
                outcome, resident = pipe.recv()
            except (EOFError, OSError):
                self._bury(worker)
                continue
            self._take(worker, outcome, resident)

    def _take(self, worker: _Worker, outcome: Outcome, resident: int) -> None:
        order = worker.orders.popleft()
        del worker.needs[order.task.case_id]
        self._seconds, self._cases = self._seconds + outcome.seconds, self._cases + 1
        if outcome.short_of_memory:
            self._agenda.again_alone(order, str(outcome.reason))
        else:
            self._agenda.settle(outcome)
        worker.first_bytes = worker.first_bytes or resident
        if resident > worker.first_bytes + _RETIRE_BYTES + 2 * max(worker.needs.values(), default=0):
            worker.retiring = True
        if worker.retiring and not worker.orders:
            self._workers.remove(worker)
            stop_worker(worker)

    def _bury(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.join()
        if worker.orders:
            self._agenda.crashed(worker.orders.popleft(), self._how_it_died(worker.process.exitcode))
        for order in reversed(worker.orders):
            self._agenda.give_back(order)

    def _how_it_died(self, code: int | None) -> str:
        if code is None or code >= 0:
            return f"the worker process ended with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
        how = f"the worker process was killed by signal {-code} ({name})"
        if -code == signal.SIGKILL:
            certain = memory_kills() > self._kills
            how += ", " + ("" if certain else "probably ") + "for want of memory (out of memory)"
        return how

    def _one_alone(self) -> bool:
        order = self._agenda.next_alone()
        if order is None:
            return False
        for worker in self._workers:
            stop_worker(worker)
        self._workers.clear()
        self._kills = memory_kills()
        worker = start_worker(self._context, self._agenda.bench)
        self._workers.append(worker)
        worker.orders.append(order)
        worker.needs[order.task.case_id] = 0
        worker.pipe.send_bytes(pickle.dumps([order]))
        while worker.orders:
            self._listen()
        return True

    def _close(self) -> None:
        for worker in self._workers:
            if worker.orders:
                worker.process.terminate()
            else:
                worker.pipe.close()
        deadline = time.monotonic() + 2.0
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()


def _most_bytes(task: Task) -> int | None:
    """What a case can take at most by the general estimate, from the sizes of its files alone; None if they do not say."""
    stored = 0
    for path in task.inputs:
        if volume_suffix(path) not in (".mha", ".nii", ".nii.gz", ".nrrd"):
            return None  # its voxels are in another file
        stored += os.stat(path).st_size
    return 12 * MAX_DEFLATE_RATIO * stored  # three copies of four bytes a voxel, one byte a voxel in the file


def warm_up(operation: Operation) -> None:
    """Start the process that workers are forked from; it imports what they need while the run is planned."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, type(operation).__module__, *operation.preload])
    with one_thread():
        from multiprocessing import forkserver

        forkserver.ensure_running()


def start_worker(context, bench: Workbench) -> _Worker:
    """Start one worker."""
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, bench), daemon=True)
    with one_thread(), _without_main(bench):
        process.start()
    theirs.close()
    return _Worker(process, ours)


def stop_worker(worker: _Worker) -> None:
    """End a worker that has nothing to do."""
    worker.pipe.close()
    worker.process.join(2.0)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()


@contextlib.contextmanager
def _without_main(bench: Workbench) -> Iterator[None]:
    """Spare a worker the import of the main script, unless the operation lives there."""
    if b"__main__" in pickle.dumps(bench):
        yield
        return
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(pipe: connection.Connection, bench: Workbench) -> None:
    """The life of a worker: take orders, send outcomes, end when nobody listens any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(ONE_THREAD)
    _die_with_the_main_process()
    try:
        while True:
            orders = pickle.loads(pipe.recv_bytes())
            for order in orders:
                outcome = bench.perform(order)
                pipe.send((outcome, resident_bytes() if order is orders[-1] else 0))
    except (EOFError, OSError):
        return


def _die_with_the_main_process() -> None:
    """Let the kernel end this process (SIGIO) when the main process is gone, also in the middle of a long call."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    if connection.wait([parent.sentinel], 0):
        os._exit(1)  # it went before we could say so
