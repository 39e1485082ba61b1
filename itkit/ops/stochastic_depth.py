"""Stochastic depth: residual branches that are left out at random in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SkippedBranch(nn.Module):
    """Leave out a residual branch for some samples in training, and enlarge it for the others, so that the mean stays.

    Args:
        rate: Probability of leaving it out.

    Source: Huang et al., Deep Networks with Stochastic Depth, ECCV 2016, arXiv 1603.09382.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (N, ...) with the samples left out set to zero."""
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand((x.shape[0], *[1] * (x.ndim - 1)), device=x.device) >= self.rate
        return x * keep / (1 - self.rate)
