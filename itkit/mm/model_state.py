"""One form of a model's and an optimizer's state, whole and by bare names, however the model is spread over processes."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from itkit.errors import CheckpointError

_WAYS_TO_COMPUTE = ("foreach", "fused", "capturable", "differentiable")
"""Options of an optimizer that say how it computes and not what; they are not taken from a checkpoint."""


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's own model inside wrappers and shells.

    A shell is a module of ours between a wrapper and the model; its class says ``is_shell = True`` and it holds the model
    as ``module``.
    """
    while is_model_wrapper(model) or getattr(type(model), "is_shell", False):
        model = model.module
    return model


def attribute_of(model: nn.Module, name: str) -> Any:
    """Return an attribute of a wrapped model; an AttributeError raised inside a property of it is not hidden."""
    found = inspect.getattr_static(type(model), name, None)
    return found.__get__(model, type(model)) if isinstance(found, property) else getattr(model, name)


def whole(tensor: Tensor) -> Tensor:
    """Return `tensor` as a plain tensor: itself, or put together from all processes, which must all call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of `tensor`, sharing memory with it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor, like: Tensor, *, copy: bool = True) -> Tensor:
    """Return this process's part of `tensor`, which is whole here, cut as `like` is; on the device of `like`.

    Args:
        tensor: A plain tensor of the shape of `like`; each process has the same.
        like: A parameter; if it is plain, the part is all.
        copy: Whether the part must not share memory with `tensor`.

    Raises:
        CheckpointError: If `like` is cut in a way that only other versions of torch know.
    """
    device = local(like).device
    if not isinstance(like, DTensor):
        return tensor.detach().to(device, copy=copy)
    if like.device_mesh.ndim != 1 or not isinstance(like.placements[0], Shard):
        raise CheckpointError(f"a parameter is spread as {like.placements}; only one sharded axis can be read back.")
    axis, count = like.placements[0].dim, like.device_mesh.size()
    chunks = torch.chunk(tensor.detach(), count, dim=axis)
    rank = like.device_mesh.get_local_rank()
    chunk = chunks[rank] if rank < len(chunks) else tensor.detach().narrow(axis, 0, 0)
    return chunk.to(device, copy=copy)


def joined(part: Tensor, like: Tensor) -> Tensor:
    """Return `part`, this process's part of something cut as `like` is, as a tensor that `whole` puts together."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def as_trained(model: nn.Module) -> contextlib.AbstractContextManager:
    """Return a context in which `model` holds its parameters as training keeps them; sharded ones may be gathered to predict."""
    method = getattr(type(model), "parts_in_place", None)
    return contextlib.nullcontext() if method is None else method(model)


def whole_to_change(model: nn.Module) -> contextlib.AbstractContextManager:
    """Return a context in which the parameters of `model` are whole and may be changed, such as to initialise them.

    All processes must enter it; each changes its copy in the same way.
    """
    method = getattr(type(model), "whole_weights_to_change", None)
    return contextlib.nullcontext() if method is None else method(model)


def full_model_state(model: nn.Module, *, on_all_ranks: bool = False) -> dict[str, Any]:
    """Return copies of all parameters and buffers on the CPU, whole, by the names of the bare model.

    Names of tied weights share one copy. All processes must call this.

    Args:
        model: Bare or wrapped.
        on_all_ranks: Whether ranks other than 0 get the state too; else they get an empty dictionary.
    """
    bare, keep = unwrap(model), on_all_ranks or is_main_process()
    copies: dict[int, Any] = {}
    state = {}
    with as_trained(model):
        for name, value in bare.state_dict(keep_vars=True).items():
            if id(value) not in copies:
                copies[id(value)] = (value, _copied(value, keep))  # the value too, so that its id stays its own
            state[name] = copies[id(value)][1]
    return state if keep else {}


def load_model_state(model: nn.Module, state: Mapping[str, Any], *, strict: bool = True) -> Any:
    """Copy `state`, whole and by the names of the bare model, into the model; return torch's answer on keys.

    Args:
        model: Bare or wrapped.
        state: As `full_model_state` returns it; every process has it.
        strict: As in ``nn.Module.load_state_dict``.
    """
    bare = unwrap(model)
    with as_trained(model):
        own = bare.state_dict(keep_vars=True)
        parts = {}
        for name, value in state.items():
            target = own.get(name)
            sharded = isinstance(target, DTensor) and target.shape == value.shape
            parts[name] = joined(part_of(value.to(target.dtype), target), target) if sharded else value
        return bare.load_state_dict(parts, strict=strict)


def full_optimizer_state(model: nn.Module, optim_wrapper: OptimWrapper | OptimWrapperDict) -> dict[str, Any]:
    """Return a copy of the optimizer's state as one process alone would write it: whole tensors on the CPU.

    All processes must call this; ranks other than 0 get an empty dictionary.
    """
    keep = is_main_process()
    with as_trained(model):
        state = _mapped(optim_wrapper.state_dict(), lambda value: _copied(value, keep))
    return state if keep else {}


def load_optimizer_state(
    model: nn.Module, optim_wrapper: OptimWrapper | OptimWrapperDict, state: Mapping[str, Any]
) -> None:
    """Load what `full_optimizer_state` returned, whatever number of processes wrote it. `state` is not changed.

    Raises:
        CheckpointError: If it is of an optimizer over other parameters or groups.
    """
    if isinstance(optim_wrapper, OptimWrapperDict):
        for name, wrapper in optim_wrapper.optim_wrappers.items():
            load_optimizer_state(model, wrapper, state[name])
        return
    state = dict(state)
    own_groups = optim_wrapper.optimizer.param_groups
    parameters = [p for group in own_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    counts = [[len(group["params"]) for group in groups] for groups in (state["param_groups"], own_groups)]
    if counts[0] != counts[1]:
        raise CheckpointError(
            f"the optimizer's state is of {len(numbers)} parameters in groups of {counts[0]}, the optimizer has "
            f"{len(parameters)} in groups of {counts[1]}. Restore the config, or remove the run folder."
        )
    owners = dict(zip(numbers, parameters, strict=True))
    state["param_groups"] = [
        {**saved, **{key: own[key] for key in _WAYS_TO_COMPUTE if key in own}}
        for saved, own in zip(state["param_groups"], own_groups, strict=True)
    ]
    with as_trained(model):
        state["state"] = {
            number: {key: _cut(value, owners[number]) for key, value in entry.items()}
            for number, entry in state["state"].items()
        }
        optim_wrapper.load_state_dict(state)


def is_finite(model: nn.Module) -> bool:
    """Whether all parameters are finite; every process gets the same answer, and all of them must call this."""
    with as_trained(model), torch.no_grad():
        parts = [local(p) for p in unwrap(model).parameters()]
        good = torch.stack([torch.isfinite(p).all() for p in parts]).all() if parts else torch.tensor(True)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        good = good.to(torch.uint8)
        dist.all_reduce(good, op=dist.ReduceOp.MIN)
    return bool(good)


def _copied(value: Any, keep: bool) -> Any:
    """Return a copy of one value on the CPU; of a spread one all processes take part and only those that `keep` get it."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    if isinstance(value, DTensor):
        value = value.detach().full_tensor()
    return value.detach().to("cpu", copy=True) if keep else None


def _cut(value: Any, owner: Tensor) -> Any:
    """Return one value of a parameter's optimizer state for this process."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    if isinstance(owner, DTensor) and value.shape == owner.shape:
        return joined(part_of(value, owner), owner)
    return value.detach().clone()


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return nested dictionaries and lists with `function` applied to what they hold."""
    if isinstance(value, dict):
        return {key: _mapped(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, function) for item in value)
    return function(value)
