"""The selective scan as its definition says it: one position after the other, in plain tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sequential_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return outputs (N, D, L) and the last state (N, D, states); `B` and `C` are (N, G, states, L)."""
    channels, length = u.shape[1:]
    B, C = (part.repeat_interleave(channels // part.shape[1], 1) for part in (B, C))
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    state, outputs = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(length):
        decay = torch.exp(delta[:, :, t, None] * A)
        state = decay * state + (delta[:, :, t] * u[:, :, t])[..., None] * B[..., t]
        outputs.append((state * C[..., t]).sum(-1))
    y = torch.stack(outputs, -1)
    if D is not None:
        y = y + D[:, None] * u
    return (y if z is None else y * F.silu(z)), state


def scan_tensors(batch: int, groups: int, channels: int, states: int, length: int, seed: int, dtype=torch.float64):
    """Return u, delta, A, B, C, D, z and delta_bias, drawn from `seed`; a group has `channels` channels."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    wide = groups * channels
    A = -torch.rand(wide, states, generator=generator, dtype=dtype) * states - 0.1
    return (
        normal(batch, wide, length),
        normal(batch, wide, length),
        A,
        normal(batch, groups, states, length),
        normal(batch, groups, states, length),
        normal(wide),
        normal(batch, wide, length),
        normal(wide),
    )
