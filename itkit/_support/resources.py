"""What a computation costs and runs on: CPU time of a process and its children, processor, memory."""

from __future__ import annotations

import contextlib
import os
import platform
from typing import Any

import psutil


def cpu_seconds() -> float:
    """Return user and system time of this process and its children so far, living and ended, in seconds."""
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                spent = child.cpu_times()
                total += spent.user + spent.system + spent.children_user + spent.children_system
    return total


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, memory in GiB and operating system."""
    processor = platform.processor()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as stream:
        processor = next(
            (line.partition(":")[2].strip() for line in stream if line.startswith("model name")), processor
        )
    return {
        "processor": processor or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
    }
