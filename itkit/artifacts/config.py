"""Read the config of one model, with errors that name file and line."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from itkit.errors import ConfigError
from itkit.experiment.names import Experiment

READ_BASE_HINT = "A model config begins with: with read_base(): from .mgam import *"


def load_config(experiment: Experiment, model: str, overrides: dict[str, Any] | None = None) -> Config:
    """Return the whole config of a model: ``mgam.py``, the model file, then `overrides`.

    Args:
        experiment: Where the files are.
        model: Name of the model.
        overrides: Dotted keys and values of ``--cfg-options``.

    Raises:
        ConfigError: If a file cannot be parsed or executed; the message names file and line.
    """
    path = experiment.models[model]
    if path.suffix == ".py" or experiment.shared_config is None:
        config = _read(path, experiment)
    else:
        config = _read(experiment.shared_config, experiment)
        config.merge_from_dict(_read_document(path))
        object.__setattr__(config, "_filename", str(path))  # Config's own __setattr__ would make a config key of it
    if config.get("custom_imports"):
        try:
            import_modules_from_strings(**config.custom_imports)
        except (ImportError, TypeError) as error:
            raise ConfigError(f"{path}: custom_imports: {' '.join(str(error).split())}") from error
    if overrides:
        try:
            config.merge_from_dict(overrides)
        except (KeyError, TypeError, IndexError, AssertionError) as error:
            raise ConfigError(
                f"--cfg-options {_as_text(overrides)}: does not fit the config of {path.name}: {error}"
            ) from error
    return config


def _as_text(overrides: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in overrides.items())


def _read(path: Path, experiment: Experiment) -> Config:
    try:
        return Config.fromfile(str(path))
    except SyntaxError as error:
        file, line = _syntax_error_place(error, path, experiment)
        end = "" if error.msg.endswith((".", "?", "!")) else "."
        raise ConfigError(f"{file}, line {line}: {error.msg}{end} Nothing was run.") from error
    except (Exception, SystemExit) as error:  # border: whatever a user's config raises becomes one clear line
        raise ConfigError(
            f"{_runtime_error_place(error, path, experiment)}: {type(error).__name__}: {error}"
        ) from error


def _read_document(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}: {error.msg}.") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{path}, line {line}: {error.problem}.") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: holds {type(document).__name__}, not key: value pairs.")
    document.pop("_base_", None)
    return document


def _config_files(path: Path, experiment: Experiment) -> list[Path]:
    shared = [experiment.shared_config] if experiment.shared_config else []
    return [path, *shared, *sorted((experiment.folder.parent / "_base_").rglob("*.py"))]


def _syntax_error_place(error: SyntaxError, path: Path, experiment: Experiment) -> tuple[Path, int | str]:
    for file in _config_files(path, experiment):
        if file.suffix == ".py":
            try:
                compile(file.read_text(encoding="utf-8"), str(file), "exec")
            except SyntaxError as found:
                return file, found.lineno or "?"
    return path, error.lineno or "?"


def _runtime_error_place(error: BaseException, path: Path, experiment: Experiment) -> str:
    files = {str(file) for file in _config_files(path, experiment)}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in files or Path(frame.filename).parent == path.parent:
            return f"{frame.filename}, line {frame.lineno}"
    return str(path)
