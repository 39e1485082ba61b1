"""How many channels a network takes, asked of its own parts."""

from __future__ import annotations

import torch


def channels_of(model: torch.nn.Module) -> int:
    """Return the input channels of the first convolution or linear layer of a model; 1 if it has neither."""
    stated = getattr(getattr(model, "backbone", model), "in_channels", None)
    if isinstance(stated, int):
        return stated
    for module in model.modules():
        width = getattr(module, "in_channels", None) or getattr(module, "in_features", None)
        if isinstance(width, int):
            return width
    return 1
