"""What a computation costs and runs on: CPU time, processor, the cores and the memory that this process may use."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import Any

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT_BYTES = 1 << 60  # how version 1 of control groups says "none"


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


def usable_cores() -> int:
    """Return how many cores this process may use: affinity and the CPU quota of its control group count."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroup_folders("cpu"):
        both = _numbers(folder / "cpu.max")
        both = both or _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
        quota, period = both if len(both) == 2 else (0, 0)
        if quota > 0 and period > 0:
            cores = min(cores, max(1, int(quota / period + 0.5)))
    return cores


def usable_memory_bytes() -> int:
    """Return how much memory this process may still take: what is free, within the limits of its control groups."""
    free = psutil.virtual_memory().available
    for folder in _cgroup_folders("memory"):
        limit = (_numbers(folder / "memory.max") or _numbers(folder / "memory.limit_in_bytes") or [0])[0]
        used = (_numbers(folder / "memory.current") or _numbers(folder / "memory.usage_in_bytes") or [0])[0]
        if 0 < limit < _NO_LIMIT_BYTES:
            free = min(free, limit - used + _reclaimable_bytes(folder))
    return max(free, 0)


def memory_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since it started; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError), open("/proc/vmstat", encoding="ascii") as stream:
        return next((int(line.split()[1]) for line in stream if line.startswith("oom_kill ")), 0)
    return 0


def resident_bytes() -> int:
    """Return the memory that this process has in RAM now."""
    return psutil.Process().memory_info().rss


def _cgroup_folders(controller: str) -> list[Path]:
    """The folders of this process's control group and of those it lies in, for both versions of the interface."""
    folders = []
    with contextlib.suppress(OSError, ValueError), open("/proc/self/cgroup", encoding="utf-8") as stream:
        for line in stream:
            number, names, path = line.rstrip("\n").split(":", 2)
            if number == "0":
                root = _CGROUPS
            elif controller in names.split(","):
                root = _CGROUPS / controller
            else:
                continue
            below = [part for part in path.split("/") if part and part != ".."]
            folders += [root.joinpath(*below[:depth]) for depth in range(len(below), -1, -1)]
    return folders


def _numbers(path: Path) -> list[int]:
    """The numbers in a file of a control group; ``max`` gives 0; empty if there is no such file."""
    try:
        return [0 if word == "max" else int(word) for word in path.read_text(encoding="ascii").split()]
    except (OSError, ValueError):
        return []


def _reclaimable_bytes(folder: Path) -> int:
    """File cache that the kernel would drop before it kills."""
    with contextlib.suppress(OSError, ValueError), open(folder / "memory.stat", encoding="ascii") as stream:
        found = dict(line.split() for line in stream)
        return int(found.get("total_inactive_file", found.get("inactive_file", 0)))
    return 0
