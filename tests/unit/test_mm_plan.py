"""The plan of a run counts what a network costs before there is memory for it."""

from __future__ import annotations

import torch
from torch import nn

from itkit.mm.plan import count_flops


class Looked(nn.Module):
    """A convolution whose answer is weighted by numbers from a table, at places that a buffer holds."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, padding=1)
        self.table = nn.Parameter(torch.zeros(5))
        self.register_buffer("places", torch.tensor([0, 3, 4, 1]))

    def forward(self, x):
        return self.convolution(x) * self.table[self.places][:, None, None]


def test_indices_in_buffers_are_valid_on_a_network_without_memory():
    with torch.device("meta"):
        network = Looked()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)  # memory not yet written then holds the largest integer
    try:
        assert count_flops(network, (8, 8), 1) >= 4 * 9 * 64
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled
    assert network.places.is_meta
