"""Count the selective scans of a network without running them."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class ScanCount(TorchDispatchMode):
    """Adds up the operations of the selective scans that run within it, in 10^9: B * L * D * (9 * N + 2).

    The two are the skip and the gate; the reference counts both for every scan.
    """

    def __init__(self):
        super().__init__()
        self.gflops, self.calls = 0.0, 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.itkit.selective_scan.default:
            u, _, A = arguments[:3]
            self.gflops += u.numel() * (9 * A.shape[1] + 2) / 1e9
            self.calls += 1
        return function(*arguments, **(keywords or {}))


def scan_gflops(net: nn.Module, size: tuple[int, ...]) -> float:
    """Return the 10^9 operations of the scans of a network on the meta device for one input (C, ...)."""
    with ScanCount() as count, torch.no_grad():
        net.eval()(torch.empty(1, *size, device="meta"))
    assert count.calls
    return count.gflops
