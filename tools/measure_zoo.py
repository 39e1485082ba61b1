"""Measure what one forward pass of every configuration of the zoo costs, for ``mmrun --list-models``.

    python tools/measure_zoo.py                   everything that is not in the file yet
    python tools/measure_zoo.py --again MoCo_v1_r50 'UNETR*'

writes ``itkit/models/zoo_costs.json``: for each configuration the input, 10^9 multiply-adds (those of the card, else as PyTorch
counts them without memory), and the peak memory.

Memory is that of one forward pass of a batch of one, float32, without gradients, on a CPU with one thread, weights included: the
most resident memory of a process of its own, less what it held before the network was built. Where the canonical input would take
more than 3 GiB or 150 * 10^9 multiply-adds, the pass is done at half the size along each axis, and all but the weights is taken
to grow with the number of voxels; such a figure is marked as estimated.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import multiprocessing
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from itkit._support.files import write_text
from itkit.errors import ConfigError
from itkit.models.listing import COSTS
from itkit.models.zoo import Configuration, NetworkCard, configurations

GOLDEN = Path(__file__).resolve().parents[1] / "tests/golden/networks"
MOST_MIB = 3 * 1024
MOST_GMACS = 150.0
CHEAP_GMACS = 15.0
MIB = 2**20


def canonical_input(name: str, card: NetworkCard, made: Configuration) -> tuple[int, ...]:
    """Return (C, *size): the configuration's own, that of a published sibling, or what its outputs were recorded with."""
    if made.input_size is not None:
        return tuple(made.input_size)
    for path in GOLDEN.glob("*.json"):
        figures = json.loads(path.read_text(encoding="utf-8")).get(name, {})
        if "small" in name and "golden" in figures:
            return tuple(figures["golden"]["inputs"][0][1:])
    if "small" not in name:
        for other in card.configurations.values():
            if other.input_size is not None:
                return tuple(other.input_size)
    return (made.arguments.get("in_channels", 3), *(64,) * made.arguments.get("spatial_dims", len(card.small_size)))


def gmacs(name: str, size: tuple[int, ...]) -> float:
    """Return 10^9 multiply-adds of convolutions, matrix products and attention, counted without memory."""
    card, made = configurations()[name]
    with torch.device("meta"):
        net = card.build(made.arguments).eval()
    with FlopCounterMode(display=False) as count, torch.no_grad():
        net(torch.empty(1, *size, device="meta"))
    return count.get_total_flops() / 2e9


def resident_mib(field: str) -> float:
    """Return ``VmRSS`` (now) or ``VmHWM`` (the most since it was reset) of this process in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def measure(name: str, size: tuple[int, ...]) -> dict[str, float] | None:
    """Run one forward pass in a process of its own; return the peak and the weights' memory in MiB.

    None if the network refuses the size. The process is a fork of this one, in which everything is imported and no network
    has run.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_measure_here, args=(name, size, sender))
    process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError as error:
        process.join()
        raise SystemExit(f"{name} at {size}: the process ended with exit code {process.exitcode}") from error
    process.join()
    return found


def _measure_here(name: str, size: tuple[int, ...], sender: Connection) -> None:
    card, made = configurations()[name]
    before = resident_mib("VmRSS")
    net = card.build(made.arguments).eval()
    weights = sum(t.numel() * t.element_size() for t in net.state_dict().values()) / MIB
    Path("/proc/self/clear_refs").write_text("5")
    try:
        with torch.no_grad():
            net(torch.zeros(1, *size))
    except ConfigError:
        sender.send(None)
        return
    sender.send({"peak": resident_mib("VmHWM") - before, "weights": weights})


def cost(name: str) -> dict:
    """Return the entry of one configuration."""
    card, made = configurations()[name]
    size = canonical_input(name, card, made)
    count = gmacs(name, size) if made.gmacs is None else made.gmacs
    entry = {"input": list(size), "gmacs": float(f"{count:.6g}")}
    if count > CHEAP_GMACS:
        half = (size[0], *(math.ceil(edge / 2 / card.divisor) * card.divisor for edge in size[1:]))
        found, growth = measure(name, half), math.prod(size[1:]) / math.prod(half[1:])
        if found:
            peak = found["weights"] + (found["peak"] - found["weights"]) * growth
            if peak > MOST_MIB or count > MOST_GMACS:
                return {**entry, "memory_mib": round(peak), "memory": "estimated"}
    return {**entry, "memory_mib": round(measure(name, size)["peak"]), "memory": "measured"}


def main() -> None:
    """Read the command line and write the file, entry by entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", nargs="*", default=[], metavar="PATTERN", help="measure these anew")
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(COSTS.read_text(encoding="utf-8")) if COSTS.exists() else {}
    names = list(configurations())
    for name in names:
        if name in known and not any(fnmatch.fnmatch(name, pattern) for pattern in given.again):
            continue
        known[name] = cost(name)
        sys.stderr.write(f"{name}: {known[name]}\n")
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(known[key])}" for key in names if key in known)
        write_text(COSTS, "{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
