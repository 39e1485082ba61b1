"""Measure the selective scan side by side with a loop over positions: same numbers, alternating runs, one process.

    python tools/bench_scan.py                              L 32768, 96 channels, 16 states, one thread
    python tools/bench_scan.py --length 3136 --channels 384 --groups 4 --states 1

Besides itkit's scan and the loop stands the scan written as a graph of few operations, as it is exported. CPU seconds of the
forward pass, and of forward and backward; the largest difference of the results; what autograd keeps. The backward pass of
these two is left out beyond 8192 positions, where they keep gigabytes.
"""

from __future__ import annotations

import argparse
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from itkit.ops import selective_scan as scan

LONGEST_KEPT = 8192


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=32768)
    parser.add_argument("--channels", type=int, default=96)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def loop_over_positions(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Return the outputs of the recurrence, one position after the other."""
    B, C = (part.repeat_interleave(u.shape[1] // part.shape[1], 1) for part in (B, C))
    state, outputs = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for u_t, delta_t, B_t, C_t in zip(*(part.unbind(-1) for part in (u, delta, B, C)), strict=True):
        state = torch.exp(delta_t[..., None] * A) * state + (delta_t * u_t)[..., None] * B_t
        outputs.append((state * C_t).sum(-1))
    return torch.stack(outputs, -1)


def cpu_seconds(call, device: torch.device) -> float:
    """Return the CPU seconds of `call`; on a GPU its wall seconds."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - begin


def kept_mb(method, inputs: list[Tensor]) -> float:
    """Return the megabytes that autograd keeps for the backward pass."""
    kept = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        answer = method(*inputs)
    del answer
    return sum(kept.values()) / 1e6


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    batch, wide, length = options.batch, options.channels, options.length
    inputs = [
        torch.randn(batch, wide, length),
        torch.rand(batch, wide, length) * 0.1,
        -torch.rand(wide, options.states) * options.states,
        torch.randn(batch, options.groups, options.states, length),
        torch.randn(batch, options.groups, options.states, length),
    ]
    inputs = [part.to(device).requires_grad_() for part in inputs]
    towards = torch.randn(batch, wide, length, device=device)
    methods = {
        "loop over positions": loop_over_positions,
        "graph of few operations": lambda *x: scan._scan_as_graph(*x)[0],
        "itkit": lambda *x: scan.selective_scan(*x),
    }
    trained = [name for name in methods if name == "itkit" or length <= LONGEST_KEPT]
    forward: dict[str, list[float]] = {name: [] for name in methods}
    both: dict[str, list[float]] = {name: [] for name in trained}
    with torch.no_grad():
        results = {name: method(*inputs) for name, method in methods.items()}
        for _ in range(options.repeats):
            for name, method in methods.items():
                forward[name].append(cpu_seconds(lambda method=method: method(*inputs), device))
    for _ in range(options.repeats):
        for name in trained:
            method = methods[name]
            both[name].append(cpu_seconds(lambda method=method: method(*inputs).backward(towards), device))

    of = f"{batch} x {wide} channels in {options.groups} group(s), {options.states} state(s), {length} positions"
    table = Table(title=f"Selective scan: {of}; {device}, {options.threads} thread(s)")
    for column in ("", "forward s", "ratio", "forward + backward s", "kept MB", "largest difference"):
        table.add_column(column)
    loop = "loop over positions"
    for name in methods:
        difference = (results[name] - results[loop]).abs().max().item()
        table.add_row(
            name,
            f"{min(forward[name]):.3f}",
            f"{min(forward[name]) / min(forward[loop]):.3f}",
            f"{min(both[name]):.3f}" if name in both else "not run",
            f"{kept_mb(methods[name], inputs):.0f}" if name in both else "not run",
            f"{difference:.1e}",
        )
    Console(width=120).print(table)
    size = 4e-6 * batch * wide * length * options.states
    Console(width=120).print(f"All states, which nothing of itkit's keeps, would take {size:.0f} MB.")


if __name__ == "__main__":
    main()
