"""Training with a copy of the model on each process, gradients averaged, whatever the model's own step computes."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from itkit.errors import TrainingError
from itkit.mm.model_state import attribute_of
from itkit.mm.strategies.log_means import LogMeans
from itkit.mm.strategies.recorded_step import LOSS_METHODS, RecordedStep, require_one_optimizer, require_train_step
from itkit.mm.strategies.shared_buffers import buffers_that_differ, take_buffers_of_first
from itkit.registry import MODEL_WRAPPERS

_WITHOUT_GRADIENT = re.compile(r"indices which did not receive grad for rank \d+: ([\d ]+)")


@MODEL_WRAPPERS.register_module()
class RemasteredDDP(DistributedDataParallel):
    """PyTorch's `DistributedDataParallel` that runs a model's whole training step inside its forward.

    ``train_step`` calls the model's own ``train_step`` with a stand-in for the optimizer wrapper, which records the loss
    given to ``update_params``. So several forward passes, auxiliary outputs and losses of any kind all take part in the
    reduction of gradients; the backward pass and the real update follow. What a step must not do, because it would train
    each process apart (a backward pass or an optimizer's step of its own, several updates or none, several optimizers), is
    refused. As a last resort the weights of all processes are compared after the updates 1, 2, 4, 8, ….

    The numbers of a step are the means over the processes. ``val_step``, ``test_step`` and all attributes are the model's;
    ``module`` is the model itself, so that names of weights are its own. The model's ``training_loss`` and ``loss``, called
    through the wrapper as in a loop of one's own, run inside its forward too.

    Args:
        module: The model, with a ``train_step`` as MMEngine calls it, on its device.
        device_ids: As in PyTorch; left out for a model on a CPU, for which MMEngine's own runner gives the process's number.
        find_unused_parameters: Look in each step for trained parameters without part in the loss. Costs time; needed if
            there are such parameters in any step on any process.
        broadcast_buffers: After each step give all processes the buffers of the first one (running statistics), so that
            validation does not depend on the process. Buffers of synchronised normalisation are equal anyway.
        **kwargs: As in PyTorch.

    Raises:
        ConfigError: If the model has no ``train_step``, or its step cannot be reduced.
        TrainingError: If a trained parameter got no gradient, or the processes' weights differ.
    """

    def __init__(
        self,
        module: nn.Module,
        device_ids: list | None = None,
        *,
        find_unused_parameters: bool = False,
        broadcast_buffers: bool = True,
        **kwargs: Any,
    ):
        require_train_step(module)
        if all(parameter.device.type == "cpu" for parameter in module.parameters()):
            device_ids = None
        super().__init__(module, device_ids, find_unused_parameters=find_unused_parameters, **kwargs)
        self.broadcast_buffers = False  # in each forward; they are taken after the step instead
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self._trained_names = [name for name, _ in named]
        self._trained = [parameter for _, parameter in named]
        self._shared_buffers = buffers_that_differ(module) if broadcast_buffers else []
        self._means = LogMeans()
        self._updates = 0
        self._guarded_optimizer: Any = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_modules" not in self.__dict__ or "module" not in self._modules:  # while being built
                raise
        found = attribute_of(self._modules["module"], name)
        return self._inside_forward(found) if name in LOSS_METHODS and callable(found) else found

    def _inside_forward(self, method: Callable) -> Callable:
        """Return `method` of the model as a function that calls it inside the forward of this wrapper, so that the gradients
        of what it returns are reduced.
        """

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return method(*args, **kwargs)
            with self._running(method):
                return self(*args, **kwargs)

        return call

    # ---- steps ----

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> Any:
        """Train on one batch and return what the model's step returns, numbers as means over the processes.

        Args:
            data: A batch, as the loader gave it.
            optim_wrapper: Over one optimizer.
        """
        self._check_optimizer(optim_wrapper)
        step = RecordedStep(self.module, self._trained, optim_wrapper)
        syncs = optim_wrapper.should_sync()
        with contextlib.nullcontext() if syncs else self.no_sync(), self._running(step):
            loss = self(data)
        optim_wrapper.update_params(loss, **step.options)
        take_buffers_of_first(self._shared_buffers, self.process_group)
        if syncs:
            self._updates += 1
            if self._updates & (self._updates - 1) == 0:
                self._require_equal_weights()
        return self._means(step.outputs)

    def val_step(self, data: Any) -> Any:
        """Return the model's predictions for a batch of the validation."""
        return self.module.val_step(data)

    def test_step(self, data: Any) -> Any:
        """Return the model's predictions for a batch of the test."""
        return self.module.test_step(data)

    @contextlib.contextmanager
    def _running(self, step: Callable) -> Iterator[None]:
        """Let ``forward`` call `step` where it would call the model."""
        model = self._modules["module"]
        self._modules["module"] = step  # type: ignore[assignment]
        try:
            yield
        finally:
            self._modules["module"] = model

    # ---- checks ----

    def _check_optimizer(self, optim_wrapper: OptimWrapper) -> None:
        """Look once at the optimizer, and be called before each of its steps from then on."""
        if self._guarded_optimizer is not None and self._guarded_optimizer is getattr(optim_wrapper, "optimizer", None):
            return
        require_one_optimizer(optim_wrapper, self._trained, "RemasteredDDP")
        self._guarded_optimizer = optim_wrapper.optimizer
        self._guarded_optimizer.register_step_pre_hook(self._require_reduced_gradients)

    def _require_reduced_gradients(self, *_: Any) -> None:
        """Raise if the backward pass left gradients that are this process's alone."""
        try:
            self._check_reducer_finalized()
        except RuntimeError as error:
            found = _WITHOUT_GRADIENT.search(str(error))
            numbers = [int(n) for n in found.group(1).split()] if found else []
            names = [self._trained_names[n] for n in numbers if n < len(self._trained_names)]
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "not known which"
            raise TrainingError(
                f"{len(names) or 'some'} trained parameters of {type(self.module).__name__} got no gradient: {shown}. Each "
                "must take part in each loss on each process. If they are not meant to in every step, set "
                "find_unused_parameters = True in the config; if never, freeze them (requires_grad_(False))."
            ) from error

    @torch.no_grad()
    def _require_equal_weights(self) -> None:
        """Raise, on all processes, if a parameter is not the same to the bit everywhere."""
        digest = torch.stack([_bits(parameter).sum(dtype=torch.int64) for parameter in self._trained])
        everyone = [torch.empty_like(digest) for _ in range(dist.get_world_size(self.process_group))]
        dist.all_gather(everyone, digest, group=self.process_group)
        differ = (torch.stack(everyone) != digest).any(0).nonzero().flatten().tolist()
        if differ:
            names = ", ".join(self._trained_names[i] for i in differ[:5])
            raise TrainingError(
                f"after update {self._updates} of this start the weights of the processes differ in {len(differ)} "
                f"parameters ({names}): {type(self.module).__name__} changes them outside of optim_wrapper.update_params, in "
                "a way that depends on the process. Compute one loss, or train on one process."
            )


def _bits(tensor: Tensor) -> Tensor:
    """Return the bits of `tensor` as integers of its width."""
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).contiguous().reshape(-1)
    return flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
