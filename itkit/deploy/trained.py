"""Find a trained model - an experiment's best checkpoint, or a config and a checkpoint - and derive its recipe."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from itkit import __version__
from itkit._support.environment import data_path
from itkit.artifacts.checkpoint import bare_weights, load, sha256, weight_differences
from itkit.artifacts.config import load_config
from itkit.deploy.post_file import POST_FILE, read_post
from itkit.deploy.recipe import Recipe
from itkit.errors import CheckpointError, ConfigError, ItkitError
from itkit.experiment.names import Experiment, Roots, find_experiment, select_models
from itkit.experiment.state import RunState
from itkit.io.orientation import orientation
from itkit.io.preprocessing import steps_of_pipeline
from itkit.io.volumes import read_header
from itkit.io.windows import axis_triple
from itkit.measures.postprocessing import check_steps
from itkit.ops.input_channels import channels_of
from itkit.process.documents import META_NAME
from itkit.registry import DATASETS, MODELS, SCOPE

_HEADERS = 50
"""Training images whose headers are looked at."""


@dataclass(frozen=True)
class Trained:
    """A config, a checkpoint, and where they come from.

    Attributes:
        config: The whole config.
        checkpoint: File of the weights.
        sha256: The checksum that the checkpoint was recorded with; None: none is recorded.
        provenance: Facts for the recipe.
        run_dir: The run's folder, where the model is one of an experiment; else None.
    """

    config: Config
    checkpoint: Path
    sha256: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    run_dir: Path | None = None


def of_experiment(name: str, model: str | None = None, *, roots: Roots | None = None, last: bool = False) -> Trained:
    """Return the best checkpoint of a model of an experiment.

    Args:
        name: As `mmrun` takes it: ``"1.0"``, a folder's name or path.
        model: Name of the model; None where the experiment has only one.
        roots: Where configs and runs are; None: those of the environment.
        last: Take the last checkpoint instead of the best.

    Raises:
        ExperimentNotFound, UsageError: If there is no such experiment or model, or several to choose from.
        CheckpointError: If it has not been trained.
    """
    roots = roots or Roots.resolve()
    experiment = find_experiment(name, roots.configs)
    if model is None and len(experiment.models) > 1:
        raise ConfigError(
            f"{experiment.name} has {len(experiment.models)} models; name one: {', '.join(experiment.models)}."
        )
    model = select_models(experiment, None if model is None else [model])[0]
    run_dir = roots.work / experiment.name / model
    state = RunState.load(run_dir)
    last = last or (state.best is None and state.last is not None)
    checkpoint, step = state.checkpoint(run_dir, last=last)
    record = (state.last if last else state.best) or {}
    facts = {"experiment": experiment.name, "model": model, "step": step}
    config = load_config(experiment, model)
    return Trained(config, checkpoint, record.get("sha256"), facts, run_dir)


def of_config(config: str | Path | Config, checkpoint: str | Path) -> Trained:
    """Return a config (a file, or a loaded one) and a checkpoint that belong together.

    Raises:
        ConfigError: If the file is missing or cannot be read.
        CheckpointError: If there is no such checkpoint.
    """
    facts: dict[str, Any] = {}
    if not isinstance(config, Config):
        path = Path(config)
        if not path.is_file():
            raise ConfigError(f"{path}: there is no such config.")
        config = load_config(Experiment(path.stem, path.resolve().parent, None, {path.stem: path.resolve()}), path.stem)
        facts["model"] = path.stem
    checkpoint = Path(checkpoint)
    if not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint}: there is no such checkpoint.")
    return Trained(config, checkpoint, None, facts)


def build_model(trained: Trained, *, trust: bool = False) -> torch.nn.Module:
    """Return the task model with the weights of the checkpoint.

    Args:
        trained: What to build.
        trust: Read checkpoints with Python objects too, which can run code of whoever wrote them.

    Raises:
        ConfigError: If the model cannot be built or is no task model of itkit.
        CheckpointError: If the checkpoint is damaged, or its keys or shapes are those of another model.
        UntrustedCheckpoint: If it holds objects that could run code, and is not trusted.
    """
    config = trained.config
    where = config.filename or "the config"
    if config.get("model") is None:
        raise ConfigError(f"{where}: defines no model.")
    with DefaultScope.overwrite_default_scope(config.get("default_scope") or SCOPE):
        try:
            model = MODELS.build(config.model)
        except ItkitError:
            raise
        except Exception as error:  # whatever a user's network raises must name the config
            raise ConfigError(f"{where}: the model cannot be built: {type(error).__name__}: {error}") from error
    if not hasattr(model, "window_logits") or not hasattr(model, "inference_config"):
        raise ConfigError(
            f"{where}: model is a {type(model).__name__}, which is no task model of itkit; wrap the network in SemSeg3D or "
            "SemSeg2D."
        )
    preprocessor = type(getattr(model, "data_preprocessor", None)).__name__
    if preprocessor != "VolumeDataPreprocessor":
        raise ConfigError(
            f"{where}: the model's data_preprocessor is a {preprocessor}; prediction knows VolumeDataPreprocessor alone, which "
            "changes no value. Do its work in the pipeline."
        )
    checkpoint = load(trained.checkpoint, sha256_expected=trained.sha256, trusted=trust)
    weights = bare_weights(checkpoint)
    differences = weight_differences(model.state_dict(), weights)
    if differences:
        raise CheckpointError(f"{trained.checkpoint}: is of another model. {differences}")
    model.load_state_dict(weights)
    return model.eval()


def derive_recipe(trained: Trained, model: torch.nn.Module) -> Recipe:
    """Return the recipe of a task model, made of the experiment's own test pipeline and the model's inference settings.

    Raises:
        ConfigError: If the config has no test pipeline, or one with a step that cannot be done outside of it.
    """
    config = trained.config
    dataset = _test_dataset(config)
    try:
        steps, in_slices = steps_of_pipeline(dataset.get("pipeline") or ())
    except ConfigError as error:
        raise ConfigError(f"{config.filename}: {error}") from error
    steps = _oriented(steps, config)
    settings = model.inference_config
    neighbours = _neighbours(model, in_slices)
    network_channels = channels_of(model)
    seen = 2 * (neighbours or 0) + 1
    if network_channels % seen:
        raise ConfigError(f"{config.filename}: {network_channels} input channels are not those of {seen} slices.")
    single = model.num_classes == 1
    classes = _class_names(config, dataset, 2 if single else model.num_classes)
    is_2d = neighbours is not None
    patch, stride = settings.patch_size, settings.patch_stride
    if patch is not None:
        patch = (1, *axis_triple("patch_size", patch, 2)) if is_2d else axis_triple("patch_size", patch, 3)
    if stride is not None:
        stride = (1, *axis_triple("patch_stride", stride, 2)) if is_2d else axis_triple("patch_stride", stride, 3)
    post: list[dict[str, Any]] = []
    if trained.run_dir is not None:
        post = _post_of_run(trained, len(classes))
    return Recipe(
        channels=network_channels // seen,
        classes=classes,
        preprocessing=steps,
        activation="sigmoid" if single else "softmax",
        threshold=model.binary_segment_threshold if single else None,
        patch_size_zyx=patch,
        patch_stride_zyx=stride,
        blending=settings.blending,
        sigma_scale=settings.sigma_scale,
        padding=settings.padding,
        flip_axes=_flip_axes(settings.flip_axes, is_2d),
        average="probabilities" if settings.averages_probabilities else "logits",
        forward_batch_windows=settings.forward_batch_windows
        if patch is not None
        else settings.slice_batch
        if is_2d
        else 1,
        slice_neighbours=neighbours,
        postprocessing=post,
        spacing_zyx=next(
            (step["spacing_zyx"] for step in reversed(steps) if step["type"] == "ResampleToSpacing"), None
        ),
        orientation=next((step["orientation"] for step in reversed(steps) if step["type"] == "Orient"), None),
        provenance={
            **trained.provenance,
            "checkpoint": trained.checkpoint.name,
            "checkpoint_sha256": trained.sha256 or sha256(trained.checkpoint),
            "config_sha256": config_digest(config),
            "itkit": __version__,
            "torch": torch.__version__,
        },
    )


def _oriented(steps: list[dict[str, Any]], config: Config) -> list[dict[str, Any]]:
    """Return the steps with one that turns images to the orientation of the training data, unless they turn images already.

    A network knows left from right only as its training data showed them. Where these have one orientation, the step does
    nothing to them, and lets images of any other be predicted as well.
    """
    if any(step["type"] == "Orient" for step in steps):
        return steps
    try:
        found = orientations_of_data(config)
    except Exception as error:  # border: a dataset may be anybody's, and the images may be elsewhere
        warnings.warn(
            f"the orientation of the training data is not known ({error}); images are taken as they lie. If theirs may differ, "
            "say it (orientation=, --orientation), or put the transform Orient into the pipelines.",
            stacklevel=4,
        )
        return steps
    if len(found) != 1:
        return steps  # the network has seen several, and must do with any
    first = 1 if steps and steps[0]["type"] == "LoadVolume" else 0
    return [*steps[:first], {"type": "Orient", "orientation": found.pop()}, *steps[first:]]


def orientations_of_data(config: Config) -> set[str]:
    """Return the orientations of the training images, by the headers of some of them that are spread evenly.

    Raises:
        ItkitError: If there is no training, or its data are not here.
        Exception: Whatever a dataset that is none of itkit's raises.
    """
    dataset = dataset_of(config, "train")
    if dataset is None:
        raise ConfigError("the config defines no train_dataloader")
    with DefaultScope.overwrite_default_scope(config.get("default_scope") or SCOPE):
        built = DATASETS.build({**dataset, "pipeline": []})
    built.full_init()
    paths = list(dict.fromkeys(built.get_data_info(index)["img_path"] for index in range(len(built))))
    step = max(1, len(paths) // _HEADERS)
    return {orientation(read_header(path)) for path in paths[::step]}


def config_digest(config: Config) -> str:
    """Return the SHA-256 of a config's content, which does not depend on where its files lie."""
    return hashlib.sha256(json.dumps(_tree(config.to_dict()), sort_keys=True).encode()).hexdigest()


def _tree(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(key): _tree(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_tree(item) for item in node]
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    return f"{getattr(node, '__module__', '')}.{getattr(node, '__qualname__', type(node).__qualname__)}"


def dataset_of(config: Config, *parts: str) -> Mapping[str, Any] | None:
    """Return the config of the first dataset that one of the loaders of `parts` names; of several joined ones the first."""
    for part in parts:
        loader = config.get(f"{part}_dataloader")
        dataset = None if loader is None else loader.get("dataset")
        while isinstance(dataset, Mapping) and "pipeline" not in dataset:
            inner = dataset.get("dataset") or next(iter(dataset.get("datasets") or ()), None)
            if inner is None:
                break
            dataset = inner
        if isinstance(dataset, Mapping):
            return dataset
    return None


def _test_dataset(config: Config) -> Mapping[str, Any]:
    dataset = dataset_of(config, "test", "val")
    if dataset is None or dataset.get("pipeline") is None:
        raise ConfigError(
            f"{config.filename}: neither test_dataloader nor val_dataloader has a dataset with a pipeline, so nobody knows how "
            "an image becomes the network's input."
        )
    return dataset


def _neighbours(model: torch.nn.Module, in_slices: int | None) -> int | None:
    """How many neighbouring slices a network of slices sees at each side; None for a network of volumes."""
    if 5 in model.input_axes and in_slices is None:
        return None
    if 4 not in model.input_axes:
        raise ConfigError(f"the test pipeline takes slices, but {type(model).__name__} predicts volumes.")
    return in_slices if in_slices is not None else getattr(model, "neighbours", 0)


def _flip_axes(flip_axes: Sequence[Any], is_2d: bool) -> tuple:
    """Axes of the recipe, where 0 is Z, of those of a network whose first axis may be Y."""
    shift = 1 if is_2d else 0
    return tuple(
        entry + shift if isinstance(entry, int) else tuple(axis + shift for axis in entry) for entry in flip_axes
    )


def class_names(config: Config) -> tuple[str, ...] | None:
    """Return the names of the classes that the config's dataset tells, background first; None if it does not."""
    return _names_of(_test_dataset(config))


def validation_cases(config: Config) -> list[tuple[str, str, str | None]]:
    """Return case id, image and label (None without one) of the cases that the config's validation uses.

    Raises:
        ConfigError: If there is no validation, or its dataset cannot be built.
        DataError: If the data are not here.
    """
    loader = config.get("val_dataloader")
    if loader is None:
        raise ConfigError(f"{config.filename}: defines no val_dataloader, so there are no validation cases.")
    with DefaultScope.overwrite_default_scope(config.get("default_scope") or SCOPE):
        dataset = DATASETS.build({**loader["dataset"], "pipeline": []})
    dataset.full_init()
    found: dict[str, tuple[str, str, str | None]] = {}
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        found.setdefault(info["case_id"], (info["case_id"], info["img_path"], info.get("seg_map_path")))
    return list(found.values())


def _names_of(dataset: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = dataset.get("classes") or (dataset.get("metainfo") or {}).get("classes")
    if names is None and dataset.get("data_root") is not None:
        with contextlib.suppress(ItkitError, OSError, ValueError, KeyError, TypeError):
            names = json.loads((data_path(dataset["data_root"]) / META_NAME).read_text(encoding="utf-8"))["classes"]
    return None if names is None else tuple(str(name) for name in names)


def _class_names(config: Config, dataset: Mapping[str, Any], count: int) -> tuple[str, ...]:
    names = _names_of(dataset)
    if names is None:
        return ("background", *(f"class_{number}" for number in range(1, count)))
    if len(names) != count:
        raise ConfigError(f"{config.filename}: the model tells {count} classes apart, the dataset names {len(names)}.")
    return names


def _post_of_run(trained: Trained, num_classes: int) -> list[dict[str, Any]]:
    found = read_post(trained.run_dir)
    if found is None:
        return []
    if found.get("checkpoint_sha256") != (trained.sha256 or sha256(trained.checkpoint)):
        warnings.warn(
            f"{trained.run_dir / POST_FILE}: was tuned for another checkpoint and is not used; run itk_infer tune-post again.",
            stacklevel=3,
        )
        return []
    check_steps(found["steps"], num_classes)
    return list(found["steps"])
