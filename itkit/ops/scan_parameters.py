"""How the parameters of a selective scan begin: decays of different speed, step sizes spread over two decades."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST_STEP, GREATEST_STEP = 1e-3, 0.1


def initial_decays(channels: int, states: int) -> Tensor:
    """Return logarithms (channels, states) of the rates 1, 2, ..., `states`, the same for every channel.

    Source: Gu and Dao, Mamba, 2023, arXiv 2312.00752, section 3.6.
    """
    return torch.arange(1, states + 1, dtype=torch.float32).log().repeat(channels, 1)


def initial_step_weights(*shape: int) -> Tensor:
    """Return weights (..., channels, rank), uniform within 1 / sqrt(rank), from the low-rank form to step sizes."""
    return (2 * torch.rand(shape) - 1) * shape[-1] ** -0.5


def initial_step_biases(*shape: int) -> Tensor:
    """Return biases whose softplus is log-uniform between 0.001 and 0.1."""
    low, high = math.log(LEAST_STEP), math.log(GREATEST_STEP)
    steps = torch.exp(low + (high - low) * torch.rand(shape)).clamp(min=1e-4)
    return steps + torch.log(-torch.expm1(-steps))
