"""Causal depthwise convolution along a sequence: a position sees itself and those before; by causal_conv1d on a GPU."""

from __future__ import annotations

import functools
import importlib
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, silu: bool = False) -> Tensor:
    """Return for every position the weighted sum of it and the positions before it, channel by channel.

    In front of the first position there are zeros. Where causal_conv1d is installed, tensors on a GPU go through its
    kernel if it takes their width (2 to 4).

    Args:
        x: (N, D, L).
        weight: (D, width); the last column belongs to the position itself.
        bias: (D,). None: nothing is added.
        silu: A SiLU follows.

    Returns:
        (N, D, L).
    """
    width = weight.shape[1]
    traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
    if x.is_cuda and 2 <= width <= 4 and not traced and (kernel := _causal_kernel()) is not None:
        return kernel(x, weight, bias, activation="silu" if silu else None)
    y = F.conv1d(F.pad(x, (width - 1, 0)), weight.unsqueeze(1), bias, groups=x.shape[1])
    return F.silu(y) if silu else y


@functools.cache
def _causal_kernel():
    """Return causal_conv1d's function, or None where it is not installed."""
    if importlib.util.find_spec("causal_conv1d") is None:
        return None
    return importlib.import_module("causal_conv1d").causal_conv1d_fn
