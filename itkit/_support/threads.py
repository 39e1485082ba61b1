"""How many threads the numerical libraries use, said before they are loaded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

ONE_THREAD = dict.fromkeys(
    (
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS",
    ), "1",
)  # fmt: skip
"""Environment in which libraries use one thread, so that as many processes as cores use the cores."""


_preferred: set[str] = set()


def prefer_one_thread() -> None:
    """Let libraries that are loaded from now on use one thread, unless the user's environment says otherwise."""
    for name, value in ONE_THREAD.items():
        if name not in os.environ:
            os.environ[name] = value
            _preferred.add(name)


def asked_threads() -> int | None:
    """Return how many threads the user's own environment asks for (``OMP_NUM_THREADS``); None where it does not say."""
    text = "" if "OMP_NUM_THREADS" in _preferred else os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(text) if text.isdigit() and int(text) > 0 else None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let processes that are started in the block use one thread."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
