"""Saving and resuming on several processes, as tasks of `parallel_runs`."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import torch.distributed as dist
from exact_runs import AtIteration, build, differences, last_checkpoint, state_differences, train

from itkit.mm import checkpoints
from itkit.mm.checkpoints import random_state
from itkit.mm.group import is_known_to_all


def _settings(parallel: str, **more: Any) -> dict[str, Any]:
    config = {"parallel": parallel, "randomness": {"seed": 3, "diff_rank_seed": True}}
    return {"config": config, "checkpoint": {"max_keep_ckpts": -1}, **more}


def stopped_and_resumed(folder: str, parallel: str, at: int) -> dict[str, Any]:
    """Train without and with a stop in the middle; return what differs, in this process's generators too."""
    whole, parts = Path(folder) / "whole", Path(folder) / "parts"
    settings = _settings(parallel)
    train(whole, **settings)
    generators = random_state()
    train(parts, at=at, action=lambda runner: setattr(runner, "stop_training", True), **settings)
    dist.barrier()
    train(parts, **settings)
    saved = last_checkpoint(parts)["random"]
    return {
        "state": state_differences(whole, parts),
        "generators": differences(generators, random_state()),
        "different": bool(differences(saved[0], saved[1])),
    }


def failed_saving(folder: str) -> dict[str, Any]:
    """Let the first process fail to write a checkpoint; return what this process raises, and where."""
    if dist.get_rank() == 0:
        save = checkpoints.save

        def fail(checkpoint, path, **options):
            if checkpoint["meta"]["iter"] == 3:
                raise OSError(errno.ENOSPC, "No space left on device", "iter_3.pth")
            return save(checkpoint, path, **options)

        checkpoints.save = fail
    runner = build(Path(folder), **_settings("ddp"))
    try:
        runner.train()
    except OSError as error:
        return {"error": str(error), "iter": runner.iter, "known": is_known_to_all(error)}
    finally:
        runner.close()
        if dist.get_rank() == 0:
            checkpoints.save = save
    return {"error": None}


def damaged_and_changed(folder: str) -> dict[str, Any]:
    """Resume with another learning rate, then from the checkpoint before the newest, which is damaged."""
    folder = Path(folder)
    train(folder, **_settings("ddp"))
    dist.barrier()
    answer: dict[str, Any] = {}
    try:
        train(folder, iterations=9, **_settings("ddp", optim_wrapper={"optimizer": {"type": "AdamW", "lr": 0.01}}))
    except Exception as error:
        answer["refused"] = type(error).__name__, is_known_to_all(error)
    dist.barrier()
    if dist.get_rank() == 0:
        (folder / "checkpoints/iter_8.pth").write_bytes(b"")
    dist.barrier()
    first: list[int] = []
    runner = build(folder, **_settings("ddp", iterations=9))
    for step in range(1, 10):
        runner.register_hook(AtIteration(step, lambda r: first.append(r.iter)))
    try:
        runner.train()
    finally:
        runner.close()
    return {**answer, "first": first[0], "iter": runner.iter, "saved": runner.saved_step}
