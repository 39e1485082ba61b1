"""Refuse a misspelt config before anything is built: names of keys, components and their arguments."""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from collections.abc import Iterator
from typing import Any

import mmengine.runner  # noqa: F401  (fills MMEngine's own registries)
from mmengine.config import Config
from mmengine.registry import Registry
from torch.utils.data import DataLoader

from itkit import registry as itkit_registry
from itkit._support.suggestions import nearest
from itkit.errors import ConfigError

ENGINE_KEYS = {
    "parallel": ("none", "ddp", "fsdp"),
    "precision": ("fp32", "bf16", "fp16"),
    "compile": None,
    "cpu_threads": None,
    "smoke_iterations": None,
    "sync_bn": (False, True, "torch"),
    "find_unused_parameters": (False, True),
}
RUNNER_KEYS = frozenset(
    [
        "model",
        "work_dir",
        "train_dataloader",
        "val_dataloader",
        "test_dataloader",
        "train_cfg",
        "val_cfg",
        "test_cfg",
        "auto_scale_lr",
        "optim_wrapper",
        "param_scheduler",
        "val_evaluator",
        "test_evaluator",
        "default_hooks",
        "custom_hooks",
        "data_preprocessor",
        "load_from",
        "resume",
        "launcher",
        "env_cfg",
        "log_processor",
        "log_level",
        "visualizer",
        "default_scope",
        "randomness",
        "experiment_name",
        "custom_imports",
        "runner_type",
        "model_wrapper_cfg",
        "activation_checkpointing",
        "efficient_conv_bn_eval",
    ]
)
KNOWN_KEYS = RUNNER_KEYS | set(ENGINE_KEYS)
LOADER_KEYS = frozenset(inspect.signature(DataLoader.__init__).parameters) - {"self"} | {
    "num_batch_per_epoch",
    "disable_subprocess_warning",
}
FIXED_KEYS = {
    "randomness": {"seed", "deterministic", "diff_rank_seed"},
    "env_cfg": {"cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"},
    "loop": {"by_epoch", "max_epochs", "max_iters", "val_begin", "val_interval", "dynamic_intervals", "fp16"},
}
DEFAULT_HOOK_NAMES = frozenset(["runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint"])
RESERVED = frozenset({"type", "_scope_", "_delete_", "_base_"})

_ROLE_OF_KEY = {
    "MODELS": "model backbone neck decode_head auxiliary_head encoder decoder data_preprocessor "
    "criterion losses loss loss_decode",
    "DATASETS": "dataset datasets",
    "TRANSFORMS": "pipeline transforms transform",
    "DATA_SAMPLERS": "sampler batch_sampler",
    "FUNCTIONS": "collate_fn worker_init_fn",
    "OPTIM_WRAPPERS": "optim_wrapper",
    "OPTIMIZERS": "optimizer",
    "PARAM_SCHEDULERS": "param_scheduler",
    "METRICS": "val_evaluator test_evaluator metrics",
    "HOOKS": "default_hooks custom_hooks",
    "VISUALIZERS": "visualizer",
    "VISBACKENDS": "vis_backends",
    "LOG_PROCESSORS": "log_processor",
    "LOOPS": "train_cfg val_cfg test_cfg",
}
ROLES = {key: role for role, keys in _ROLE_OF_KEY.items() for key in keys.split()}
DEFAULT_TYPES = {"OPTIM_WRAPPERS": "OptimWrapper", "LOG_PROCESSORS": "LogProcessor", "VISUALIZERS": "Visualizer"}


def check_config(config: Config) -> None:
    """Check every name in `config`.

    A key at the top level that is not the engine's is a free variable and allowed, unless it differs from one of the
    engine's keys by a slip of the pen. The arguments of each component are held against its signature.

    Raises:
        ConfigError: With all problems, one a line, each with the nearest valid name.
    """
    problems = list(_top_level(config))
    for key in list(config._cfg_dict):
        if key in RUNNER_KEYS:
            role = ROLES.get(key)
            try:
                value = config._cfg_dict[key]
            except ImportError as error:
                problems.append(f"{key}: {_import_problem(error)}")
                continue
            problems += _walk(value, key, role, config.get("default_scope") or itkit_registry.SCOPE)
    problems = list(dict.fromkeys(problems))
    if problems:
        where = f"{config.filename}: " if config.filename else ""
        raise ConfigError(where + (problems[0] if len(problems) == 1 else "\n  " + "\n  ".join(problems)))


def _top_level(config: Config) -> Iterator[str]:
    for key in config._cfg_dict:
        if key not in KNOWN_KEYS and not key.startswith("_"):
            for known in sorted(KNOWN_KEYS):
                if _is_slip(key, known):
                    yield f'unknown key "{key}". Did you mean {known}?'
                    break
    for key, allowed in ENGINE_KEYS.items():
        value = config.get(key)
        if allowed and value is not None and value not in allowed:
            yield f"{key} = {value!r} is not one of {', '.join(map(str, allowed))}."
    for key in ("cpu_threads", "smoke_iterations"):
        count = config.get(key)
        if count is not None and (not isinstance(count, int) or count < 1):
            yield f"{key} = {count!r} is not a positive whole number."


def _is_slip(word: str, known: str) -> bool:
    """Whether `word` is `known` with at most two letters wrong (one, if `known` is short); case and ``_`` do not count."""
    a, b = word.lower().replace("_", ""), known.lower().replace("_", "")
    allowed = 2 if len(b) >= 8 else 1
    return len(b) >= 4 and abs(len(a) - len(b)) <= allowed and edit_distance(a, b) <= allowed


def edit_distance(a: str, b: str) -> int:
    """Return the number of letters to insert, delete, replace or swap with the next one to make `b` of `a`.

    Source: F. Damerau, Communications of the ACM 7(3), 1964 (optimal string alignment).
    """
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row, above = [i], rows[-1]
        for j, y in enumerate(b, 1):
            cost = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y))
            if i > 1 and j > 1 and (x, y) == (b[j - 2], a[i - 2]):
                cost = min(cost, rows[-2][j - 2] + 1)
            row.append(cost)
        rows.append(row)
    return rows[-1][-1]


def _walk(node: Any, path: str, role: str | None, scope: str) -> Iterator[str]:
    if isinstance(node, (list, tuple)):
        for i, item in enumerate(node):
            yield from _walk(item, f"{path}[{i}]", role, scope)
        return
    if not isinstance(node, dict):
        return
    leaf = path.rpartition(".")[2]
    if leaf.endswith("_dataloader"):
        yield from _unknown(node, LOADER_KEYS, path, "a data loader")
    elif leaf in ("randomness", "env_cfg"):
        yield from _unknown(node, FIXED_KEYS[leaf], path, leaf)
    elif role == "LOOPS" and "type" not in node:
        yield from _unknown(node, FIXED_KEYS["loop"], path, "a loop")
    elif leaf == "default_hooks":
        for key in node:
            for known in DEFAULT_HOOK_NAMES - set(node):
                if key not in DEFAULT_HOOK_NAMES and _is_slip(key, known):
                    yield f'{path}: unknown hook "{key}". Did you mean {known}?'
    elif leaf not in ROLES and leaf.endswith("_cfg"):
        return  # a builder's own mini-language (norm_cfg and the like): its keys are not one signature's
    elif "type" in node or role in DEFAULT_TYPES and leaf in ROLES:
        yield from _component(node, path, role, scope)
        scope = _scope_inside(node, scope)
    for key in node:
        try:
            value = node[key]
        except ImportError as error:
            yield f"{path}.{key}: {_import_problem(error)}"
            continue
        child_role = role if leaf == "default_hooks" else ROLES.get(key)
        yield from _walk(value, f"{path}.{key}", child_role, scope)


def _component(node: dict, path: str, role: str | None, scope: str) -> list[str]:
    try:
        kind = node.get("type") or DEFAULT_TYPES.get(role)
    except ImportError as error:
        return [f"{path}.type: {_import_problem(error)}"]
    if isinstance(kind, str):
        try:
            component, candidates = _resolve(kind, role, node.get("_scope_") or scope)
        except ImportError as error:
            return [f"{path}.type: {_import_problem(error)}"]
        if component is None:
            if role is None:
                return []
            near = nearest(kind, candidates)
            listed = (
                f" Did you mean {near[0]}?" + (f" Also near: {', '.join(near[1:])}." if near[1:] else "")
                if near
                else (f" Known: {', '.join(sorted(candidates)[:40])}.")
            )
            return [f'{path}: no component is called "{kind}".{listed}']
    else:
        component = kind
    names, is_open = accepted_arguments(component)
    title = getattr(component, "__name__", str(component))
    if names is not None and role == "OPTIM_WRAPPERS":
        names |= {"constructor", "paramwise_cfg"}  # read by the builder of the wrapper
    return [] if names is None else list(_unknown(node, names, path, title, only_near=is_open))


def _scope_inside(node: dict, scope: str) -> str:
    """Return where the names in a component's arguments are looked up: MMSegmentation for its own and for what wraps them."""
    try:
        kind = node.get("type", "")
    except ImportError:
        return scope
    name = kind if isinstance(kind, str) else f"{getattr(kind, '__module__', '')}.{getattr(kind, '__name__', '')}"
    if name.startswith("mmseg.") or name.rpartition(".")[2] == "MMSegBackboneHead":
        return "mmseg"
    return node.get("_scope_") or scope


def _unknown(node: dict, names: Any, path: str, title: str, *, only_near: bool = False) -> Iterator[str]:
    for key in node:
        if key in names or key in RESERVED:
            continue
        near = nearest(str(key), names, count=1, cutoff=0.8 if only_near else 0.5)
        if near:
            yield f'{path}: {title} has no argument "{key}". Did you mean {near[0]}?'
        elif not only_near:
            yield f'{path}: {title} has no argument "{key}". It takes: {", ".join(sorted(names)) or "none"}.'


def accepted_arguments(component: Any) -> tuple[set[str] | None, bool]:
    """Return the argument names that `component` takes, and whether it passes further ones on to a place unknown.

    For a class with ``**kwargs`` the names of its base classes' constructors count too, as far as each passes them on.
    The names are None if there is no signature to read.
    """
    if not inspect.isclass(component):
        try:
            parameters = inspect.signature(component).parameters.values()
        except (TypeError, ValueError):
            return None, True
        return {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}, any(
            p.kind is p.VAR_KEYWORD for p in parameters
        )
    names: set[str] = set()
    has_kwargs = False
    for cls in component.__mro__:
        if cls is object or "__init__" not in vars(cls):
            continue
        try:
            parameters = list(inspect.signature(vars(cls)["__init__"]).parameters.values())[1:]
        except (TypeError, ValueError):
            return None, True
        names |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
        has_kwargs = True
    return names, has_kwargs


def _resolve(name: str, role: str | None, scope: str) -> tuple[Any, list[str]]:
    registries = (
        [getattr(itkit_registry, role)]
        if role
        else [getattr(itkit_registry, r) for r in ("MODELS", "TRANSFORMS", "DATASETS", "METRICS", "HOOKS")]
    )
    candidates: list[str] = []
    for registry in registries:
        with warnings.catch_warnings():  # a library that is imported here warns of what it lacks itself
            warnings.simplefilter("ignore", UserWarning)
            with registry.switch_scope_and_registry(scope) as scoped:
                component = scoped.get(name)
        if component is not None:
            return component, []
        candidates += known_names(scoped)
    if name.startswith("monai."):
        candidates = [
            f"monai.{n}" for n in itkit_registry.MONAI_MODELS.names() + itkit_registry.MONAI_TRANSFORMS.names()
        ]
    return None, candidates


def known_names(registry: Registry) -> list[str]:
    """Return the names registered in `registry` and its ancestors, after importing where they live."""
    names: list[str] = []
    current: Registry | None = registry
    while current is not None:
        current.import_from_location()
        names += list(current.module_dict)
        current = current.parent
    return names


def _import_problem(error: ImportError) -> str:
    text = str(error)
    found = re.search(r"Failed to import (\S+) from (\S+) in", text)
    if not found:
        return text
    name, module = found.groups()
    public = [n for n in dir(importlib.import_module(module)) if not n.startswith("_")]
    near = nearest(name, public, count=1)
    return f"{text}." + (f" Did you mean {near[0]}?" if near else "")
