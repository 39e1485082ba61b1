"""A store like those of ``torch.distributed``, between threads of one process."""

from __future__ import annotations

import threading


class SharedStore:
    """Has the methods that `itkit.mm.board.Board` uses."""

    def __init__(self):
        self._values: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def set(self, key: str, value: str) -> None:
        with self._lock:
            self._values[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self._values[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self._values for key in keys)

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        with self._lock:
            if self._values.get(key, b"") == expected.encode():
                self._values[key] = desired.encode()
            return self._values[key]

    def add(self, key: str, amount: int) -> int:
        with self._lock:
            self._values[key] = str(int(self._values.get(key, b"0")) + amount).encode()
            return int(self._values[key])
