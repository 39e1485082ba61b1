"""Freed memory is kept: a loop that allocates the same arrays over and over causes hardly any page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from itkit.mm import memory

PROGRAM = """
import resource, sys
import numpy as np
from itkit.mm.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    arrays = [np.empty(3 << 20, dtype=np.uint8) for _ in range(4)]
    for array in arrays:
        array[::4096] = 1
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting exists in glibc only")
def test_repeated_allocations_cause_no_page_faults():
    def faults(mode: str) -> int:
        return int(subprocess.run([sys.executable, "-c", PROGRAM, mode], check=True, capture_output=True).stdout)

    assert faults("keep") < 100


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    assert memory.keep_freed_memory() is False
