"""Trained models that cost nothing: a run whose weights were drawn, and networks of a few NumPy operations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tiny_experiment import make_data, make_experiment

from itkit.deploy.recipe import Recipe
from itkit.experiment.names import Roots, find_experiment

CLASSES = ("background", "small", "large")


def make_trained(root: Path, *, extra: str = "", model: str = "unet", seed: int = 0, data: bool = True) -> Roots:
    """Write data, an experiment ``0.1.Tiny`` and a run with a checkpoint that was never trained; return the roots.

    The caller sets ``ITKIT_DATA`` to `root`.
    """
    import torch

    from itkit.artifacts.config import load_config
    from itkit.experiment.state import RunState
    from itkit.mm import checkpoints
    from itkit.registry import MODELS

    if data and not (root / "Tiny").exists():
        make_data(root)
    roots = Roots(root / "configs", root / "work", root / "test")
    if not (root / "configs" / "0.1.Tiny").exists():
        make_experiment(root, models=(model,), extra=extra)
    elif not (root / "configs" / "0.1.Tiny" / f"{model}.py").exists():
        text = (root / "configs" / "0.1.Tiny" / "unet.py").read_text()
        (root / "configs" / "0.1.Tiny" / f"{model}.py").write_text(text)
    experiment = find_experiment("0.1", roots.configs)
    torch.manual_seed(seed)
    built = MODELS.build(load_config(experiment, model).model)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(3.0)  # so that no class always wins
    run_dir = roots.work / experiment.name / model
    path = run_dir / "checkpoints" / "best_iter_8.pth"
    path.parent.mkdir(parents=True)
    digest = checkpoints.save({"state_dict": built.state_dict(), "meta": {"iter": 8}}, path)
    record = {"step": 8, "metric": "Dice", "value": 0.5, "checkpoint": f"checkpoints/{path.name}", "sha256": digest}
    RunState(experiment.name, model, state="trained", step=8, max_steps=8, best=record, last=record).save(run_dir)
    return roots


def write_post(run_dir: Path, steps: list[dict], sha256: str) -> None:
    (run_dir / "post.json").write_text(json.dumps({"steps": steps, "checkpoint_sha256": sha256}))


class NumpyBackend:
    """A network in NumPy: each class looks at another neighbour, so that no axis and no side is like another.

    Args:
        recipe: Its recipe; changes on top of a plain one.
    """

    name, device = "numpy", "cpu"

    def __init__(self, recipe: Recipe | None = None, **changes):
        plain = Recipe(channels=1, classes=CLASSES, average="logits")
        self.recipe = (recipe or plain).replaced(**changes)
        self.batches: list[int] = []
        self.most_windows: int | None = None

    def asarray(self, windows):
        return windows

    def forward(self, windows):
        self.batches.append(len(windows))
        if self.most_windows is not None and len(windows) > self.most_windows:
            raise MemoryError("not so many")
        value = windows.astype(np.float32).sum(axis=1)
        axes = tuple(range(1, value.ndim))
        moved = [value, *(np.roll(value, number, axis) for number, axis in enumerate(axes, 1))]
        logits = [0.3 * value, moved[1] - 0.5 * moved[-1], moved[-1] - 0.25 * value + 0.1 * moved[1]]
        return np.stack(logits[: self.recipe.num_logits], axis=1).astype(np.float32)

    def to_numpy(self, array):
        return np.asarray(array)

    def is_memory_error(self, error):
        return isinstance(error, MemoryError)

    def release_memory(self):
        pass
