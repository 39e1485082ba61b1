"""What a config amounts to, found out without training: everything built once, the model without memory for its weights."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from itkit import registry
from itkit.errors import ConfigError
from itkit.mm.preparation import ENGINE_HOOKS
from itkit.ops.input_channels import channels_of


def build_on_meta(cfg: Config) -> torch.nn.Module:
    """Build the model on the meta device: all shapes, no memory.

    Raises:
        ConfigError: If the model cannot be built; the reason is the component's own.
    """
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope") or registry.SCOPE), torch.device("meta"):
        try:
            return registry.MODELS.build(cfg.model)
        except (TypeError, ValueError, RuntimeError, KeyError) as error:
            raise ConfigError(f"{cfg.filename}: the model cannot be built: {error}") from error


def count_flops(model: torch.nn.Module, patch: tuple[int, ...], channels: int) -> int | None:
    """Return multiply-adds of one forward pass of one patch (batch 1), as fvcore counts them.

    Args:
        model: A task model, also on the meta device. fvcore runs the network once, so it is given memory for the count;
            its weights are then arbitrary, its integer buffers (which may be indices) zero.
        patch: Spatial size (Z, Y, X) or (Y, X).
        channels: Input channels.

    Returns:
        None if the network cannot be traced.
    """
    network = getattr(model, "backbone", model)
    if any(p.is_meta for p in network.parameters()):
        network = copy.deepcopy(network).to_empty(device="cpu")
        for buffer in network.buffers():
            if not buffer.is_floating_point():
                buffer.zero_()
    device = next(network.parameters()).device
    was_training = network.training
    silent = logging.getLogger("fvcore"), logging.getLogger("torch.jit")
    for logger in silent:
        logger.setLevel(logging.ERROR)
    try:
        analysis = FlopCountAnalysis(network.eval(), torch.zeros(1, channels, *patch, device=device))
        with torch.no_grad():
            return int(analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())
    except (RuntimeError, TypeError, ValueError, NotImplementedError, torch.jit.TracingCheckError):
        return None
    finally:
        network.train(was_training)


def patch_of(cfg: Config) -> tuple[int, ...] | None:
    """Return the patch size of training: that of inference, else the last fixed size in the training pipeline."""
    inference = (cfg.model.get("inference_config") or {}).get("patch_size")
    if inference:
        return tuple(inference)
    sizes = [
        v
        for k, v in _values(cfg.get("train_dataloader") or {})
        if k in ("size", "patch_size", "crop_size") and _is_size(v)
    ]
    return tuple(sizes[-1]) if sizes else None


def describe_plan(cfg: Config) -> str:
    """Build everything that `cfg` names, once, and return the plan as text.

    Raises:
        ItkitError: If a part cannot be built, or the data are not there.
    """
    lines = []
    model = build_on_meta(cfg)
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lines.append(f"model      {type(model).__name__} over {type(getattr(model, 'backbone', model)).__name__}")
    lines.append(f"parameters {parameters:,}" + (f" ({trained:,} trained)" if trained != parameters else ""))
    patch = patch_of(cfg)
    if patch and hasattr(model, "check_output"):
        model.check_output((2, channels_of(model), *patch))
    flops = count_flops(model, patch, channels_of(model)) if patch else None
    if flops is not None:
        lines.append(f"flops      {_with_unit(flops)} multiply-adds for a patch of {' x '.join(map(str, patch))}")
    else:
        lines.append("flops      not known (no patch size in the config, or the network cannot be traced)")
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope") or registry.SCOPE):
        lines += _build_the_rest(cfg, model)
    return "\n".join(f"  {line}" for line in lines)


def _build_the_rest(cfg: Config, model: torch.nn.Module) -> Iterator[str]:
    datasets: dict[str, Any] = {}
    for part in ("train", "val", "test"):
        loader = cfg.get(f"{part}_dataloader")
        if loader is not None:
            dataset = registry.DATASETS.build(loader["dataset"])
            if hasattr(dataset, "full_init"):
                dataset.full_init()
            datasets[part] = dataset
            classes = getattr(dataset, "metainfo", {}).get("classes")
            wanted = getattr(model, "num_classes", None)
            if classes and isinstance(wanted, int) and wanted > 1 and len(classes) != wanted:
                raise ConfigError(
                    f"{cfg.filename}: the model has num_classes = {wanted}, the {part} dataset has {len(classes)} classes: "
                    f"{', '.join(classes[:20])}."
                )
    yield "cases      " + ", ".join(f"{len(dataset)} {part}" for part, dataset in datasets.items())
    if cfg.get("optim_wrapper") is not None:
        wrapper = build_optim_wrapper(model, dict(cfg.optim_wrapper))
        yield f"optimizer  {type(wrapper.optimizer).__name__}, {len(wrapper.optimizer.param_groups)} parameter groups"
    for part in ("val", "test"):
        evaluator = cfg.get(f"{part}_evaluator")
        if evaluator is not None:
            for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
                if "metrics" not in metric:
                    registry.METRICS.build(metric)
    for hook in [*(cfg.get("default_hooks") or {}).values(), *(cfg.get("custom_hooks") or [])]:
        if isinstance(hook, dict) and "type" in hook:
            registry.HOOKS.build(hook)
    loop = cfg.get("train_cfg") or {}
    length = f"{loop['max_iters']} iterations" if loop.get("max_iters") else f"{loop.get('max_epochs')} epochs"
    batch = (cfg.get("train_dataloader") or {}).get("batch_size")
    yield f"training   {length}, batch {batch}, validation every {loop.get('val_interval', 'never')}"
    yield (
        f"engine     parallel {cfg.get('parallel') or 'none'}, precision {cfg.get('precision') or 'fp32'}, "
        f"compile {cfg.get('compile') or 'no'}, hooks {', '.join(ENGINE_HOOKS)} and the config's own"
    )


def _with_unit(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e7 else f"{count / 1e6:.3f} M"


def _is_size(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) in (2, 3) and all(isinstance(v, int) for v in value)


def _values(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from _values(value)
    elif isinstance(node, (list, tuple)):
        for item in node:
            yield from _values(item)
