"""How many processes there are, and which wrapper around the model lets them share the work."""

from __future__ import annotations

import inspect
import os

from mmengine.config import Config

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError
from itkit.registry import MODEL_WRAPPERS, SCOPE

PARALLEL = {"none": None, "ddp": "RemasteredDDP", "fsdp": "RemasteredFSDP"}
"""Values of the config's `parallel`, and the wrapper that each chooses."""

REPLACED = ("DistributedDataParallel", "MMDistributedDataParallel")
"""Wrappers that a config written for MMEngine may name, and that ours take the place of."""


def world_size() -> int:
    """Number of processes that the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wrapper_config(cfg: Config) -> dict | None:
    """Return the config of the wrapper around the model that `parallel` asks for; None for a single process.

    ``model_wrapper_cfg`` in the config adds options; with a ``type`` of its own that is not one of PyTorch's or MMEngine's,
    it is taken as it is. ``find_unused_parameters = True`` at the top level is an option of ``"ddp"``.

    Raises:
        ConfigError: If `parallel` has an unknown value, several processes were started without saying how they share the
            work, or the wrapper does not know an option.
    """
    parallel = cfg.get("parallel") or "none"
    if parallel not in PARALLEL:
        raise ConfigError(
            f"parallel = {parallel!r} is not one of {', '.join(PARALLEL)}.{did_you_mean(parallel, PARALLEL)}"
        )
    if world_size() == 1:
        return None
    if parallel == "none":
        raise ConfigError(
            f'parallel = "none", but {world_size()} processes were started. Set parallel = "ddp" (or "fsdp") in the config '
            "or by --cfg-options parallel=ddp, or start one process."
        )
    given = dict(cfg.get("model_wrapper_cfg") or {})
    kind = given.pop("type", None)
    name = kind if isinstance(kind, str) or kind is None else kind.__name__
    wrapper = MODEL_WRAPPERS.get(f"{SCOPE}.{PARALLEL[parallel]}")
    if name is not None and name.rpartition(".")[2] not in (*REPLACED, wrapper.__name__):
        return {"type": kind, **given}
    if parallel == "ddp" and cfg.get("find_unused_parameters") is not None:
        given.setdefault("find_unused_parameters", bool(cfg.find_unused_parameters))
    if parallel == "fsdp":
        if cfg.get("compile"):
            raise ConfigError(
                'compile and parallel = "fsdp" exclude each other; remove compile, or use parallel = "ddp".'
            )
        if cfg.get("find_unused_parameters"):
            raise ConfigError(
                'find_unused_parameters and parallel = "fsdp" exclude each other: there all processes must run the same '
                'layers in every step. Remove it, or use parallel = "ddp".'
            )
        given.setdefault("precision", cfg.get("precision"))
    known = {name for base in wrapper.__mro__[:-1] for name in inspect.signature(base.__init__).parameters}
    for key in given:
        if key not in known:
            raise ConfigError(f"model_wrapper_cfg: {wrapper.__name__} has no option {key!r}.{did_you_mean(key, known)}")
    return {"type": wrapper, **given}
