"""Configs as the command line of the engine takes them: read, and changed by words such as ``k=v``."""

from __future__ import annotations

import ast
from typing import Any

from itkit.artifacts.config import load_config
from itkit.errors import ConfigError

__all__ = ["load_config", "parse_overrides"]


def parse_overrides(items: list[str] | None) -> dict[str, Any]:
    """Turn ``k=v`` words into a dictionary.

    A value is a Python literal where it reads as one (``3``, ``1e-3``, ``[1, 2]``, ``None``, ``true``), else a string.

    Raises:
        ConfigError: If a word has no ``=``.
    """
    result: dict[str, Any] = {}
    for item in items or ():
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise ConfigError(f"--cfg-options {item!r}: write key=value, e.g. optim_wrapper.optimizer.lr=1e-3")
        result[key] = _literal(value)
    return result


def _literal(text: str) -> Any:
    word = {"true": "True", "false": "False", "none": "None", "null": "None"}.get(text.strip().lower(), text)
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return text
