"""Warnings collected by whoever does the work that they are about, also where several threads work at once."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

_heard: ContextVar[list[str] | None] = ContextVar("itkit_heard", default=None)
_lock = threading.Lock()
_open: list[tuple[warnings.catch_warnings, Any]] = []
_depth = 0


@contextlib.contextmanager
def hearing() -> Iterator[list[str]]:
    """Give a list that takes the text of every `UserWarning` that this thread gives in the block; others are swallowed.

    ``warnings.catch_warnings`` changes what the whole process does, so that of two threads one would get the other's
    warnings. Warnings of threads that are in no such block go where they went before.
    """
    global _depth
    with _lock:
        if not _depth:
            catcher = warnings.catch_warnings()
            catcher.__enter__()
            warnings.simplefilter("always", UserWarning)
            _open.append((catcher, warnings.showwarning))
            warnings.showwarning = _show
        _depth += 1
    texts: list[str] = []
    token = _heard.set(texts)
    try:
        yield texts
    finally:
        _heard.reset(token)
        with _lock:
            _depth -= 1
            if not _depth:
                catcher, _ = _open.pop()
                catcher.__exit__(None, None, None)


def _show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
    texts = _heard.get()
    if texts is None:
        _open[-1][1](message, category, *place, **more)
    elif category is UserWarning:
        texts.append(str(message))
