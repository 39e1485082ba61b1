"""The documented plug-in names in one place; each is imported from its own file when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "mgam_OptimWrapperConstructor": "itkit.mm.optim",
    "IterBasedTrainLoop": "itkit.mm.loops",
    "IterBasedTrainLoop_SupportProfiler": "itkit.mm.loops",
    "StreamSampler": "itkit.mm.samplers",
    "CaseSampler": "itkit.mm.samplers",
    "RuntimeInfoHook": "itkit.mm.hooks.runtime_info",
    "LoggerJSON": "itkit.mm.hooks.logger_json",
    "EarlyStoppingHook": "itkit.mm.hooks.early_stopping",
    "EMAHook": "itkit.mm.hooks.ema",
    "DataWaitHook": "itkit.mm.hooks.data_wait",
    "NonFiniteLossHook": "itkit.mm.hooks.nonfinite",
    "ProgressHook": "itkit.mm.hooks.progress",
    "RemasteredDDP": "itkit.mm.strategies.ddp",
    "RemasteredFSDP": "itkit.mm.strategies.fsdp",
    "RemasteredFSDP_Strategy": "itkit.mm.strategies.fsdp_strategy",
    "multi_sample_collate": "itkit.dataset.collate",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
