"""Neighbourhood attention: every pixel attends to the window around it, in plain PyTorch or by natten on a GPU."""

from __future__ import annotations

import functools
import importlib
import importlib.util

import torch
from torch import Tensor

from itkit.errors import ConfigError


def neighbourhood_attention(
    query: Tensor, key: Tensor, value: Tensor, kernel: int = 3, bias: Tensor | None = None
) -> Tensor:
    """Return for every pixel the mean of the values in its window, weighted by the softmax of the scores.

    The window is centred on the pixel, and at the border moved inwards so that it always has ``kernel * kernel`` pixels.
    Scores are products of query and key, divided by the square root of D. Where natten is installed, tensors on a GPU
    without `bias` go through its kernel if it takes their D (a multiple of 8).

    Args:
        query: (N, Y, X, heads, D).
        key: The same shape.
        value: The same shape.
        kernel: Edge length of the window, odd.
        bias: Added to the scores, by relative position: (heads, 2 * kernel - 1, 2 * kernel - 1), Y then X; the middle
            belongs to the pixel itself. None: nothing.

    Returns:
        (N, Y, X, heads, D).

    Raises:
        ConfigError: If the image is smaller than the window, or the window's edge is even.

    Source: Hassani et al., Neighborhood Attention Transformer, CVPR 2023, arXiv 2204.07143.
    """
    height, width = query.shape[1:3]
    if kernel < 1 or kernel % 2 == 0 or height < kernel or width < kernel:
        raise ConfigError(
            f"neighbourhood attention needs an odd window within the map, found a window of {kernel} and a map of "
            f"{(height, width)} (Y, X). Take larger images or a smaller window."
        )
    if query.is_cuda and bias is None and query.shape[-1] % 8 == 0 and (natten := _natten()) is not None:
        return natten.na2d(query, key, value, kernel)
    first_row, first_column = (_first(count, kernel, query.device) for count in (height, width))
    rows = [first_row + i for i in range(kernel)]
    columns = [first_column + j for j in range(kernel)]
    query = query * query.shape[-1] ** -0.5
    scores = []
    for row in rows:
        line = key.index_select(1, row)
        scores += [(query * line.index_select(2, column)).sum(-1) for column in columns]
    weights = torch.stack(scores, -1)
    if bias is not None:
        down = torch.stack(rows, -1) - torch.arange(height, device=query.device)[:, None] + kernel - 1
        right = torch.stack(columns, -1) - torch.arange(width, device=query.device)[:, None] + kernel - 1
        weights = weights + bias[:, down[:, None, :, None], right[None, :, None, :]].flatten(3).permute(1, 2, 0, 3)
    weights = weights.softmax(-1)
    total, place = torch.zeros_like(value), 0
    for row in rows:
        line = value.index_select(1, row)
        for column in columns:
            total = total + weights[..., place, None] * line.index_select(2, column)
            place += 1
    return total


def _first(count: int, kernel: int, device: torch.device) -> Tensor:
    """Return where the window of each of `count` positions begins."""
    return (torch.arange(count, device=device) - kernel // 2).clamp(0, count - kernel)


@functools.cache
def _natten():
    """Return natten's functions, or None where it is not installed."""
    return importlib.import_module("natten.functional") if importlib.util.find_spec("natten") else None
