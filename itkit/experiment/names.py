"""From "0.3" to its folder: the rules by which experiments and models are named and found."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from itkit._support.suggestions import nearest
from itkit.errors import ConfigError, ExperimentNotFound, UsageError

SHARED_CONFIG = "mgam.py"
MODEL_SUFFIXES = (".py", ".yaml", ".yml", ".json")
_FOLDER = re.compile(r"(?P<version>\d+(\.\d+)*)\.(?P<suffix>[^\d.][^.]*)")


@dataclass(frozen=True)
class Roots:
    """The three folders of `mmrun`: flags win over environment variables, those over the defaults.

    Attributes:
        configs: Experiments (``mm_configdir``, else ``configs``).
        work: Runs (``mm_workdir``, else ``work_dirs``).
        test: Test results (``mm_testdir``, else ``test`` inside the default work root).
    """

    configs: Path
    work: Path
    test: Path

    @classmethod
    def resolve(cls, configs: str | None = None, work: str | None = None, test: str | None = None) -> Roots:
        """Return absolute roots from flags (None where not given) and the environment."""
        configs = configs or os.environ.get("mm_configdir") or "configs"  # noqa: SIM112 (documented name)
        work = work or os.environ.get("mm_workdir") or "work_dirs"  # noqa: SIM112
        test = test or os.environ.get("mm_testdir") or "work_dirs/test"  # noqa: SIM112
        return cls(*(Path(root).expanduser().resolve() for root in (configs, work, test)))


@dataclass(frozen=True)
class Experiment:
    """One versioned experiment.

    Attributes:
        name: Folder name, e.g. ``"0.3.KiTS"``.
        folder: Where its configs lie.
        shared_config: ``mgam.py``, or None for a single plain config file.
        models: Model name → config file, sorted by name.
    """

    name: str
    folder: Path
    shared_config: Path | None
    models: dict[str, Path]


def version_of(folder_name: str) -> str | None:
    """Return the version in a folder name (``"0.3"`` of ``"0.3.KiTS"``), or None if the name breaks the rule.

    The rule: every element before the last dot is a number, and the last element does not begin with a digit.
    """
    match = _FOLDER.fullmatch(folder_name)
    return match["version"] if match else None


def scan(config_root: Path) -> tuple[list[str], list[str]]:
    """Return the names of the experiment folders and of the folders that break the naming rule, both sorted.

    Folders that begin with ``_`` or ``.`` (such as ``_base_``) are neither.

    Raises:
        ExperimentNotFound: If `config_root` is not a folder.
    """
    if not config_root.is_dir():
        raise ExperimentNotFound(
            f"{config_root}: no such folder of experiments. Name it with --config-root or the variable mm_configdir."
        )
    names = sorted(p.name for p in config_root.iterdir() if p.is_dir() and not p.name.startswith(("_", ".")))
    good = sorted((n for n in names if version_of(n)), key=version_key)
    return good, [n for n in names if not version_of(n)]


def version_key(name: str) -> tuple:
    """Return a key that sorts experiment names by version number, then by name."""
    version = version_of(name) or ""
    return tuple(int(v) for v in version.split(".") if v), name


def find_experiment(name: str, config_root: Path) -> Experiment:
    """Return the experiment that `name` means.

    Args:
        name: A version (``"0.3"``: exactly ``0.3.*``, never ``0.3.1.*``), a full folder name, the path of such a folder,
            or the path of a single config file (a plain MMEngine config), which is then an experiment of one model.
        config_root: Folder of experiments.

    Raises:
        ExperimentNotFound: If nothing, or more than one folder, matches.
        ConfigError: If the folder has no ``mgam.py`` or no model file.
    """
    as_file = Path(name).expanduser()
    if as_file.suffix in MODEL_SUFFIXES and as_file.is_file():
        as_file = as_file.resolve()
        return Experiment(as_file.stem, as_file.parent, None, {as_file.stem: as_file})
    good, broken = scan(config_root)
    if Path(name).is_dir() and Path(name).resolve().parent == config_root.resolve():
        name = Path(name).resolve().name
    name = name.rstrip("/")
    matches = [folder for folder in good if name in (folder, version_of(folder))]
    if len(matches) > 1:
        raise ExperimentNotFound(
            f'{config_root}: "{name}" means more than one experiment: {", ".join(matches)}. Give the full folder name.'
        )
    if not matches:
        raise ExperimentNotFound(_not_found(name, config_root, good, broken))
    folder = config_root / matches[0]
    shared = folder / SHARED_CONFIG
    if not shared.is_file():
        raise ConfigError(f"{folder}: {SHARED_CONFIG} is missing (it holds everything but the model).")
    return Experiment(matches[0], folder, shared, _model_files(folder))


def _model_files(folder: Path) -> dict[str, Path]:
    models: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in MODEL_SUFFIXES or path.name == SHARED_CONFIG or path.name.startswith(("_", ".")):
            continue
        if path.stem in models:
            raise ConfigError(f"{folder}: two files for the model {path.stem}: {models[path.stem].name}, {path.name}.")
        models[path.stem] = path
    if not models:
        raise ConfigError(
            f"{folder}: no model file. Beside {SHARED_CONFIG}, each .py, .yaml or .json file is one model of the experiment."
        )
    return models


def _not_found(name: str, config_root: Path, good: list[str], broken: list[str]) -> str:
    message = f'{config_root}: no experiment matches "{name}"'
    message += f"; found {', '.join(good)}." if good else "; the folder holds no experiment."
    versions = {version_of(folder): folder for folder in good}
    suffixes = {folder.rpartition(".")[2]: folder for folder in good}
    near = nearest(name, [*versions, *good, *suffixes], count=1, cutoff=0.5)
    if near:
        message += f" Did you mean {suffixes.get(near[0], near[0])}?"
    if broken:
        rule = "a name is numbers, a dot and a word that does not begin with a digit"
        message += f" Not experiments, because {rule}: {', '.join(broken)}."
    return message


def select_models(experiment: Experiment, wanted: list[str] | None) -> list[str]:
    """Return the model names to work on, in sorted order.

    Args:
        experiment: The experiment.
        wanted: Names given on the command line, each perhaps several with commas between; None for all. The environment
            variable ``supported_models`` (comma separated) then limits the models to those that it names.

    Raises:
        UsageError: If a wanted model does not exist, or the limit leaves none.
    """
    available = list(experiment.models)
    wanted = [part for name in wanted or () for part in ([name] if name in available else name.split(",")) if part]
    for name in wanted:
        if name not in available:
            near = nearest(name, available, count=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UsageError(f'{experiment.name}: no model "{name}"; found {", ".join(available)}.{hint}')
    chosen = [n for n in available if not wanted or n in wanted]
    limit = os.environ.get("supported_models")  # noqa: SIM112 (documented name)
    if limit:
        allowed = {part.strip() for part in limit.split(",") if part.strip()}
        limited = [n for n in chosen if n in allowed]
        if not limited:
            raise UsageError(
                f"{experiment.name}: the environment variable supported_models={limit!r} leaves none of the models "
                f"{', '.join(chosen)}."
            )
        chosen = limited
    return chosen
