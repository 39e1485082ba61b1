"""Where scalars and pictures of a run go: the engine's visualizer backends that itkit adds."""

from __future__ import annotations

from itkit.mm.visualization.jsonl_backend import JSONLinesVisBackend
from itkit.mm.visualization.tensorboard_backend import TensorboardVisBackend
from itkit.mm.visualization.trackers import MLflowVisBackend, WandbVisBackend

__all__ = ["JSONLinesVisBackend", "MLflowVisBackend", "TensorboardVisBackend", "WandbVisBackend"]
