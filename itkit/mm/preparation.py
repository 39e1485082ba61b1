"""Turn a researcher's config into one that the Runner builds: single values interpreted, defaults filled in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from itkit.mm.precision import apply_precision, usable_precision
from itkit.mm.processes import wrapper_config
from itkit.registry import FUNCTIONS, SCOPE

DEFAULT_HOOK_TYPES = {
    "runtime_info": "itkit.RuntimeInfoHook",
    "checkpoint": "itkit.CheckpointHook",
    "logger": "LoggerHook",
    "timer": "IterTimerHook",
    "sampler_seed": "DistSamplerSeedHook",
    "param_scheduler": "ParamSchedulerHook",
}
ENGINE_HOOKS = ("LoggerJSON", "NonFiniteLossHook", "ProgressHook", "DataWaitHook")
SMOKE_ITERATIONS = 3
SMOKE_CASES = 2


def prepare(
    cfg: Config, *, work_dir: Path, detect_anomaly: bool = False, smoke: bool = False, launcher: str = "none"
) -> Config:
    """Complete `cfg` in place and return it.

    Args:
        cfg: A checked config.
        work_dir: Run folder.
        detect_anomaly: Find the operation that makes a gradient NaN (slow).
        smoke: Few iterations of everything (``smoke_iterations`` of the config, else three), two cases of validation and
            test.
        launcher: ``"none"`` or ``"pytorch"``.

    Raises:
        ConfigError: If single values contradict each other or the start.
    """
    cfg.work_dir = str(work_dir)
    cfg.setdefault("default_scope", SCOPE)
    cfg.launcher = launcher
    cfg.resume = False
    cfg.setdefault("env_cfg", {})
    cfg.setdefault("randomness", {"seed": 0})
    if cfg.randomness.get("seed") is None:
        cfg.randomness["seed"] = 0
    if cfg.get("cpu_threads"):
        torch.set_num_threads(cfg.cpu_threads)
    wrapper = wrapper_config(cfg)
    if launcher != "none":
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # as MMEngine does, which warns each time
            os.environ.setdefault(name, "1")
    if wrapper:
        cfg.model_wrapper_cfg = wrapper
    if cfg.get("optim_wrapper") is not None:
        apply_precision(cfg.optim_wrapper, cfg.get("precision"))
    if wrapper and wrapper.get("precision"):  # one that is not usable here was warned about just now
        device = "cuda" if torch.cuda.is_available() else "cpu"
        cfg.model_wrapper_cfg.precision = usable_precision(wrapper["precision"], device)
    if isinstance(cfg.get("compile"), str):
        cfg.compile = {"mode": cfg.compile}
    _loops(cfg)
    _loaders(cfg)
    _hooks(cfg, detect_anomaly)
    _visualizer(cfg, work_dir)
    if smoke:
        _shorten(cfg)
    return cfg


def _loops(cfg: Config) -> None:
    """Give loops without a type our classes, which name failing cases and validate without gradients."""
    train = cfg.get("train_cfg")
    if isinstance(train, dict) and "type" not in train:
        by_epoch = train.pop("by_epoch", not train.get("max_iters"))
        train["type"] = f"{SCOPE}.EpochBasedTrainLoop" if by_epoch else f"{SCOPE}.IterBasedTrainLoop"
    for key, kind in (("val_cfg", "ValLoop"), ("test_cfg", "TestLoop")):
        loop = cfg.get(key)
        if isinstance(loop, dict):
            loop.setdefault("type", f"{SCOPE}.{kind}")


def _loaders(cfg: Config) -> None:
    """Give loaders without a sampler one, and put our scope in front of the name of our collate function.

    MMEngine looks a bare name up in its own scope only, and asks for a sampler in every loader.
    """
    FUNCTIONS.import_from_location()
    by_epoch = _type_name(cfg.get("train_cfg") or {}).startswith("Epoch")
    shuffled = {"type": "DefaultSampler", "shuffle": True} if by_epoch else {"type": f"{SCOPE}.StreamSampler"}
    in_order = {"type": f"{SCOPE}.CaseSampler"}
    for part, sampler in (("train", shuffled), ("val", in_order), ("test", in_order)):
        loader = cfg.get(f"{part}_dataloader")
        if not isinstance(loader, dict):
            continue
        if "batch_sampler" not in loader:
            loader.setdefault("sampler", sampler)
        collate = loader.get("collate_fn")
        if isinstance(collate, dict) and collate.get("type") in FUNCTIONS.module_dict:
            collate["type"] = f"{SCOPE}.{collate['type']}"


def _type_name(hook: Any) -> str:
    kind = hook.get("type", "") if isinstance(hook, dict) else type(hook)
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__


def _hooks(cfg: Config, detect_anomaly: bool) -> None:
    hooks = cfg.get("default_hooks") or {}
    for name, kind in DEFAULT_HOOK_TYPES.items():
        hook = hooks.get(name, {})
        if isinstance(hook, dict) and ("type" not in hook or _type_name(hook) in ("CheckpointHook", "RuntimeInfoHook")):
            hooks[name] = {**hook, "type": kind}
    cfg.default_hooks = hooks
    custom = list(cfg.get("custom_hooks") or [])
    present = {_type_name(h) for h in [*custom, *hooks.values()] if h is not None}
    custom += [{"type": f"{SCOPE}.{name}"} for name in ENGINE_HOOKS if name not in present]
    for hook in custom:
        if detect_anomaly and _type_name(hook) == "NonFiniteLossHook":
            hook["detect_anomaly"] = True
    cfg.custom_hooks = custom


def _visualizer(cfg: Config, work_dir: Path) -> None:
    visualizer = cfg.get("visualizer") or {"type": "Visualizer", "vis_backends": [{"type": "TensorboardVisBackend"}]}
    if not isinstance(visualizer, dict):
        return
    backends = list(visualizer.get("vis_backends") or [])
    if "JSONLinesVisBackend" not in {_type_name(b) for b in backends}:
        backends.insert(0, {"type": f"{SCOPE}.JSONLinesVisBackend"})
    for backend in backends:
        if isinstance(backend, dict) and "save_dir" not in backend:
            name = _type_name(backend).removesuffix("VisBackend").lower()
            backend["save_dir"] = str(work_dir if name in ("jsonlines", "local") else work_dir / name)
    visualizer["vis_backends"] = backends
    cfg.visualizer = visualizer


def _shorten(cfg: Config) -> None:
    loop, iterations = cfg.train_cfg, cfg.get("smoke_iterations") or SMOKE_ITERATIONS
    if loop.get("max_epochs") and not loop.get("max_iters"):
        loop["max_epochs"] = 1
        cfg.train_dataloader["num_batch_per_epoch"] = iterations
        loop["val_interval"] = loop["val_begin"] = 1
    else:
        loop["max_iters"] = iterations
        loop["val_interval"] = iterations
        loop["val_begin"] = 1
    for key in ("val_dataloader", "test_dataloader"):
        loader = cfg.get(key)
        if isinstance(loader, dict) and isinstance(loader.get("dataset"), dict) and "pipeline" in loader["dataset"]:
            loader["dataset"].setdefault("indices", SMOKE_CASES)
