"""What the processes of one run tell each other beside their collectives: stop requests, failures, signs of life."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Protocol


class Store(Protocol):
    """What a board needs of a store; those of ``torch.distributed`` have it."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...
    def compare_set(self, key: str, expected: str, desired: str) -> bytes: ...
    def add(self, key: str, amount: int) -> int: ...


class Board:
    """Notes that all processes can read, each written once, beside a few counters.

    Nothing here is a collective: a process reads what is there and goes on. Every method is one or a few round trips to
    the store, and raises what the store raises when its host is gone.

    Args:
        store: Shared by the processes of one start; used by one thread at a time.
        rank: Number of this process.
        world_size: Number of processes.
    """

    def __init__(self, store: Store, rank: int, world_size: int):
        self.rank, self.world_size, self._store = rank, world_size, store

    def propose(self, subject: str, note: dict[str, Any]) -> dict[str, Any]:
        """Write `note` about `subject` unless somebody was first; return the note that stands."""
        return json.loads(self._store.compare_set(subject, "", json.dumps(note)))

    def read(self, subject: str) -> dict[str, Any] | None:
        """Return the note about `subject`, None if there is none yet."""
        return json.loads(self._store.get(subject)) if self._store.check([subject]) else None

    def sign(self, subject: str, value: int = 1) -> None:
        """Write this process's number about `subject`."""
        self._store.set(f"{subject}/{self.rank}", str(value))

    def signed(self, subject: str, ranks: Iterable[int] | None = None) -> list[int] | None:
        """Return the numbers of all `ranks` (None: of all processes) about `subject`, None while one is missing."""
        keys = [f"{subject}/{rank}" for rank in (range(self.world_size) if ranks is None else ranks)]
        return [int(self._store.get(key)) for key in keys] if self._store.check(keys) else None

    def beat(self) -> None:
        """Show that this process is alive."""
        self._store.add(f"beat/{self.rank}", 1)

    def beats(self) -> list[int]:
        """Return how often each process has shown that it is alive."""
        return [self._store.add(f"beat/{rank}", 0) for rank in range(self.world_size)]
