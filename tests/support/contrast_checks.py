"""What several processes check together in tests of contrastive pre-training; see `parallel_runs`."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from itkit.models import MoCo, MoCoV3

PAIRS = 6
STEPS = 3


def _rank_and_count() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def contrasted(folder: str, kind: str) -> dict[str, Any]:
    """Return the loss over all processes, its gradient, and the queue, after some steps with fixed statistics.

    The norms are in evaluation, so that an image's vector does not depend on its neighbours; all else trains.
    """
    torch.manual_seed(0)
    small = dict(in_channels=1, encoder="resnet18", dim=8, width=4, momentum=0.5)
    net = MoCo(**small, queue_size=16, mlp_head=True) if kind == "MoCo" else MoCoV3(**small, hidden=16)
    net.train()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    rank, count = _rank_and_count()
    mine = slice(rank * PAIRS // count, (rank + 1) * PAIRS // count)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    losses = []
    for _ in range(STEPS):
        first, second = torch.randn(PAIRS, 1, 32, 32), torch.randn(PAIRS, 1, 32, 32)
        if kind == "MoCo" and count > 1:
            state = torch.get_rng_state()  # the shuffle draws too; the images of the next step are to be the same
        loss = net.contrast(first[mine], second[mine], 0.25)["loss_contrast"]
        if kind == "MoCo" and count > 1:
            torch.set_rng_state(state)
        optimizer.zero_grad()
        loss.backward()
        if count > 1:
            for parameter in net.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= count
        optimizer.step()
        total = loss.detach().clone()
        if count > 1:
            dist.all_reduce(total)
        losses.append((total / count).item())
    return {"losses": losses, "state": {name: value.clone() for name, value in net.state_dict().items()}}


def seen_by_the_keys(folder: str) -> list[float]:
    """Return the mean of every image that this process encoded as a key; the images of rank r are r everywhere."""
    torch.manual_seed(dist.get_rank())
    net = MoCo(1, "resnet18", dim=8, queue_size=32, width=4).train()
    seen: list[float] = []
    net.encoder_k.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0].mean((1, 2, 3)).tolist()))
    images = torch.full((8, 1, 32, 32), float(dist.get_rank()))
    keys: list[torch.Tensor] = []
    net._remember = keys.append
    net.contrast(images, images)
    return seen
