"""Build a network, or another part of a model, from its config: names are looked up in itkit's registry and those it knows."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from itkit._support.suggestions import nearest
from itkit.errors import ConfigError
from itkit.registry import MODELS, MONAI_MODELS


def build_module(part: Mapping | nn.Module, role: str) -> nn.Module:
    """Return the module that `part` is or describes.

    Args:
        part: A module, or ``dict(type=..., ...)``. The type is a class, a registered name (``"SubvoxelUNet"``), or
            one of another library: ``"monai.UNet"``, ``"mmseg.ResNet"``, ``"timm.resnet18"``.
        role: What it is for, the words that messages begin with.

    Raises:
        ConfigError: If the type is missing or unknown (the nearest names are listed), or builds something else.
    """
    if isinstance(part, nn.Module):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not (isinstance(kind, str) or callable(kind)):
        raise ConfigError(f"{role} must be a module or a config dict(type=..., ...), found {part!r}.")
    factory = factory_of(kind)
    if factory is None:
        names = [*MODELS.module_dict, *(f"monai.{name}" for name in MONAI_MODELS.names())]
        found = ", ".join(nearest(kind, names)) or "none"
        raise ConfigError(f"{role}: no model is called {kind!r}. Nearest: {found}.")
    scope = "mmseg" if f"{getattr(factory, '__module__', '')}.".startswith("mmseg.") else "itkit"
    built = MODELS.build({"_scope_": scope, **part})
    if not isinstance(built, nn.Module):
        raise ConfigError(f"{role}: {kind!r} builds a {type(built).__name__}, not a torch module.")
    return built


def factory_of(kind: Any) -> Any:
    """Return the class (or factory) that the ``type`` of a config means: itself, or what is registered so; None if nothing is."""
    if not isinstance(kind, str):
        return kind
    with warnings.catch_warnings():  # on what mmcv lacks, when MMSegmentation is imported for a name of its own
        warnings.simplefilter("ignore", UserWarning)
        try:
            return MODELS.get(kind)
        except RuntimeError:  # how the registry says that a dotted or unknown name leads nowhere
            return None


def argument_names(factory: Any) -> set[str]:
    """Return the names of all arguments that `factory`, or a class that it inherits from, takes."""
    classes = factory.__mro__ if isinstance(factory, type) else (factory,)
    return {name for c in classes for name in inspect.signature(c).parameters}
