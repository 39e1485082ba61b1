"""Run a model's own training step without letting it train: what it hands to the optimizer is recorded instead."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from itkit.errors import ConfigError

_CONTRACT = (
    "With several processes a step must compute one loss and give it to optim_wrapper.update_params(loss) once; the "
    "backward pass, the reduction of gradients and the update follow by themselves."
)

LOSS_METHODS = ("training_loss", "loss")
"""Methods by which a model computes losses; a wrapper calls them inside its forward, or gradients would not be reduced."""


class RecordingOptimWrapper(OptimWrapper):
    """Stands in for an optimizer wrapper during a step: keeps the loss, passes contexts and learning rates on.

    Args:
        wrapper: The real one; nothing of it changes.
        who: Name of the model's class, for messages.

    Attributes:
        loss: What `update_params` was given; None before.
        options: Further keyword arguments of that call.
    """

    def __init__(self, wrapper: OptimWrapper, who: str):
        self._wrapper, self._who = wrapper, who
        self.loss: Tensor | None = None
        self.options: dict[str, Any] = {}

    def update_params(self, loss: Tensor, step_kwargs: dict | None = None, zero_kwargs: dict | None = None) -> None:
        """Keep the loss.

        Raises:
            ConfigError: If it is the second one of this step, or no differentiable number.
        """
        if self.loss is not None:
            raise ConfigError(f"{self._who}.train_step calls optim_wrapper.update_params more than once. {_CONTRACT}")
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            found = (
                f"shape {tuple(loss.shape)}, requires_grad={loss.requires_grad}"
                if isinstance(loss, Tensor)
                else f"a {type(loss).__name__}"
            )
            raise ConfigError(
                f"{self._who}.train_step gives optim_wrapper.update_params {found}; it needs one differentiable number."
            )
        self.loss, self.options = loss, {"step_kwargs": step_kwargs, "zero_kwargs": zero_kwargs}

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter the real wrapper's context, such as autocast."""
        with self._wrapper.optim_context(model):
            yield

    def should_update(self) -> bool:
        """As the real wrapper answers now, before the step."""
        return self._wrapper.should_update()

    def should_sync(self) -> bool:
        """As the real wrapper answers."""
        return self._wrapper.should_sync()

    @property
    def inner_count(self) -> int:
        """Steps so far."""
        return self._wrapper.inner_count

    @property
    def param_groups(self) -> list[dict]:
        """The optimizer's parameter groups, to be read."""
        return self._wrapper.param_groups

    @property
    def defaults(self) -> dict:
        """The optimizer's defaults, to be read."""
        return self._wrapper.defaults

    def get_lr(self) -> dict[str, list[float]]:
        """Return the learning rates."""
        return self._wrapper.get_lr()

    def get_momentum(self) -> dict[str, list[float]]:
        """Return the momenta."""
        return self._wrapper.get_momentum()

    @property
    def optimizer(self) -> Any:
        """Not handed out: stepping it would train this process apart from the others."""
        self._refuse("optimizer")

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Refused."""
        self._refuse("backward")

    def step(self, **kwargs: Any) -> None:
        """Refused."""
        self._refuse("step")

    def zero_grad(self, **kwargs: Any) -> None:
        """Refused."""
        self._refuse("zero_grad")

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Refused: `update_params` scales."""
        self._refuse("scale_loss")

    def _refuse(self, name: str) -> None:
        raise ConfigError(f"{self._who}.train_step uses optim_wrapper.{name}, which is not possible here. {_CONTRACT}")


class RecordedStep:
    """One training step of a model as a function from data to the loss.

    Args:
        model: The user's model.
        parameters: Its trained parameters.
        optim_wrapper: The real optimizer wrapper.

    Attributes:
        outputs: What the step returned, once it has been called.
        options: Keyword arguments for the real ``update_params``.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter], optim_wrapper: OptimWrapper):
        self.model, self.parameters, self.optim_wrapper = model, parameters, optim_wrapper
        self.outputs: Any = None
        self.options: dict[str, Any] = {}

    def __call__(self, data: Any) -> Tensor:
        """Return the loss that the model's step computes from `data`.

        Raises:
            ConfigError: If the step does more or less than giving one loss to ``optim_wrapper.update_params``.
        """
        who = type(self.model).__name__
        stand_in = RecordingOptimWrapper(self.optim_wrapper, who)
        before = [(p.grad, None if p.grad is None else p.grad._version) for p in self.parameters]
        with _no_optimizer_steps(who):
            self.outputs = self.model.train_step(data, optim_wrapper=stand_in)
        for parameter, (grad, version) in zip(self.parameters, before, strict=True):
            if parameter.grad is not grad or (grad is not None and grad._version != version):
                raise ConfigError(f"{who}.train_step runs a backward pass itself. {_CONTRACT}")
        if stand_in.loss is None:
            raise ConfigError(f"{who}.train_step does not call optim_wrapper.update_params. {_CONTRACT}")
        self.options = stand_in.options
        return stand_in.loss


def require_train_step(model: nn.Module) -> None:
    """Raise ConfigError unless `model` has a ``train_step``."""
    if not callable(getattr(model, "train_step", None)):
        raise ConfigError(
            f"{type(model).__name__} has no train_step(data, optim_wrapper), so it cannot be trained by the engine. Derive it "
            "from mmengine.model.BaseModel, or write one that gives its loss to optim_wrapper.update_params."
        )


def require_one_optimizer(optim_wrapper: Any, parameters: Sequence[nn.Parameter], who: str) -> None:
    """Raise ConfigError unless `optim_wrapper` holds one optimizer that trains nothing but `parameters`.

    Args:
        optim_wrapper: What the runner passes to a training step.
        parameters: Those of the wrapped model that need a gradient.
        who: Name of the wrapper's class, for messages.
    """
    if not isinstance(optim_wrapper, OptimWrapper) or isinstance(optim_wrapper, OptimWrapperDict):
        raise ConfigError(
            f"{who} trains with one optimizer, found {type(optim_wrapper).__name__}. Train this model on one process, or "
            "give all its parameters to one optimizer (paramwise_cfg tells parts apart)."
        )
    known = {id(parameter) for parameter in parameters}
    trained = [p for group in optim_wrapper.param_groups for p in group["params"] if p.requires_grad]
    foreign = [tuple(p.shape) for p in trained if id(p) not in known]
    if foreign:
        raise ConfigError(
            f"the optimizer trains {len(foreign)} parameters whose gradients are not reduced (shapes "
            f"{', '.join(map(str, foreign[:3]))}): they are not the model's, or were frozen when it was wrapped. Build the "
            "optimizer over the wrapped model, and unfreeze parameters before."
        )


@contextlib.contextmanager
def _no_optimizer_steps(who: str) -> Iterator[None]:
    """Refuse the step of any optimizer within this block, before it changes a weight."""

    def refuse(optimizer: Any, args: Any, kwargs: Any) -> None:
        raise ConfigError(f"{who}.train_step steps an optimizer itself ({type(optimizer).__name__}). {_CONTRACT}")

    handle = register_optimizer_step_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()
