"""Training with weights, gradients and optimizer state cut into parts, one for each process (FSDP2)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import get_comm_device
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError, TrainingError
from itkit.mm.model_state import attribute_of, local, part_of
from itkit.mm.precision import usable_precision, warn_of_float32
from itkit.mm.strategies.log_means import LogMeans
from itkit.mm.strategies.recorded_step import LOSS_METHODS, RecordedStep, require_one_optimizer, require_train_step
from itkit.mm.strategies.shared_buffers import buffers_that_differ, take_buffers_of_first
from itkit.registry import MODEL_WRAPPERS

LARGEST_SHARE = 1 / 8
"""A unit holds at most this share of all parameters, unless one layer alone holds more."""
SMALLEST_SHARE = 1 / 64
"""Modules with less than this share of all parameters stay with the root."""
HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_load_state_dict_post_hooks")


@MODEL_WRAPPERS.register_module()
class RemasteredFSDP(nn.Module):
    """A model of which each process keeps one part of every weight, with its gradient and optimizer state (FSDP2).

    Before a unit of the model runs, its weights are gathered from all processes, and freed afterwards; in the backward
    pass its gradients are averaged and each process keeps its part. `train_step` runs the model's own ``train_step``
    (with several forward passes or outputs if it likes) inside one forward pass of this wrapper; the gradients are
    computed outside of it, once the model has named its loss by ``optim_wrapper.update_params``.

    Units are the largest modules that hold at most an eighth of all parameters, looked for from the top. Containers
    (``Sequential``, ``ModuleList``, ``ModuleDict``) are looked into and never units themselves. What holds less than a
    64th, or shares a weight with a module outside, stays with the root, whose weights are whole throughout a step. A unit
    is used by calling it; who reaches for the weights inside in another way gets an error, not a wrong result.
    All processes must run the same units in the same order in every step; this is compared in the steps 1, 2, 4, 8, … of
    each start, for all steps so far.

    ``eval()`` gathers the whole weights on every process, so all of them must call it, as MMEngine's loops do.
    Predicting then needs no communication: processes may have different numbers of cases, or none. It computes in
    float32, whatever training computes in. ``train()`` frees the whole weights.

    Numbers of a step are means over the processes; buffers become those of the first process after each step, as with
    `RemasteredDDP`. Attributes of the model are reachable through the wrapper.

    Args:
        module: The model, on its device. All processes get the weights of the first.
        precision: ``"fp32"``; ``"bf16"`` and ``"fp16"`` gather weights in that type and compute under autocast. The kept
            parts, the averaging of gradients, normalisations with running statistics and all buffers stay in float32.
            ``"fp16"`` needs an optimizer wrapper that scales the loss (``AmpOptimWrapper``).
        units: Names of the modules that are units. None: chosen as above.
        reshard_after_forward: Whether a unit's weights are freed between its forward and its backward pass. False keeps
            them, which costs memory and saves gathering them again.

    Raises:
        ConfigError: If the model has no ``train_step``, a parameter no axis to be cut along, or a name in `units` is no
            module of the model.
    """

    def __init__(
        self,
        module: nn.Module,
        precision: str | None = None,
        units: Sequence[str] | None = None,
        reshard_after_forward: bool = True,
    ):
        super().__init__()
        require_train_step(module)
        self.module = module
        self.precision = usable_precision(precision, next(module.parameters()).device.type)
        if precision not in (None, self.precision) and dist.get_rank() == 0:
            warn_of_float32(precision)
        self.unit_names = choose_units(module) if units is None else _named_units(module, units)
        self._parts: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._idle_hooks: list[tuple[dict, int, Callable, bool]] = []
        self._means = LogMeans()
        self._steps = self._order = 0
        _make_fit_to_be_cut(module)
        for number, name in enumerate(self.unit_names, 1):
            module.get_submodule(name).register_forward_pre_hook(partial(self._note, number))
        present = {key for hooks in self._hooks() for key in hooks}
        self._cut(reshard_after_forward)
        self._cutting_hooks = {key for hooks in self._hooks() for key in hooks} - present
        self._trained = [p for p in module.parameters() if p.requires_grad]
        self._checked_optimizer: Any = None
        self._shared_buffers = buffers_that_differ(module)

    def _cut(self, reshard_after_forward: bool) -> None:
        device = next(self.module.parameters()).device
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        half = HALF_TYPES.get(self.precision)
        policy = MixedPrecisionPolicy(half, torch.float32 if half else None, cast_forward_inputs=False)
        for layer in self.module.modules():
            if half and getattr(layer, "running_mean", None) is not None and next(layer.parameters(), None) is not None:
                fully_shard(layer, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
        for name in self.unit_names:
            unit = self.module.get_submodule(name)
            if not isinstance(unit, FSDPModule):
                fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
        fully_shard(self, mesh=mesh, mp_policy=policy)

    def _hooks(self) -> Iterator[dict]:
        for module in self.modules():
            for name in _HOOKS:
                yield getattr(module, name)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "module" not in self.__dict__.get("_modules", {}):  # while being built
                raise
        found = attribute_of(self._modules["module"], name)
        return self._inside_forward(found) if name in LOSS_METHODS and callable(found) else found

    def _inside_forward(self, method: Callable) -> Callable:
        """Return `method` of the model as a function that calls it inside the forward of this wrapper, where weights are
        gathered.
        """

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                self._require_whole_weights(method.__name__)
                return method(*args, **kwargs)
            self.free_whole_weights()
            with self._computing():
                return self(*args, call=method, **kwargs)

        return call

    # ---- steps ----

    def forward(self, *args: Any, call: Callable | None = None, **kwargs: Any) -> Any:
        """Call the model, or `call`, with weights gathered unit by unit (after ``eval`` they are whole already).

        Raises:
            TrainingError: If this is no training and the whole weights are not here.
        """
        if call is None and not torch.is_grad_enabled():
            self._require_whole_weights("forward")
        return (self.module if call is None else call)(*args, **kwargs)

    def train_step(self, data: Any, optim_wrapper: Any) -> Any:
        """Run the model's ``train_step``, average the gradients over all processes, and let the optimizer step.

        While gradients are accumulated they are averaged in the last iteration only.

        Returns:
            What the model's step returned, numbers as means over the processes.

        Raises:
            ConfigError: If the model's step does not give one loss to ``optim_wrapper.update_params``, or fp16 is trained
                without scaling the loss.
            TrainingError: If weights of a unit are used without calling the unit, or the processes ran other units.
        """
        self.free_whole_weights()
        if self._checked_optimizer is None or self._checked_optimizer is not getattr(optim_wrapper, "optimizer", None):
            require_one_optimizer(optim_wrapper, self._trained, "RemasteredFSDP")
            self._checked_optimizer = optim_wrapper.optimizer
        if self.precision == "fp16" and not hasattr(optim_wrapper, "loss_scaler"):
            raise ConfigError(
                f'RemasteredFSDP: precision = "fp16" needs loss scaling, which {type(optim_wrapper).__name__} does not do; '
                "use AmpOptimWrapper, or bf16."
            )
        step = RecordedStep(self.module, self._trained, optim_wrapper)
        self.set_requires_gradient_sync(optim_wrapper.should_sync())
        with self._computing():
            loss = self(data, call=step)
        self._steps += 1
        if self._steps & (self._steps - 1) == 0:
            self._require_same_order()
        optim_wrapper.update_params(loss, **step.options)
        take_buffers_of_first(self._shared_buffers)
        return self._means(step.outputs)

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Compute a loss in the precision that was asked for."""
        half, device = HALF_TYPES.get(self.precision), self._trained[0].device.type
        with torch.autocast(device, half) if half else contextlib.nullcontext(), _explained(self.unit_names):
            yield

    def _note(self, number: int, *_: Any) -> None:
        """Take note that the unit of this number runs, in a number that depends on all units so far and their order."""
        if not self._parts:
            self._order = (self._order * 1_000_003 + number) % (2**61 - 1)

    def _require_same_order(self) -> None:
        extremes = torch.tensor([self._order, -self._order], device=get_comm_device())
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        if extremes[0] != -extremes[1]:
            raise TrainingError(
                f"step {self._steps} of this start: the processes have not run the same units of {type(self.module).__name__} "
                "in the same order, so weights and gradients of different units were mixed; the step is not taken. A model "
                'that decides by its data which layers to use is trained by parallel = "ddp".'
            )

    def val_step(self, data: Any) -> Any:
        """Predict as the model does; see `test_step`."""
        self._require_whole_weights("val_step")
        return self.module.val_step(data)

    def test_step(self, data: Any) -> Any:
        """Predict as the model does, without communication.

        Raises:
            TrainingError: If the whole weights are not here, because ``eval()`` was not called.
        """
        self._require_whole_weights("test_step")
        return self.module.test_step(data)

    def _require_whole_weights(self, name: str) -> None:
        if not self._parts:
            raise TrainingError(
                f"RemasteredFSDP.{name} without gradients: this process holds a part of the weights only. Call model.eval() "
                "before, on all processes, as MMEngine's loops do."
            )

    # ---- whole weights and parts ----

    def train(self, mode: bool = True) -> RemasteredFSDP:
        """Switch to training (each process frees the whole weights) or, with False, to predicting (they are gathered)."""
        if mode:
            self.free_whole_weights()  # before, so that a model that freezes layers in `train` freezes the parts
        super().train(mode)
        if not mode:
            self.gather_whole_weights()
        return self

    @torch.no_grad()
    def gather_whole_weights(self) -> None:
        """Let the model hold copies of its whole weights, without gradient, as they are now. All processes must call this."""
        self._hold_whole(requires_grad=False)

    @torch.no_grad()
    def free_whole_weights(self) -> None:
        """Let the model hold the parts again; what was done to the whole copies is lost."""
        for module, name, part in self._parts:
            module._parameters[name] = part
        for hooks, key, hook, first in self._idle_hooks:
            hooks[key] = hook
            if first:
                hooks.move_to_end(key, last=False)
        self._parts, self._idle_hooks = [], []

    def _hold_whole(self, *, requires_grad: bool) -> None:
        """Put whole copies in place of the parts, and let FSDP's hooks rest."""
        self.free_whole_weights()
        copies: dict[int, nn.Parameter] = {}
        for module in self.modules():
            for name, part in module._parameters.items():
                if isinstance(part, DTensor):
                    if id(part) not in copies:
                        copies[id(part)] = nn.Parameter(
                            part.detach().full_tensor(), requires_grad and part.requires_grad
                        )
                    self._parts.append((module, name, part))
        for module, name, part in self._parts:
            module._parameters[name] = copies[id(part)]
        for hooks in self._hooks():
            for number, key in enumerate(list(hooks)):
                if key in self._cutting_hooks:
                    self._idle_hooks.append((hooks, key, hooks[key], number == 0))
        for hooks, key, _, _ in self._idle_hooks:
            del hooks[key]

    @contextlib.contextmanager
    def whole_weights_to_change(self) -> Iterator[None]:
        """Within this block the model holds its whole weights; then each process keeps its part of what they have become."""
        self._hold_whole(requires_grad=True)
        try:
            yield
            with torch.no_grad():
                for module, name, part in self._parts:
                    local(part).copy_(part_of(module._parameters[name], part, copy=False))
        finally:
            self.free_whole_weights()

    @contextlib.contextmanager
    def parts_in_place(self) -> Iterator[None]:
        """Within this block the model holds its parts, whatever it held before and holds afterwards."""
        held = [(module, name, part, module._parameters[name]) for module, name, part in self._parts]
        for module, name, part, _ in held:
            module._parameters[name] = part
        try:
            yield
        finally:
            for module, name, _, copy in held:
                module._parameters[name] = copy


def choose_units(model: nn.Module) -> list[str]:
    """Return the names of the modules to be cut as units, as `RemasteredFSDP` says, in the order of the model."""
    sizes = {id(p): p.numel() for p in model.parameters()}
    total = sum(sizes.values())
    names_of: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(f"{path}.")
    units: list[str] = []
    seen: set[int] = set()

    def visit(module: nn.Module, path: str) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        inside = list(module.parameters())
        size = sum(sizes[id(p)] for p in inside)
        if size < SMALLEST_SHARE * total:
            return
        children = [
            (name, child) for name, child in module.named_children() if next(child.parameters(), None) is not None
        ]
        is_whole = all(name.startswith(tuple(paths[id(module)])) for p in inside for name in names_of[id(p)])
        small_enough = size <= LARGEST_SHARE * total or not children
        if module is not model and is_whole and small_enough and not isinstance(module, _CONTAINERS):
            units.append(path)
            return
        for name, child in children:
            visit(child, f"{path}.{name}" if path else name)

    visit(model, "")
    return units


def _named_units(model: nn.Module, names: Sequence[str]) -> list[str]:
    known = [name for name, _ in model.named_modules() if name]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"RemasteredFSDP: units names {name!r}, which is no module of {type(model).__name__}."
                f"{did_you_mean(name, known)}"
            )
        if isinstance(model.get_submodule(name), (nn.ModuleList, nn.ModuleDict)):
            raise ConfigError(
                f"RemasteredFSDP: units names {name!r}, a container that is never called; name its modules."
            )
    return sorted(names, key=lambda name: -name.count("."))  # the inner ones first


def _make_fit_to_be_cut(model: nn.Module) -> None:
    """Give all processes the first one's weights, in the plain layout that FSDP cuts.

    Raises:
        ConfigError: If there is nothing to train, or a parameter without axes.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0:
            raise ConfigError(
                f'parallel = "fsdp": the parameter {name} of {type(model).__name__} is a single number without axes, which '
                'cannot be cut into parts. Give it the shape (1,), or use parallel = "ddp".'
            )
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(
            f"{type(model).__name__} has no parameter that needs a gradient, so there is nothing to train."
        )
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    for tensor in chain(model.parameters(), model.buffers()):
        dist.broadcast(tensor.data, 0)


@contextlib.contextmanager
def _explained(units: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "got mixed torch.Tensor and DTensor" not in str(error):
            raise
        raise TrainingError(
            "a weight was used that is not whole now: it lies in a unit of RemasteredFSDP, and the model reaches into the "
            f"unit instead of calling it. Units are {', '.join(units) or 'none'}; name others by "
            "model_wrapper_cfg=dict(units=[...]) in the config."
        ) from error
