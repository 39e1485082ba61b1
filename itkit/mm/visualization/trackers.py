"""Weights & Biases and MLflow as backends that a config names; their packages are imported when a run uses them."""

from __future__ import annotations

from typing import Any

from mmengine.visualization import MLflowVisBackend as EngineMLflow
from mmengine.visualization import WandbVisBackend as EngineWandb

from itkit._support.optional import require
from itkit.registry import VISBACKENDS


@VISBACKENDS.register_module()
class WandbVisBackend(EngineWandb):
    """MMEngine's backend for Weights & Biases, with a switch for machines without a network.

    Args:
        save_dir: Folder for the local files of W&B.
        offline: Keep everything on the disk; ``wandb sync`` sends it later.
        init_kwargs: Arguments of ``wandb.init``, e.g. ``dict(project="hippocampus")``.
        **kwargs: As in MMEngine.

    Raises:
        MissingDependency: If wandb is not installed.
    """

    def __init__(self, save_dir: str, offline: bool = False, init_kwargs: dict | None = None, **kwargs: Any):
        require("wandb", extra="wandb", purpose="logging to Weights & Biases")
        init_kwargs = dict(init_kwargs or {})
        if offline:
            init_kwargs["mode"] = "offline"
        super().__init__(save_dir, init_kwargs=init_kwargs or None, **kwargs)


@VISBACKENDS.register_module()
class MLflowVisBackend(EngineMLflow):
    """MMEngine's backend for MLflow; without a server it writes below `save_dir`.

    Args:
        save_dir: Folder for the local files of MLflow.
        **kwargs: As in MMEngine: ``exp_name``, ``run_name``, ``tracking_uri``, ``tags``, ...

    Raises:
        MissingDependency: If mlflow is not installed.
    """

    def __init__(self, save_dir: str, **kwargs: Any):
        require("mlflow", extra="mlflow", purpose="logging to MLflow")
        super().__init__(save_dir, **kwargs)
