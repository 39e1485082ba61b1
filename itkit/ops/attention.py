"""Attention over tokens: PyTorch's fused form, and the two products spelled out where a graph is traced."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, bias: Tensor | None = None) -> Tensor:
    """Return ``softmax(scale * query @ key.T + bias) @ value``.

    Under ``torch.jit`` tracing (FLOP counters, TorchScript exporters) both products are written out, since those know
    nothing of the fused form.

    Args:
        query: (N, heads, L, D).
        key: (N, heads, M, D).
        value: (N, heads, M, E).
        scale: Factor of the scores. None: ``1 / sqrt(D)``.
        bias: Added to the scores, (heads, L, M) or what broadcasts to (N, heads, L, M). None: nothing.

    Returns:
        (N, heads, L, E).

    Source: Vaswani et al., Attention Is All You Need, 2017.
    """
    if not torch.jit.is_tracing():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query @ key.transpose(-2, -1) * scale
    return (scores if bias is None else scores + bias).softmax(-1) @ value
