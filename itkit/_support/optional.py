"""Import packages that only some users need, with an error that says how to get them."""

from __future__ import annotations

import importlib
from types import ModuleType

from itkit.errors import MissingDependency


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import and return `module`.

    Args:
        module: Dotted module name.
        extra: The extra of itkit that installs it, e.g. ``"wandb"``.
        purpose: Completes the sentence "needed for ...".

    Raises:
        MissingDependency: If the package (or a package that it needs) is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependency(module.partition(".")[0], extra, purpose) from error
