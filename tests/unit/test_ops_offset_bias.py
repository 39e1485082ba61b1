"""Biases by offset: the place in the table is that of the distance, on any grid that is not larger than the table's."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from itkit.ops.offset_bias import OffsetBiasedAttention, offset_indices, resize_offset_biases


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (4, 3), (5, 7)])
def test_against_a_loop_over_pairs_of_cells(grid, stride):
    queries = list(itertools.product(range(0, grid[0], stride), range(0, grid[1], stride)))
    keys = list(itertools.product(range(grid[0]), range(grid[1])))
    expected = [[abs(qy - ky) * grid[1] + abs(qx - kx) for ky, kx in keys] for qy, qx in queries]
    assert offset_indices(grid, stride).tolist() == expected


@pytest.mark.parametrize("stride", [1, 2])
def test_published_tables_number_offsets_as_they_come_up(stride):
    """The originals number the offsets from the first query in the order of the keys."""
    numbers: dict[tuple[int, int], int] = {}
    cells = list(itertools.product(range(7), range(7)))
    for (qy, qx), (ky, kx) in itertools.product(itertools.product(range(0, 7, stride), repeat=2), cells):
        numbers.setdefault((abs(qy - ky), abs(qx - kx)), len(numbers))
    assert numbers == {cell: number for number, cell in enumerate(cells)}


@pytest.mark.parametrize("stride", [1, 2])
def test_a_smaller_grid_finds_its_offsets_in_the_larger_table(stride):
    attention = OffsetBiasedAttention(2, (5, 7), stride)
    with torch.no_grad():
        attention.attention_biases.copy_(torch.arange(70.0).reshape(2, 35))
    biases = attention.biases((3, 4))
    table = attention.attention_biases.unflatten(1, (5, 7))
    cells = list(itertools.product(range(3), range(4)))
    queries = list(itertools.product(range(0, 3, stride), range(0, 4, stride)))
    for (i, (qy, qx)), (j, (ky, kx)) in itertools.product(enumerate(queries), enumerate(cells)):
        assert torch.equal(biases[:, i, j], table[:, abs(qy - ky), abs(qx - kx)])
    assert torch.equal(attention.biases((5, 7)), attention.attention_biases[:, attention.attention_bias_idxs])


def test_resizing_keeps_the_ends_and_leaves_the_rest_alone():
    class Net(nn.Module):
        def __init__(self, grid):
            super().__init__()
            self.part, self.other = OffsetBiasedAttention(2, grid), nn.Linear(2, 2)

    old, new = Net((4, 4)), Net((7, 5))
    with torch.no_grad():
        old.part.attention_biases.copy_(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)))
    state = old.state_dict()
    resized = resize_offset_biases(state, new)
    new.load_state_dict(resized)
    before, after = state["part.attention_biases"].view(2, 4, 4), new.part.attention_biases.view(2, 7, 5)
    for y, x in itertools.product((0, -1), (0, -1)):
        torch.testing.assert_close(after[:, y, x], before[:, y, x])
    torch.testing.assert_close(after[:, ::2, 0], before[:, :, 0])
    assert resized["other.weight"] is state["other.weight"]
    assert state["part.attention_biases"].shape == (2, 16)
    same = resize_offset_biases(state, Net((4, 4)))
    assert same["part.attention_biases"] is state["part.attention_biases"]
