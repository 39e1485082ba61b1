"""From a trained model to whoever needs it: files in, segmentations out. Importing this room loads no torch."""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "Predictor": "itkit.deploy.predictor",
    "Prediction": "itkit.deploy.predictor",
    "Recipe": "itkit.deploy.recipe",
}

__all__ = ["Prediction", "Predictor", "Recipe"]


def __getattr__(name: str) -> Any:
    """Import what is asked for, not before."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
