"""Take a part of a checkpoint, such as a pre-trained encoder, and be sure that all its weights arrived."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itkit._support.suggestions import did_you_mean
from itkit.errors import CheckpointError

_CONTAINERS = ("state_dict", "model")
_WRAPPER = "module."


def load_part(
    module: nn.Module, checkpoint: str | Path, prefix: str = "", *, left_out: Sequence[str] = ("fc.", "head.")
) -> list[str]:
    """Copy the weights below `prefix` of a checkpoint into `module`; every weight of `module` must be among them.

    Args:
        module: Takes the weights by its own names.
        checkpoint: File of `mmrun`, of PyTorch, or of the authors of MoCo; nothing in it is executed.
        prefix: What stands before the names of `module` in the file, such as ``"backbone.encoder_q."``; ``module.`` of a
            data-parallel training is taken off first.
        left_out: Beginnings of names that `module` need not have: heads that are of no use to it.

    Returns:
        Names of the weights that were left out.

    Raises:
        CheckpointError: If the file cannot be read, has no such part, or a weight is missing, left over, or of another
            shape.
    """
    path = Path(checkpoint)
    state = _state(path)
    part = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    if not part:
        there = _parts(state, 1)
        there = _parts(state, 2) if len(there) == 1 else there
        raise CheckpointError(
            f"{path}: no weight's name begins with {prefix!r}.{did_you_mean(prefix, there)} There are: "
            f"{', '.join(there[:8])}."
        )
    own = module.state_dict()
    unused = [name for name in part if name not in own]
    surplus = [name for name in unused if not name.startswith(tuple(left_out))]
    missing = [name for name in own if name not in part]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("left over", surplus))
        if names
    ]
    problems += [
        f"{name} has shape {tuple(part[name].shape)}, here {tuple(value.shape)}"
        for name, value in own.items()
        if name in part and part[name].shape != value.shape
    ][:3]
    if problems:
        raise CheckpointError(
            f"{path}: the weights below {prefix!r} are not those of this {type(module).__name__}: {'; '.join(problems)}. Give "
            "it the arguments of the network that was pre-trained, or the right prefix."
        )
    module.load_state_dict({name: part[name] for name in own})
    return unused


def _parts(state: dict[str, Tensor], depth: int) -> list[str]:
    """Return the beginnings of names, `depth` words long, below which there is more."""
    return sorted({".".join(name.split(".")[:depth]) + "." for name in state if name.count(".") >= depth})


def _state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, without what containers and wrappers put around them."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such checkpoint.") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as weights alone ({' '.join(str(error).split())[:200]}). Write it anew as "
            "torch.save(model.state_dict(), ...)."
        ) from error
    for key in _CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not weights by name.")
    return {name.removeprefix(_WRAPPER): value for name, value in content.items() if isinstance(value, Tensor)}
