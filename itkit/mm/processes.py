"""Join the group of processes that a launcher started, on GPUs and on CPUs."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from mmengine.config import Config

from itkit.errors import ConfigError


def world_size() -> int:
    """Number of processes that the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(launcher: str) -> None:
    """Join the process group before MMEngine would, which asks for a GPU even where there is none.

    Args:
        launcher: ``"none"`` does nothing. ``"pytorch"``: ``torchrun`` set the environment; on machines without a GPU the
            group speaks gloo, else MMEngine initialises NCCL itself.
    """
    if launcher == "pytorch" and not torch.cuda.is_available() and not dist.is_initialized():
        dist.init_process_group("gloo")


def wrapper_config(cfg: Config) -> dict | None:
    """Return the config of the wrapper around the model that `parallel` asks for; None for a single process.

    Raises:
        ConfigError: If several processes were started without saying how they share the work, or by a way that is not
            there yet.
    """
    parallel = cfg.get("parallel") or "none"
    if world_size() == 1:
        return None
    if parallel == "ddp":
        devices = {} if torch.cuda.is_available() else {"device_ids": None}
        return {"type": "MMDistributedDataParallel", "broadcast_buffers": False, **devices}
    if parallel == "fsdp":
        raise ConfigError('parallel = "fsdp": is not built yet; use "ddp", or start one process.')
    raise ConfigError(
        f'parallel = "none", but {world_size()} processes were started. Set parallel = "ddp", or start one process.'
    )
