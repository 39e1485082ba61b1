"""Join the processes that a launcher started, and let them answer a question once or together."""

from __future__ import annotations

import os
import pickle
import time
import traceback
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from itkit.errors import ConfigError, LostContact, TrainingError
from itkit.mm.board import Board
from itkit.mm.stopping import BEAT_S

T = TypeVar("T")

TIMEOUT_S = 1800.0
"""How long a collective operation waits for the other processes, unless ``--dist-timeout`` says otherwise."""
_BOARD_TIMEOUT_S = 30.0
_ASK_S = 0.02


class OtherTraceback(Exception):
    """The traceback of another process, shown as the cause of the error that it led to."""

    def __str__(self) -> str:
        return "\n" + self.args[0]


def join(timeout_s: float | None = None, start: int = 0) -> Board | None:
    """Join the process group that the environment describes, and return the board of its processes.

    On GPUs it speaks NCCL, on machines without one gloo. MMEngine, which would ask for a GPU even where there is none, then
    finds the group ready.

    Args:
        timeout_s: How long a collective operation waits for the others; None: `TIMEOUT_S`.
        start: How often the processes started anew under the same launcher; each start has a place of its own in the store.

    Returns:
        None if there is only one process.

    Raises:
        ConfigError: If there are more processes on this machine than GPUs.
        LostContact: If the others do not come in time.
    """
    world, backend = int(os.environ["WORLD_SIZE"]), "gloo"
    if torch.cuda.is_available():
        local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        here = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
        if here > gpus:
            raise ConfigError(
                f"{here} processes were started on a machine with {gpus} GPU(s). Start one per GPU, or train on the CPU: "
                "CUDA_VISIBLE_DEVICES= mmrun ..."
            )
        torch.cuda.set_device(local)
        backend = "nccl"
    timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
    end = time.monotonic() + timeout_s
    while True:
        try:
            return _join(backend, world, timedelta(seconds=timeout_s), start)
        except (RuntimeError, ValueError) as error:
            # After a fresh start the process that holds the store may still be the one of before.
            if start == 0 or time.monotonic() > end:
                raise LostContact(f"the {world} processes did not find each other: {_first_line(error)}") from error
            if dist.is_initialized():
                dist.destroy_process_group()
            time.sleep(0.5)


def _join(backend: str, world: int, timeout: timedelta, start: int) -> Board | None:
    rank = int(os.environ["RANK"])
    store, rank, world = next(iter(rendezvous("env://", rank, world, timeout=timeout)))
    place = f"itkit/{start}"
    if (
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    ):  # it lives in torchrun's agent, and outlives its processes
        place = f"itkit/{agree_on_place(store, rank, world, timeout)}"
    own = dist.PrefixStore(place, store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=timeout)
    if world == 1:
        return None
    return Board(dist.PrefixStore(f"{place}/board", _second_connection(store)), rank, world)


def agree_on_place(store: Any, rank: int, world: int, timeout: timedelta) -> str:
    """Return a name that all processes of this start have in common, and none of an earlier start.

    A store that outlives its processes holds what those before a restart wrote. The number of restarts does not tell them
    apart: the agents of two machines count differently, each only the deaths on its own. So each process asks under a name of
    its own, which nobody had before, and the first process answers those that ask until all of this start have heard it.

    Args:
        store: Shared by the processes; what earlier starts wrote may be in it.
        rank: Number of this process.
        world: Number of processes.
        timeout: How long to wait for the others.

    Raises:
        LostContact: If they do not come in time.
    """
    own, end = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    others = range(1, world) if rank == 0 else ()
    awaited = [f"itkit/heard/{own}/{other}" for other in others] or [f"itkit/answer/{own}"]
    store.set(f"itkit/asks/{rank}", own)
    if world == 1:
        return own
    while not store.check(awaited):
        for other in others:
            if store.check([f"itkit/asks/{other}"]):
                store.set(f"itkit/answer/{store.get(f'itkit/asks/{other}').decode()}", own)
        if time.monotonic() > end:
            raise LostContact(f"the {world} processes did not find each other: not all came within {timeout}.")
        time.sleep(_ASK_S)
    if rank == 0:
        return own
    place = store.get(f"itkit/answer/{own}").decode()
    store.set(f"itkit/heard/{place}/{rank}", "1")
    return place


def _second_connection(store: Any) -> Any:
    """Return a store with the same content whose use does not wait for that of `store`."""
    if hasattr(store, "clone"):
        other = store.clone()
        other.set_timeout(timedelta(seconds=_BOARD_TIMEOUT_S))
        return other
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=_BOARD_TIMEOUT_S),
    )


def is_several() -> bool:
    """Whether this process is one of several that have joined."""
    return dist.is_initialized() and dist.get_world_size() > 1


def share(answer: Callable[[], T]) -> T:
    """Return what `answer` returns in the first process; its error is raised in all of them.

    Raises:
        Exception: What `answer` raised, marked as known to all processes (see `is_known_to_all`).
    """
    if not is_several():
        return answer()
    result, error = _attempt(answer) if dist.get_rank() == 0 else (None, None)
    note = [result, _portable(error)]
    dist.broadcast_object_list(note, src=0)
    if note[1] is not None:
        raise _known(error, note[1])
    return note[0]


def agree(action: Callable[[], T]) -> T:
    """Return what `action` returns in this process; if it raises in one, the first of these errors is raised in all.

    Raises:
        Exception: What `action` raised, marked as known to all processes (see `is_known_to_all`).
    """
    if not is_several():
        return action()
    result, error = _attempt(action)
    errors: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, _portable(error))
    for rank, other in enumerate(errors):
        if other is not None:
            raise _known(error if rank == dist.get_rank() else None, other)
    return result


def is_known_to_all(error: BaseException) -> bool:
    """Whether all processes raised `error` at the same place, so that they can go on together."""
    return getattr(error, "_known_to_all", False)


def _attempt(action: Callable[[], T]) -> list[Any]:
    try:
        return [action(), None]
    except Exception as error:  # border: the error goes to all processes
        return [None, error]


def _known(own: Exception | None, other: tuple[Exception, str]) -> Exception:
    error = own
    if error is None:
        error, trace = other
        error.__cause__ = OtherTraceback(trace)
    error._known_to_all = True
    return error


def _portable(error: Exception | None) -> tuple[Exception, str] | None:
    """Return a copy of `error` that can travel, and its traceback."""
    if error is None:
        return None
    trace = "".join(traceback.format_exception(error))
    try:
        return pickle.loads(pickle.dumps(error)), trace
    except Exception:  # whatever a foreign exception's pickling raises, its text travels instead
        return TrainingError(f"{type(error).__name__}: {error}"), trace


def is_lost_contact(error: BaseException | None) -> bool:
    """Whether `error` says that a collective operation broke off, which is never the first cause of anything."""
    while error is not None:
        text = str(error)
        if isinstance(error, (dist.DistNetworkError, dist.DistStoreError, dist.DistBackendError)):
            return True
        if isinstance(error, RuntimeError) and ("gloo" in text or "NCCL" in text):
            return True
        error = error.__cause__ or error.__context__
    return False


def describe_loss(error: BaseException, board: Board) -> str:
    """Return which processes give no sign of life any more, as a sentence."""
    reason = "an operation timed out" if "imed out" in str(error) else "the connection broke"
    try:
        before = board.beats()
        time.sleep(2.5 * BEAT_S)
        after = board.beats()
    except RuntimeError:
        return (
            f"lost contact with the process that the others meet at: it was killed, or its machine is gone. ({reason})"
        )
    silent = [rank for rank, (one, two) in enumerate(zip(before, after, strict=True)) if one == two]
    if not silent:
        return f"lost contact with another process. ({reason})"
    names = ", ".join(map(str, silent))
    verb = "process" if len(silent) == 1 else "processes"
    return (
        f"lost contact with {verb} {names} of {board.world_size}, without a sign of life for {2.5 * BEAT_S:g} s and more: "
        f"killed, stopped, or out of reach. ({reason})"
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
