"""Weights & Biases and MLflow as backends that a config names; their packages are imported when a run uses them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
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
    """MMEngine's backend for MLflow; without a server it writes a database and the artifacts below `save_dir`.

    Args:
        save_dir: Folder for the local files of MLflow.
        tracking_uri: Where MLflow keeps runs. None: the environment variable ``MLFLOW_TRACKING_URI``, else
            ``<save_dir>/mlflow.db``.
        tracked_config_keys: Top-level keys of the config that are logged as parameters.
        **kwargs: As in MMEngine: ``exp_name``, ``run_name``, ``tags``, ...

    Raises:
        MissingDependency: If mlflow is not installed.
    """

    def __init__(
        self,
        save_dir: str,
        tracking_uri: str | None = None,
        tracked_config_keys: Sequence[str] = ("model", "optim_wrapper", "train_cfg", "param_scheduler"),
        **kwargs: Any,
    ):
        require("mlflow", extra="mlflow", purpose="logging to MLflow")
        folder = Path(save_dir).absolute()
        tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not tracking_uri:
            tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
            kwargs.setdefault("artifact_location", (folder / "artifacts").as_uri())
        super().__init__(save_dir, tracking_uri=tracking_uri, tracked_config_keys=tracked_config_keys, **kwargs)

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """Log a picture (H, W, 3), uint8, as a PNG file; MLflow wants a file name with an ending."""
        super().add_image(name if Path(name).suffix else f"{name}_{step}.png", image, step, **kwargs)

    def close(self) -> None:
        """Log the run's files and end it, once; logging after the end would begin another run."""
        super().close()
        if hasattr(self, "_mlflow"):
            del self._mlflow
            self._env_initialized = False
