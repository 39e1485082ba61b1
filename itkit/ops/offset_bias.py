"""A learnt number for every offset between two cells of a grid, added to the scores of attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def offset_indices(grid: Sequence[int], stride: int = 1, width: int | None = None, device=None) -> Tensor:
    """Return the place in a table of offsets for every pair of a query's and a key's cell.

    A query stands on every `stride`-th cell along both axes; the offset is the distance along Y and along X, and its
    place in the table ``distance_y * width + distance_x``.

    Args:
        grid: Cells of the keys (Y, X).
        stride: Step of the queries; there are ``ceil(Y / stride) * ceil(X / stride)`` of them.
        width: Offsets along X in the table. None: X.
        device: Where to put the answer.

    Returns:
        (queries, Y * X), integers.
    """
    axes = [torch.arange(count, device=device) for count in grid]
    along_y, along_x = ((axis[::stride, None] - axis).abs() for axis in axes)
    places = along_y[:, None, :, None] * (grid[1] if width is None else width) + along_x[None, :, None, :]
    return places.flatten(2).flatten(0, 1)


class OffsetBiasedAttention(nn.Module):
    """What such attention owns, in the keys that published checkpoints have: the table, and the places in it.

    Args:
        heads: Attention heads.
        grid: Largest grid of keys (Y, X): every smaller one has offsets that are in the table too.
        stride: Step of the queries in the grid.
    """

    def __init__(self, heads: int, grid: Sequence[int], stride: int = 1):
        super().__init__()
        self.grid, self.stride = tuple(grid), stride
        self.attention_biases = nn.Parameter(torch.zeros(heads, grid[0] * grid[1]))
        self.register_buffer("attention_bias_idxs", offset_indices(grid, stride))

    def biases(self, grid: Sequence[int]) -> Tensor:
        """Return what is added to the scores (heads, queries, Y * X) on the grid of keys `grid` (Y, X)."""
        places = self.attention_bias_idxs
        if tuple(grid) != self.grid:
            places = offset_indices(grid, self.stride, self.grid[1], places.device)
        return self.attention_biases[:, places]


def resize_offset_biases(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Return `state` for another size of image: the tables of offsets interpolated to those of `net`.

    Tables are resized bicubically, so that the nearest and the farthest offset keep their values; what is not such a
    table stays as it is. The answer loads into `net` strictly where `state` fits otherwise.

    Args:
        state: State dict of a network made for square images. Not modified.
        net: The network to load into.
    """
    resized = dict(state)
    for name, module in net.named_modules():
        if not isinstance(module, OffsetBiasedAttention):
            continue
        prefix = f"{name}." if name else ""
        table = state[f"{prefix}attention_biases"]
        edge = round(table.shape[1] ** 0.5)
        if (edge, edge) != module.grid:
            square = table.reshape(1, -1, edge, edge).float()
            square = F.interpolate(square, module.grid, mode="bicubic", align_corners=True)
            resized[f"{prefix}attention_biases"] = square.flatten(2)[0].to(table.dtype)
            resized[f"{prefix}attention_bias_idxs"] = module.attention_bias_idxs.clone()
    return resized
