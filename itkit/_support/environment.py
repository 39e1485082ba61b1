"""Where data live: folders that a config names without knowing the machine."""

from __future__ import annotations

import os
from pathlib import Path

from itkit.errors import ConfigError

DATA_VARIABLE = "ITKIT_DATA"


def data_path(path: str | os.PathLike) -> Path:
    """Return the folder that a config calls `path`.

    Variables (``$NAME``) and ``~`` are expanded. A path that is then still relative is looked for under the folder that
    the environment variable ``ITKIT_DATA`` names.

    Raises:
        ConfigError: If `path` is relative and ``ITKIT_DATA`` is not set, or a named variable is not set.
    """
    expanded = os.path.expanduser(os.path.expandvars(os.fspath(path)))
    if "$" in expanded:
        raise ConfigError(
            f"data root {os.fspath(path)!r} names an environment variable that is not set; export it first."
        )
    if os.path.isabs(expanded):
        return Path(expanded)
    root = os.environ.get(DATA_VARIABLE)
    if not root:
        raise ConfigError(
            f"data root {expanded!r} is relative to the folder of your datasets, and {DATA_VARIABLE} does not say where "
            f"that is. Set it, e.g.: export {DATA_VARIABLE}=$HOME/datasets"
        )
    return Path(root).expanduser().resolve() / expanded
