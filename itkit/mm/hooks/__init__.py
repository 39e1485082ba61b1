"""Hooks of the engine, one idea a file."""

from itkit.mm.hooks.checkpoint import CheckpointHook
from itkit.mm.hooks.data_wait import DataWaitHook
from itkit.mm.hooks.early_stopping import EarlyStoppingHook
from itkit.mm.hooks.ema import EMAHook
from itkit.mm.hooks.logger_json import LoggerJSON
from itkit.mm.hooks.nonfinite import NonFiniteLossHook
from itkit.mm.hooks.overlays import OverlayHook
from itkit.mm.hooks.progress import ProgressHook
from itkit.mm.hooks.runtime_info import RuntimeInfoHook

__all__ = [
    "CheckpointHook",
    "DataWaitHook",
    "EMAHook",
    "EarlyStoppingHook",
    "LoggerJSON",
    "NonFiniteLossHook",
    "OverlayHook",
    "ProgressHook",
    "RuntimeInfoHook",
]
