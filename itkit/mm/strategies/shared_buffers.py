"""Buffers such as running statistics, which every process changes on its own, made those of the first process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from itkit.mm.strategies.sync_batch_norm import GlobalBatchNorm


def buffers_that_differ(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return where the buffers are that training may make different on each process, as (module, name).

    Places, because a model may exchange the tensor that stands there. Statistics of synchronised normalisations are equal
    anyway and left out.
    """
    equal = (GlobalBatchNorm, nn.SyncBatchNorm)
    return [
        (module, name)
        for module in model.modules()
        if not isinstance(module, equal)
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.numel()
    ]


@torch.no_grad()
def take_buffers_of_first(places: list[tuple[nn.Module, str]], group: Any = None) -> None:
    """Copy the buffers at `places` from the first process to all, in one message; all processes of `group` call this."""
    buffers = [module._buffers[name] for module, name in places]
    if not buffers:
        return
    parts = [_bytes(buffer) for buffer in buffers]
    everything = torch.cat(parts)
    dist.broadcast(everything, src=0 if group is None else dist.get_global_rank(group, 0), group=group)
    for buffer, part in zip(buffers, everything.split([part.numel() for part in parts]), strict=True):
        buffer.copy_(part.clone().view(buffer.dtype).reshape(buffer.shape))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
