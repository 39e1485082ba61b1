"""What all tests share: one torch thread, seeds, and the way to real data that is not part of the repository."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as a shell leaves it to background jobs, and they to their children
    signal.signal(signal.SIGINT, signal.default_int_handler)
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data():
    """Return a function that gives the path of a real dataset, or skips where it is absent."""
    root = Path(os.environ.get("ITKIT_SHARED", REPOSITORY.parent / "shared"))

    def find(name: str) -> Path:
        path = root / "data" / name
        if not path.exists():
            pytest.skip(f"real data {name} are not here (set ITKIT_SHARED to the folder that holds data/{name})")
        return path

    return find


@pytest.fixture
def on_cpu(monkeypatch):
    """Let runners train on the CPU also where there is a GPU: what a process has begun with CUDA, its copies cannot use."""
    import torch

    import itkit.mm.runner

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(itkit.mm.runner, "get_device", lambda: "cpu")


@pytest.fixture(autouse=True)
def _no_scope_is_left_behind():
    """Take back the default scope that a runner in a test has set for the whole process."""
    yield
    registry = sys.modules.get("mmengine.registry")
    if registry is not None:
        registry.DefaultScope._instance_dict.clear()
