"""The model zoo: a card for every published network, its configurations by name, and the way to build them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError

CARD_MODULES: tuple[str, ...] = (
    "da_transunet",
    "dconnnet",
    "dsnet",
    "efficientformer",
    "efficientformer_v2",
    "efficientnet",
    "ege_unet",
    "lm_net",
    "mednext",
    "moco",
    "moco_v3",
    "segformer",
    "segformer3d",
    "segmamba",
    "swin_umamba",
    "swin_umamba_d",
    "unet3plus",
    "unetr",
    "vmamba",
)
"""Modules that hold a `CARD`, below ``itkit.models``, in the order of the zoo's table."""


@dataclass(frozen=True)
class Configuration:
    """One published (or small) configuration of a network.

    Attributes:
        arguments: Keyword arguments of the card's class (or factory), our names.
        parameters: Number of parameters of the original.
        input_size: Canonical input (C, Z, Y, X) or (C, Y, X) for the cost; None where none was measured.
        gmacs: 10^9 multiply-adds of convolutions, matrix products and attention at `input_size`; None where not measured.
        scan_gflops: 10^9 operations of selective scans besides, B * L * D * (9 * N + 2).
    """

    arguments: Mapping[str, Any]
    parameters: int
    input_size: tuple[int, ...] | None = None
    gmacs: float | None = None
    scan_gflops: float = 0.0


@dataclass(frozen=True)
class NetworkCard:
    """What one should know of a network before using it, and what its tests need.

    Attributes:
        name: Registered name of the class.
        factory: ``module:class`` that is called with a configuration's arguments.
        title: Name as in the paper.
        paper: Authors, venue, year, and where to find it.
        licence: Remark on the original's licence; ours is code of its own.
        dims: Spatial dimensions it can have.
        configurations: Name -> configuration, as the reference figures call them.
        small: Arguments of a network for quick tests: one input channel and two classes where possible.
        small_size: Spatial size of an input for it, as odd as the architecture allows.
        divisor: Sizes must be multiples of it; 1 if any size goes.
        unused: Patterns (fnmatch) of parameters that the original never gives a gradient.
        outputs: Number of outputs in training (deep supervision counted).
        sigmoid: The original returns probabilities; the class has a switch ``logits``, True by default.
        segments: It maps images to label maps of the same size; otherwise it classifies, and is used as an encoder.
        least_batch: Smallest batch that can be trained.
        exports: ``torch.export`` takes it.
        compiles: ``torch.compile`` takes it.
        onnx: ``torch.onnx.export`` takes it.
        notes: Quirks that users should know.
    """

    name: str
    factory: str
    title: str
    paper: str
    licence: str
    dims: tuple[int, ...]
    configurations: Mapping[str, Configuration]
    small: Mapping[str, Any]
    small_size: tuple[int, ...]
    divisor: int = 1
    unused: tuple[str, ...] = ()
    outputs: int = 1
    sigmoid: bool = False
    segments: bool = True
    least_batch: int = 1
    exports: bool = True
    compiles: bool = True
    onnx: bool = True
    notes: tuple[str, ...] = field(default=())

    def build(self, arguments: Mapping[str, Any]) -> nn.Module:
        """Return a network of this kind."""
        module, _, name = self.factory.partition(":")
        return getattr(importlib.import_module(module), name)(**arguments)


def cards() -> dict[str, NetworkCard]:
    """Return every card by the network's name, in the order of the table."""
    found = [importlib.import_module(f"itkit.models.{module}").CARD for module in CARD_MODULES]
    return {card.name: card for card in found}


def configurations() -> dict[str, tuple[NetworkCard, Configuration]]:
    """Return (card, configuration) by the configuration's name."""
    return {name: (card, made) for card in cards().values() for name, made in card.configurations.items()}


def reference(name: str) -> nn.Module:
    """Build a published configuration, with fresh weights; official checkpoints load into it strictly.

    Args:
        name: As in the zoo's table, e.g. ``"MedNeXt_S_k3_in1_c14_ds"``.

    Raises:
        ConfigError: If there is none of that name.
    """
    known = configurations()
    if name not in known:
        raise ConfigError(
            f"no configuration is called {name!r}.{did_you_mean(name, known)} See: python -m itkit.models"
        )
    card, made = known[name]
    return card.build(made.arguments)
