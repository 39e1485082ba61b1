"""What a resumed run would do otherwise than before: found key by key and case by case, and which of it must be asked for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_CONSIDERED = (
    "model",
    "data_preprocessor",
    "optim_wrapper",
    "param_scheduler",
    "auto_scale_lr",
    "precision",
    "sync_bn",
    "compile",
    "efficient_conv_bn_eval",
    "randomness",
    "train_cfg",
    "train_dataloader",
    "val_dataloader",
    "val_evaluator",
)
"""Keys of a config that a training depends on, besides hooks. All others may change freely."""

_WATCHING_HOOKS = (
    "CheckpointHook DataWaitHook DistSamplerSeedHook EarlyStoppingHook EmptyCacheHook IterTimerHook LoggerHook LoggerJSON "
    "MemoryProfilerHook NPUProfilerHook NaiveVisualizationHook NonFiniteLossHook OverlayHook ParamSchedulerHook ProfilerHook "
    "ProgressHook RuntimeInfoHook SegVisualizationHook"
)
"""Hooks without influence on the weights after a given iteration."""

_FREE = re.compile(
    r"train_cfg\.(?!type$).*"
    r"|(train|val)_dataloader\.(num_workers|persistent_workers|prefetch_factor|pin_memory(_device)?|timeout|in_order"
    r"|multiprocessing_context|worker_init_fn|disable_subprocess_warning)"
    r"|(train|val)_dataloader\.batch_size"  # the global batch of training is compared by itself
    r"|(train|val)_dataloader\.dataset(\..*)?\.(cache|cache_limit_mb|lazy_init|serialize_data|test_mode)"
)
_PLACE = re.compile(r"(train|val)_dataloader\.dataset(\..*)?\.data_root")
_ABSENT = object()
_LONGEST_VALUE = 120
_MOST_CASES = 5


@dataclass(frozen=True)
class Change:
    """One difference between the beginning of a run and its continuation.

    Attributes:
        key: Dotted key of the config, or what of the data.
        text: What it was and what it is.
        is_free: Whether it may change without being asked for.
    """

    key: str
    text: str
    is_free: bool = False

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


def describe_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a training depends on in a prepared config, as plain data: classes by name, tuples as lists."""
    tree = {key: _tree(config[key]) for key in _CONSIDERED if config.get(key) is not None}
    hooks: dict[str, Any] = {}
    for hook in [*(config.get("default_hooks") or {}).values(), *(config.get("custom_hooks") or [])]:
        name = _short(_tree(hook.get("type", "?"))) if isinstance(hook, Mapping) else type(hook).__name__
        if hook is not None and name not in _WATCHING_HOOKS.split():
            hooks[name if name not in hooks else f"{name} {len(hooks)}"] = _tree(hook)
    return {**tree, "hooks": hooks}


def config_changes(
    before: Mapping[str, Any], now: Mapping[str, Any], *, known_data: Collection[str] = ()
) -> list[Change]:
    """Return the differences of two configs as `describe_config` gives them, in the order of their keys.

    Free are the length of the training and of its validation intervals, loaders' workers and caches, batches of
    validation, and a schedule whose whole numbers follow the length of the training.

    Args:
        before: When the run began, or was last resumed.
        now: Of this start.
        known_data: Parts (``"train"``, ``"val"``) whose data are compared by content; their folder may change freely.
    """
    lengths = [
        (old.get(key), new.get(key))
        for old, new in [(before.get("train_cfg") or {}, now.get("train_cfg") or {})]
        for key in ("max_iters", "max_epochs")
        if _is_number(old.get(key)) and _is_number(new.get(key))
    ]

    def is_free(key: str, old: Any, new: Any) -> bool:
        bare = re.sub(r"\[\d+\]", "", key)
        place = _PLACE.fullmatch(bare)
        return bool(
            _FREE.fullmatch(bare)
            or (place and place[1] in known_data)
            or (bare.startswith("train_cfg") and _is_the_same_loop(old, new))
            or (bare.startswith("param_scheduler") and any(_follows(old, new, *length) for length in lengths))
        )

    return [
        Change(key, _described(old, new), is_free(key, old, new))
        for key, old, new in _compare("", dict(before), dict(now))
    ]


def data_changes(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    cases_before: Mapping[str, Mapping[str, str]] | None = None,
    cases_now: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Change]:
    """Return the differences of the data.

    Args:
        before: Number of ``cases`` and ``fingerprint`` of each part, see `itkit.mm.provenance.describe_datasets`.
        now: The same of this start.
        cases_before: Part -> case id -> checksum, as known from the start that `before` is of; None if not known.
        cases_now: The same of this start.
    """
    changes = []
    prints = [dict(side.get("fingerprint") or {}) for side in (before, now)]
    counts = [dict(side.get("cases") or {}) for side in (before, now)]
    for part, name in (("train", "training data"), ("val", "validation data")):
        if prints[0].get(part) == prints[1].get(part) and counts[0].get(part) == counts[1].get(part):
            continue
        if part not in counts[0] or part not in counts[1]:
            text = "were not there before" if part in counts[1] else "are gone"
        else:
            text = _case_differences((cases_before or {}).get(part), (cases_now or {}).get(part))
            if counts[0][part] != counts[1][part]:
                text = f"{counts[0][part]} -> {counts[1][part]} samples" + (f"; {text}" if text else "")
            text = text or "the contents differ (which cases is not known)"
        changes.append(Change(name, text))
    return changes


def _case_differences(before: Mapping[str, str] | None, now: Mapping[str, str] | None) -> str:
    if before is None or now is None:
        return ""
    found = {
        "added": [case for case in now if case not in before],
        "removed": [case for case in before if case not in now],
        "changed": [case for case in now if case in before and before[case] != now[case]],
    }
    return "; ".join(f"{len(cases)} {word} ({_some(cases)})" for word, cases in found.items() if cases)


def _some(cases: Sequence[str]) -> str:
    return ", ".join(cases[:_MOST_CASES]) + (", ..." if len(cases) > _MOST_CASES else "")


# ---- trees of plain data ----


def _tree(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _tree(item) for key, item in value.items() if key not in ("_scope_", "_delete_")}
    if isinstance(value, (list, tuple)):
        return [_tree(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return f"<{type(value).__name__}>"


def _compare(key: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if _equal(key, old, new):
        return
    if isinstance(old, dict) and isinstance(new, dict) and _short(old.get("type")) == _short(new.get("type")):
        for name in dict.fromkeys([*old, *new]):
            yield from _compare(f"{key}.{name}" if key else name, old.get(name, _ABSENT), new.get(name, _ABSENT))
    elif isinstance(old, list) and isinstance(new, list) and all(isinstance(item, dict) for item in [*old, *new]):
        yield from _compare_parts(key, old, new)
    else:
        yield key, old, new


def _compare_parts(key: str, old: list[dict], new: list[dict]) -> Iterator[tuple[str, Any, Any]]:
    """Compare two lists of components, such as pipelines, matching those of one type in their order."""
    matcher = difflib.SequenceMatcher(
        None, *[[_short(part.get("type")) for part in side] for side in (old, new)], False
    )
    for kind, i1, i2, j1, j2 in matcher.get_opcodes():
        if kind == "equal":
            for i, j in zip(range(i1, i2), range(j1, j2), strict=True):
                yield from _compare(f"{key}[{j}]", old[i], new[j])
            continue
        for i in range(i1, i2):
            yield f"{key}[{i}]", old[i], _ABSENT
        for j in range(j1, j2):
            yield f"{key}[{j}]", _ABSENT, new[j]


def _equal(key: str, old: Any, new: Any) -> bool:
    if key.endswith("type") and isinstance(old, str) and isinstance(new, str):
        return _short(old) == _short(new)
    return type(old) is type(new) and old == new or (_is_number(old) and _is_number(new) and old == new)


def _short(kind: Any) -> str:
    """The name of a component without its package: a class and its registered name are the same."""
    return kind.rpartition(".")[2] if isinstance(kind, str) else str(kind)


def _is_the_same_loop(old: Any, new: Any) -> bool:
    """Whether only profiling came or went."""
    kinds = [side.get("type") if isinstance(side, dict) else side for side in (old, new)]
    return all(isinstance(kind, str) and _short(kind).startswith("IterBasedTrainLoop") for kind in kinds)


def _follows(old: Any, new: Any, old_length: float, new_length: float) -> bool:
    """Whether a whole number (or each of several) moved with the length of the training, by difference or by ratio."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new) > 0:
        return all(a == b or _follows(a, b, old_length, new_length) for a, b in zip(old, new, strict=True))
    whole = all(_is_number(value) and value == int(value) for value in (old, new))
    if not whole or old < 1 or old_length == new_length:
        return False
    return new - old == new_length - old_length or abs(old * new_length - new * old_length) < old_length


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _described(old: Any, new: Any) -> str:
    if old is _ABSENT:
        return f"added {_shown(new)}"
    if new is _ABSENT:
        return f"removed {_shown(old)}"
    return f"{_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    text = _written(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def _written(value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        inner = ", ".join(f"{name}={_written(item)}" for name, item in value.items() if name != "type")
        return f"{_short(value['type'])}({inner})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_written(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    return repr(value)
