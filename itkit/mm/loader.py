"""A data loader that tells which worker died of what, names the case of an error, and measures how long one waits."""

from __future__ import annotations

import atexit
import contextlib
import copy
import ctypes
import multiprocessing.connection
import os
import pickle
import random
import signal
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from mmengine.dist import get_rank
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from itkit.errors import ItkitError, TrainingError

_IDLE, _LOADING = 0, 1
_SLOT_SIZE = 3
"""Numbers a worker publishes about itself: idle or loading, dataset index, position in the stream (-1: none)."""
_DEATH_S = 5.0
"""How long a process whose connection broke may take to end."""
_CLOSING = -1
"""Behind them all: whether the workers are told to end."""
_SIGNAL_AT_DEATH_OF_PARENT = 1
"""PR_SET_PDEATHSIG of Linux."""

_CGROUP = Path("/sys/fs/cgroup")


class WorkerTraceback(Exception):
    """The traceback of a worker process, shown as the cause of the error that it led to."""

    def __str__(self) -> str:
        return "\n" + self.args[0]


class _Failure:
    """What a worker hands over instead of a batch when something was raised in it."""

    def __init__(self, error: Exception, index: int | None):
        self.index = index
        self.name = type(error).__name__
        self.text = str(error)
        self.trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self.error: Exception | None = error
        if get_worker_info() is not None:
            error.__traceback__ = None
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:  # whatever a foreign exception's pickling raises, its text crosses the border instead
                self.error = None


class _ReportingDataset:
    """Hands on the samples of `dataset`, publishes which one is being loaded, and catches what loading raises."""

    def __init__(self, dataset: Any, slots: Any):
        self.dataset, self.slots = dataset, slots

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # while being unpickled there is nothing to delegate to
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        base = None if worker is None else worker.id * _SLOT_SIZE
        if base is not None:
            self.slots[base : base + _SLOT_SIZE] = [_LOADING, int(index), getattr(index, "position", -1)]
        try:
            return self.dataset[index]
        except Exception as error:  # the border between a worker and the run: everything is handed over
            return _Failure(error, int(index))
        finally:
            if base is not None:
                self.slots[base] = _IDLE


class _GuardedCollate:
    """Makes a batch with `collate`, or hands on the first failure among the samples."""

    def __init__(self, collate: Callable[[list], Any]):
        self.collate = collate

    def __call__(self, samples: Any) -> Any:
        if isinstance(samples, _Failure):
            return samples
        if isinstance(samples, list):
            for sample in samples:
                if isinstance(sample, _Failure):
                    return sample
        try:
            return self.collate(samples)
        except Exception as error:  # the same border as in the dataset
            return _Failure(error, None)


class _WorkerStart:
    """Sets up a worker process: its own seed, one thread, deaf to requests to stop, which the main process answers.

    Batch systems, terminals and torchrun send them to all processes of a run, and the main process may need further batches
    until it stops. A worker obeys SIGTERM when its loader is being closed, and ends with its main process in any case.
    """

    def __init__(self, then: Callable[[int], None] | None, seed: int, slots: Any):
        self.then, self.seed, self.slots = then, seed, slots
        self.main_process = os.getpid()

    def __call__(self, worker_id: int) -> None:
        for name in ("SIGINT", "SIGUSR1"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._end_if_closing)
        end_with_parent()
        torch.set_num_threads(1)
        os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
        if "SimpleITK" in sys.modules:
            sys.modules["SimpleITK"].ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        state = np.random.SeedSequence([self.seed, get_rank(), worker_id]).generate_state(1)[0]
        random.seed(int(state))
        np.random.seed(int(state))
        torch.manual_seed(int(state))
        if self.then is not None:
            self.then(worker_id)

    def _end_if_closing(self, number: int, frame: Any) -> None:
        if self.slots[_CLOSING] or os.getppid() != self.main_process:
            os._exit(128 + number)


def end_with_parent() -> None:
    """Let the system kill this process when the one that started it ends, however that happens (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_SIGNAL_AT_DEATH_OF_PARENT, signal.SIGKILL)


_open_loaders: weakref.WeakSet[GuardedDataLoader] = weakref.WeakSet()


@atexit.register
def _let_workers_end() -> None:
    """Let Python end the workers of loaders that nobody closed."""
    for loader in _open_loaders:
        loader._slots[_CLOSING] = 1


def memory_report() -> str:
    """Return how much memory the machine (and the container, if it is limited) has left, as one sentence."""
    gib, memory = 2**30, psutil.virtual_memory()
    text = f"The machine has {memory.available / gib:.1f} of {memory.total / gib:.1f} GiB memory available"
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return text + "."
    return text + f"; this container uses {used / gib:.1f} of its {limit / gib:.1f} GiB."


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "without a name"


def _signal_remedy(number: int | None) -> str:
    if number == signal.SIGKILL:
        return (
            "A SIGKILL mostly means that the system ran out of memory: lower num_workers, prefetch_factor or the batch "
            "size, or give the container more memory."
        )
    if number == getattr(signal, "SIGBUS", None):
        return "A SIGBUS mostly means that shared memory (/dev/shm) is full: enlarge it or lower num_workers."
    return "Load this case with num_workers=0 to see where it stops."


class GuardedDataLoader:
    """A `torch.utils.data.DataLoader` that never hangs on a dead worker and never hides what went wrong.

    Everything that is not defined here (``dataset``, ``sampler``, ``batch_size``, ``num_workers`` …) is the wrapped
    loader's. Workers persist between iterations, ignore SIGINT, use one thread, and are seeded by (seed, rank, worker
    number) unless the wrapped loader's own ``worker_init_fn`` seeds them again. The random numbers of the main process
    are not touched.

    Args:
        loader: The loader to guard; it is not modified and its workers must not have been started.
        seed: Seed of the workers' global generators. The generators of samples do not depend on it.

    Attributes:
        waited_s: Seconds that the main process waited for the batch that came last.
        total_waited_s: Sum of these since the loader was made.
    """

    def __init__(self, loader: DataLoader, *, seed: int = 0):
        self._source = loader
        self.waited_s = 0.0
        self.total_waited_s = 0.0
        self._iterator: Any = None
        guarded = copy.copy(loader)
        settings: dict[str, Any] = {"_iterator": None, "collate_fn": _GuardedCollate(loader.collate_fn)}
        self._slots = None
        if loader.num_workers > 0:
            empty = [_IDLE, -1, -1] * loader.num_workers
            self._slots = multiprocessing.get_context("spawn").RawArray("q", [*empty, 0])
            settings["persistent_workers"] = True
            settings["worker_init_fn"] = _WorkerStart(loader.worker_init_fn, seed, self._slots)
            _open_loaders.add(self)
        if loader.generator is None:
            settings["generator"] = torch.Generator().manual_seed(seed)
        if not isinstance(loader.dataset, IterableDataset):
            settings["dataset"] = _ReportingDataset(loader.dataset, self._slots)
        vars(guarded).update(settings)  # DataLoader's own __setattr__ refuses `dataset`, also on a copy
        self._guarded = guarded

    def __getattr__(self, name: str) -> Any:
        if name == "_source":  # while being unpickled or copied there is nothing to delegate to
            raise AttributeError(name)
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def take_batches_from(self, batch_sampler: Any) -> None:
        """Let the indices of batches come from `batch_sampler` from now on; before the first iteration only."""
        vars(self._guarded)["batch_sampler"] = batch_sampler

    def __iter__(self) -> Iterator[Any]:
        with self.guarding():
            begin = time.perf_counter()
            iterator = self._iterator = iter(self._guarded)
            while True:
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                if isinstance(batch, _Failure):
                    self._raise(batch)
                self.waited_s = time.perf_counter() - begin
                self.total_waited_s += self.waited_s
                yield batch
                begin = time.perf_counter()

    @contextlib.contextmanager
    def guarding(self) -> Iterator[None]:
        """Turn the error that a dying worker causes anywhere in the block into one that says what happened.

        PyTorch reports the death from a signal handler, so it can surface in the middle of a training step.

        Raises:
            TrainingError: If a worker is dead; it names the worker, the case, the signal and the memory.
        """
        try:
            yield
        except (RuntimeError, ConnectionError, EOFError) as error:  # the latter two: it died while handing a batch over
            if not isinstance(error, RuntimeError):
                self._wait_for_death()
            death = self._describe_death()
            if death is None:
                raise
            self.close()
            raise TrainingError(death) from error

    def close(self) -> None:
        """Stop the workers; the next iteration starts new ones."""
        iterator, self._iterator = self._iterator, None
        vars(self._guarded)["_iterator"] = None
        shut_down = getattr(iterator, "_shutdown_workers", None)
        if shut_down is not None:
            self._slots[_CLOSING] = 1
            shut_down()
            self._slots[_CLOSING] = 0

    def case_name(self, index: int) -> str:
        """Return how the dataset calls sample `index`: its case id where it can say one, else the index."""
        dataset = self._source.dataset
        for method in ("case_name", "get_data_info"):
            ask = getattr(dataset, method, None)
            if ask is None:
                continue
            try:
                answer = ask(index)
            except Exception:  # a name for a message: a dataset that cannot give one must not hide the message
                continue
            answer = answer.get("case_id", answer.get("img_path")) if isinstance(answer, dict) else answer
            if answer:
                return f"{answer} (index {index})"
        return f"index {index}"

    def _wait_for_death(self) -> None:
        """Wait until a worker whose connection broke is seen to be dead."""
        workers = {process.sentinel: process for process in getattr(self._iterator, "_workers", ())}
        for sentinel in multiprocessing.connection.wait(workers, timeout=_DEATH_S) if workers else ():
            workers[sentinel].join(_DEATH_S)  # its files are closed a moment before it can be waited for

    def _describe_death(self) -> str | None:
        """Return what happened to the first dead worker, or None if none is dead."""
        for worker_id, process in enumerate(getattr(self._iterator, "_workers", ())):
            process.join(timeout=0)
            code = process.exitcode
            if code is None:
                continue
            number = -code if code < 0 else None
            how = f"exit code {code}" if number is None else f"signal {number} ({_signal_name(number)})"
            state, index, _ = self._slots[worker_id * _SLOT_SIZE : (worker_id + 1) * _SLOT_SIZE]
            if state == _LOADING:
                doing = f"while loading case {self.case_name(index)}"
            else:
                doing = "between two cases" if index >= 0 else "before its first case"
            return (
                f"data loader worker {worker_id} of {self.num_workers} (pid {process.pid}) died of {how} {doing}. "
                f"{memory_report()} {_signal_remedy(number)}"
            )
        return None

    def _raise(self, failure: _Failure) -> None:
        """Raise the failure of a worker (or of loading in this process) with its case named."""
        self.close()
        case = "a batch" if failure.index is None else f"case {self.case_name(failure.index)}"
        cause = WorkerTraceback(failure.trace) if self.num_workers else failure.error
        error = failure.error
        if isinstance(error, ItkitError):
            known = "" if failure.index is None else self.case_name(failure.index).partition(" (index")[0]
            if known not in str(error):
                error.args = (f"{error} ({case})", *error.args[1:])
            raise error from (cause if cause is not error else error.__cause__)
        memory = f" {memory_report()}" if failure.name == "MemoryError" else ""
        raise TrainingError(f"loading {case} failed: {failure.name}: {failure.text}{memory}") from cause


def guard_loader(loader: Any, *, seed: int = 0) -> GuardedDataLoader:
    """Return `loader` guarded; one that is guarded already comes back as it is."""
    return loader if isinstance(loader, GuardedDataLoader) else GuardedDataLoader(loader, seed=seed)
