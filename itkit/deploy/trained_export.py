"""A trained model as an ONNX file: what `itk_infer export` and `mmrun ... --export onnx` do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from itkit._support.optional import require
from itkit.artifacts.checkpoint import sha256
from itkit.deploy.export import TOLERANCE, Exported, export_onnx
from itkit.deploy.predictor import Predictor
from itkit.deploy.recipe import Recipe
from itkit.deploy.trained import Trained, build_model, dataset_of, derive_recipe, of_config, of_experiment
from itkit.errors import UsageError
from itkit.experiment.names import Roots
from itkit.registry import DATASETS, EXPORTERS, SCOPE

_REAL_WINDOWS, _WINDOWS_SEEN = 4, 64
"""Windows of a real case to compare on, and how many are looked at to find those with the most in them."""


@dataclass(frozen=True)
class TrainedExport:
    """What became of a trained model.

    Attributes:
        exported: The file, and how well it was verified.
        recipe: What the file carries.
        case: The real image it was compared on; None: there was none.
        note: Why there was none; empty if there was.
    """

    exported: Exported
    recipe: Recipe
    case: Path | None
    note: str = ""

    def describe(self) -> str:
        """Return in one line how well the file agrees with PyTorch."""
        found = self.exported
        real = f" and {found.real_windows} of {self.case.name}" if self.case else ""
        return (
            f"ONNX Runtime and PyTorch differ by at most {found.largest_difference:.2g} in {found.random_windows} random "
            f"windows{real} (largest logit {found.largest_logit:.3g}, allowed {TOLERANCE * max(1, found.largest_logit):.2g})"
        )

    def as_document(self) -> dict[str, Any]:
        """Return the same as plain data, with the file's checksum."""
        found = self.exported
        return {
            "file": found.path.name,
            "sha256": sha256(found.path),
            "checkpoint": self.recipe.provenance.get("checkpoint"),
            "checkpoint_sha256": self.recipe.provenance.get("checkpoint_sha256"),
            "step": self.recipe.provenance.get("step"),
            "opset": found.opset,
            "largest_difference": found.largest_difference,
            "largest_logit": found.largest_logit,
            "random_windows": found.random_windows,
            "real_windows": found.real_windows,
            "case": self.case and self.case.name,
        }


class LogitsOf(nn.Module):
    """The network of a task model, alone: windows to logits.

    Args:
        model: A task model of itkit.

    Attributes:
        title: What messages call the network.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.title = type(getattr(model, "backbone", model)).__name__

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, K, ...) of windows (B, C, ...)."""
        return self.model(windows, mode="tensor")


def export_trained(
    trained: Trained,
    path: str | os.PathLike,
    *,
    compare_case: bool = True,
    dynamic_size: bool = False,
    opset: int | None = None,
    overwrite: bool = False,
    trust_checkpoint: bool = False,
    say: Callable[[str], None] | None = None,
) -> TrainedExport:
    """Write a trained model to `path` as `itkit.deploy.export.export_onnx` does, with the recipe of its own test pipeline.

    Args:
        trained: The model.
        path: The file, ``.onnx``.
        compare_case: Verify on windows of the first case of the test split too (of the validation split where there is no
            test split), if it can be read.
        dynamic_size: Let the size of windows vary.
        opset: Version of ONNX's operators. None: what torch prefers.
        overwrite: Replace an existing file when the new one is verified.
        trust_checkpoint: Read a checkpoint with Python objects too, which can run code of whoever wrote it.
        say: Called with one line before each step that takes time.

    Raises:
        ItkitError: What is wrong with config or checkpoint, or why there is no file, see `export_onnx`.
    """
    model = build_model(trained, trust=trust_checkpoint)
    recipe = derive_recipe(trained, model)
    case, note, batches = None, "not asked for", []
    if compare_case:
        try:
            case = first_case(trained.config)
            batches = list(richest_windows(case, recipe))
            note = ""
        except Exception as error:  # border: whatever the data are or lack, the model can be exported without them
            case, note = None, " ".join(str(error).split()) or type(error).__name__
    exported = export_onnx(
        LogitsOf(model),
        recipe,
        path,
        real_windows=batches,
        dynamic_size=dynamic_size,
        opset=opset,
        overwrite=overwrite,
        say=say,
    )
    return TrainedExport(exported, recipe, case, note)


def first_case(config: Config) -> Path:
    """Return the image of the first case that the config tests (or validates) on.

    Raises:
        UsageError: If the config tests and validates on nothing.
        ItkitError: If the dataset cannot be found or is empty.
    """
    dataset = dataset_of(config, "test", "val")
    if dataset is None:
        raise UsageError("the config has neither a test_dataloader nor a val_dataloader")
    with DefaultScope.overwrite_default_scope(config.get("default_scope") or SCOPE):
        return Path(DATASETS.build({**dataset, "pipeline": []}).get_data_info(0)["img_path"])


def richest_windows(image: Path, recipe: Recipe) -> Iterator[np.ndarray]:
    """Yield batches (B, C, *patch) of the windows of `image` whose values vary most, made as prediction makes them."""
    recorder = _Recorder(recipe)
    predictor = Predictor(recorder)
    with contextlib.suppress(_SeenEnoughError):
        predictor.segment(predictor.prepare(image), confidence=False)
    windows = sorted(recorder.windows, key=lambda window: -float(window.std()))[:_REAL_WINDOWS]
    size = recipe.forward_batch_windows
    for start in range(0, len(windows), size):
        yield np.stack(windows[start : start + size])


class _SeenEnoughError(Exception):
    """Ends a prediction whose answer nobody wants."""


class _Recorder:
    """Keeps the windows that a predictor asks about, and answers nothing."""

    name, device = "recorder", "cpu"

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.windows: list[np.ndarray] = []

    def asarray(self, windows: np.ndarray) -> np.ndarray:
        return np.array(windows, dtype=np.float32)

    def forward(self, windows: np.ndarray) -> np.ndarray:
        self.windows += list(windows)
        if len(self.windows) >= _WINDOWS_SEEN:
            raise _SeenEnoughError
        return np.zeros((len(windows), self.recipe.num_logits, *windows.shape[2:]), np.float32)

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return array

    def is_memory_error(self, error: BaseException) -> bool:
        return False

    def release_memory(self) -> None:
        return None


@EXPORTERS.register_module()
class OnnxExporter:
    """What `mmrun --export onnx` asks for each model."""

    suffix = ".onnx"

    def require_packages(self) -> None:
        """Raise before anything is trained if what exporting needs is not installed.

        Raises:
            MissingDependency: If onnx, onnxscript or onnxruntime are not installed.
        """
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require(package, extra="export", purpose="exporting networks")

    def export(
        self,
        config: Config,
        checkpoint: Path,
        run_dir: Path,
        *,
        provenance: dict[str, Any],
        sha256_expected: str | None,
        trust_checkpoint: bool,
        say: Callable[[str], None],
    ) -> tuple[str, dict[str, Any]]:
        """Write the model into its run folder, in place of an earlier export; return a line and a document about it."""
        trained = Trained(config, checkpoint, sha256_expected, provenance, run_dir)
        path = run_dir / f"{provenance['model']}{self.suffix}"
        made = export_trained(trained, path, overwrite=True, trust_checkpoint=trust_checkpoint, say=say)
        if made.note:
            say(f"compared on random windows alone: {made.note}")
        return made.describe(), made.as_document()


def export_command(
    *,
    experiment: str | None,
    model: str | None,
    config: str | None,
    checkpoint: str | None,
    last: bool,
    out: str,
    dynamic_size: bool,
    opset: int | None,
    no_case: bool,
    trust_checkpoint: bool,
    config_root: str | None,
    work_dir_root: str | None,
    overwrite: bool,
    say: Callable[[str], None],
) -> tuple[list[str], dict[str, Any]]:
    """Do what `itk_infer export` says; the parameters are those of its declaration.

    Raises:
        UsageError: If neither an experiment nor config and checkpoint are named, or both.
        ItkitError: As `export_trained`.
    """
    if bool(experiment) == bool(config or checkpoint) or bool(config) != bool(checkpoint):
        raise UsageError("name either --experiment (and --model), or both -cfg and -ckpt.")
    if experiment:
        trained = of_experiment(experiment, model, roots=Roots.resolve(config_root, work_dir_root), last=last)
    elif model or last:
        raise UsageError("--model and --last choose within an --experiment; they say nothing beside -cfg and -ckpt.")
    else:
        trained = of_config(config, checkpoint)
    made = export_trained(
        trained,
        out,
        compare_case=not no_case,
        dynamic_size=dynamic_size,
        opset=opset,
        overwrite=overwrite,
        trust_checkpoint=trust_checkpoint,
        say=say,
    )
    if made.note and not no_case:
        say(f"compared on random windows alone: {made.note}")
    return [os.fspath(made.exported.path), made.describe()], {
        "path": os.fspath(made.exported.path),
        **made.as_document(),
    }
