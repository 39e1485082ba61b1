"""Selective scans over an image along four paths: rows, columns, and both backwards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from itkit.ops.selective_scan import selective_scan

PATHS = 4


def cross_scan(x: Tensor) -> Tensor:
    """Return the pixels of `x` (N, C, Y, X) along four paths: (N, 4, C, Y * X).

    Row by row, column by column, and the same two from the last pixel to the first.
    """
    forth = torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], 1)
    return torch.cat([forth, forth.flip(-1)], 1)


def cross_merge(paths: Tensor, size: Sequence[int]) -> Tensor:
    """Return the sum over four paths (N, 4, C, Y * X), each pixel put back to its place: (N, C, Y, X).

    Args:
        paths: As `cross_scan` orders them.
        size: (Y, X).
    """
    both = paths[:, :2] + paths[:, 2:].flip(-1)
    return both[:, 0].unflatten(-1, tuple(size)) + both[:, 1].unflatten(-1, tuple(size)[::-1]).transpose(-2, -1)


def cross_selective_scan(
    x: Tensor, x_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor
) -> Tensor:
    """Return the sum of four selective scans over an image, whose coefficients are projections of the pixels.

    Args:
        x: (N, C, Y, X).
        x_weight: (4, rank + 2 * states, C): projections to the step size's low-rank form, and to B and C.
        dt_weight: (4, C, rank): projections from the low-rank form to step sizes.
        dt_bias: (4, C), added to the step sizes in front of their softplus.
        A_log: (4 * C, states), the logarithms of the rates of decay.
        D: (4 * C,), weights of the pixels themselves.

    Returns:
        (N, C, Y, X).

    Source: Liu et al., VMamba: Visual State Space Model, NeurIPS 2024, arXiv 2401.10166.
    """
    size, rank, states = x.shape[2:], dt_weight.shape[2], A_log.shape[1]
    paths = cross_scan(x)
    projected = torch.einsum("nkcl,kpc->nkpl", paths, x_weight)
    low, B, C = projected.split([rank, states, states], dim=2)
    delta = torch.einsum("nkrl,kcr->nkcl", low, dt_weight)
    y = selective_scan(
        paths.flatten(1, 2),
        delta.flatten(1, 2),
        -A_log.to(torch.promote_types(A_log.dtype, torch.float32)).exp(),
        B,
        C,
        D,
        delta_bias=dt_bias.flatten(),
        delta_softplus=True,
    )
    return cross_merge(y.unflatten(1, (PATHS, -1)), size)
