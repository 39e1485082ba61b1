"""MMEngine's FlexibleRunner trained in parts: its strategy for `RemasteredFSDP`, with checkpoints in the ordinary format."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper
from mmengine.registry import STRATEGIES as ENGINE_STRATEGIES
from torch import nn

from itkit import __version__
from itkit.errors import ConfigError
from itkit.mm import checkpoints
from itkit.mm.model_state import full_model_state, full_optimizer_state, load_model_state, load_optimizer_state
from itkit.mm.strategies.fsdp import RemasteredFSDP
from itkit.mm.strategies.sync_batch_norm import synchronise_batch_norms
from itkit.registry import STRATEGIES

_DDPStrategy: type = ENGINE_STRATEGIES.get("DDPStrategy")


@STRATEGIES.register_module()
@ENGINE_STRATEGIES.register_module()  # FlexibleRunner looks for it before it knows the default scope
class RemasteredFSDP_Strategy(_DDPStrategy):
    """Strategy of MMEngine's ``FlexibleRunner``: the model is wrapped by `RemasteredFSDP` before its optimizer is built.

    ``parallel = "fsdp"`` under `mmrun` is the main road, with everything that `ExperimentRunner` guards; this is for
    projects that run MMEngine's ``FlexibleRunner`` themselves. Checkpoints are written by the first process, whole, with
    the names, shapes and optimizer layout of a single process, and can be read with ``torch.load(weights_only=True)``.
    On one process the model stays as it is.

    ``FlexibleRunner`` hands over neither ``model_wrapper_cfg`` nor, from a config, ``compile``: the wrapper's options are
    arguments here, and compiling is refused.

    Args:
        precision: As in `RemasteredFSDP`; with ``"bf16"`` and ``"fp16"`` choose the optimizer wrapper that goes with it.
        units: As in `RemasteredFSDP`.
        reshard_after_forward: As in `RemasteredFSDP`.
        sync_bn: As at the top level of our configs: True, ``"torch"``, or None.
        compile: Must be False.
        **kwargs: Those that MMEngine's runner passes to a strategy.

    Raises:
        ConfigError: If compiling is asked for.
    """

    def __init__(
        self,
        *,
        precision: str | None = None,
        units: Sequence[str] | None = None,
        reshard_after_forward: bool = True,
        sync_bn: bool | str | None = None,
        compile: bool | dict = False,
        **kwargs: Any,
    ):
        _refuse_to_compile(compile)
        self.options = {"precision": precision, "units": units, "reshard_after_forward": reshard_after_forward}
        super().__init__(sync_bn=sync_bn, **kwargs)

    def _setup_distributed(self, launcher: str = "pytorch", backend: str | None = None, **kwargs: Any) -> None:
        """Join the group: on GPUs as MMEngine does, on CPUs by gloo."""
        if torch.cuda.is_available():
            super()._setup_distributed(launcher, backend or "nccl", **kwargs)
        elif not dist.is_initialized():
            dist.init_process_group("gloo")

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if is_model_wrapper(model):
            return model
        model = model.to(get_device())
        if self.world_size == 1:
            return model
        return RemasteredFSDP(synchronise_batch_norms(model, self.sync_bn), **self.options)

    def compile_model(self, model: nn.Module, compile: dict | bool = False) -> nn.Module:
        """Return the model as it is.

        Raises:
            ConfigError: If it shall be compiled.
        """
        _refuse_to_compile(compile)
        return model

    # ---- states ----

    def model_state_dict(self) -> dict[str, Any]:
        """Return the whole state of the model; on other processes than the first an empty one."""
        return full_model_state(self.model)

    def optim_state_dict(self) -> dict[str, Any]:
        """Return the whole state of the optimizer; on other processes than the first an empty one."""
        return full_optimizer_state(self.model, self.optim_wrapper)

    def load_model_state_dict(
        self, state_dict: dict, *, strict: bool = False, revise_keys: Sequence[tuple[str, str]] = ((r"^module\.", ""),)
    ) -> None:
        """Load a whole state, whatever number of processes wrote it."""
        for pattern, replacement in revise_keys:
            state_dict = {re.sub(pattern, replacement, name): value for name, value in state_dict.items()}
        answer = load_model_state(self.model, state_dict, strict=strict)
        for what, names in (("lacks", answer.missing_keys), ("has besides", answer.unexpected_keys)):
            if names:
                self.logger.warning(
                    f"the checkpoint {what} {len(names)} of the model's weights: {', '.join(names[:5])}"
                )

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load a whole state of the optimizer, whatever number of processes wrote it."""
        load_optimizer_state(self.model, self.optim_wrapper, state_dict)

    def resume(self, filename: str, *, map_location: str | Callable = "default", **kwargs: Any) -> dict:
        """Resume as MMEngine does; the checkpoint stays on the CPU, as it is whole."""
        return super().resume(filename, map_location="cpu" if map_location == "default" else map_location, **kwargs)

    def save_checkpoint(
        self,
        filename: str,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: dict | None = None,
        callback: Callable[[dict], None] | None = None,
    ) -> None:
        """Write a whole checkpoint. All processes must call this; the first one writes.

        Raises:
            OSError: If it cannot be written; what stood at `filename` is untouched.
        """
        state: dict[str, Any] = {"state_dict": self.model_state_dict()}
        if save_optimizer and hasattr(self, "optim_wrapper"):
            state["optimizer"] = self.optim_state_dict()
        if save_param_scheduler and hasattr(self, "param_schedulers"):
            state["param_schedulers"] = self.scheduler_state_dict()
        state.update(extra_ckpt or {})
        state["meta"] = {
            **state.get("meta", {}),
            "seed": self.seed,
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            "itkit": __version__,
        }
        if callback is not None:
            callback(state)
        if is_main_process():
            if "message_hub" in state:  # the logged values are in the logs
                state["message_hub"] = {**state["message_hub"], "log_scalars": {}}
            checkpoints.save(checkpoints.plain(state), Path(filename))


def _refuse_to_compile(compile: bool | dict) -> None:
    if compile is True or (isinstance(compile, dict) and not compile.get("disable", False)):
        raise ConfigError(
            "RemasteredFSDP_Strategy: a model in parts is not compiled; remove compile, or train with MMEngine's DDPStrategy."
        )
