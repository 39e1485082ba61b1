"""What contrastive pre-training needs besides encoders: a momentum average, batches over all processes, and its loss."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def process_count() -> int:
    """Return the number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Return the number of this process among them; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@torch.no_grad()
def gather_batch(batch: Tensor) -> Tensor:
    """Return the batches (N, ...) of all processes as one (processes * N, ...), in the order of the ranks, without gradient.

    Every process must bring the same shape.
    """
    if process_count() == 1:
        return batch
    parts = [torch.empty_like(batch) for _ in range(process_count())]
    dist.all_gather(parts, batch.contiguous())
    return torch.cat(parts)


@torch.no_grad()
def shared_permutation(count: int, device: torch.device) -> Tensor:
    """Return a random order of `count` things that is the first process's on all."""
    order = torch.randperm(count, device=device)
    if process_count() > 1:
        dist.broadcast(order, src=0)
    return order


@torch.no_grad()
def follow(average: nn.Module, encoder: nn.Module, momentum: float) -> None:
    """Move the parameters of `average` towards those of `encoder`: ``momentum * average + (1 - momentum) * encoder``.

    Buffers, such as running statistics, stay each module's own.
    """
    torch._foreach_lerp_(list(average.parameters()), list(encoder.parameters()), 1 - momentum)


@torch.no_grad()
def begin_as(average: nn.Module, encoder: nn.Module) -> None:
    """Copy the parameters of `encoder` into `average`, which gets no gradients from now on."""
    for copy, parameter in zip(average.parameters(), encoder.parameters(), strict=True):
        copy.copy_(parameter)
        copy.requires_grad_(False)


def info_nce(similarities: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Return the InfoNCE loss: cross-entropy of finding the one positive among all keys.

    Args:
        similarities: (N, K) inner products of normalised queries and keys.
        positives: (N,) index of the positive key of every query.
        temperature: The similarities are divided by it.

    Source: van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018, arXiv 1807.03748.
    """
    return F.cross_entropy(similarities / temperature, positives)
