"""Several networks asked as one: their answers to each batch of windows are averaged before anything is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from itkit.deploy.backends import Backend
from itkit.deploy.recipe import Recipe
from itkit.errors import ConfigError
from itkit.ops.window_means import activated

_ALIKE = (
    "channels",
    "classes",
    "preprocessing",
    "activation",
    "threshold",
    "slice_neighbours",
    "spacing_zyx",
    "orientation",
)
"""What the recipes of all members must have in common."""


class EnsembleBackend:
    """The mean of several networks, e.g. of the folds of a cross-validation.

    Probabilities are averaged; the mean over members and the weighted mean over windows may be taken in any order. Beside the
    running mean only one member's answer to one batch of windows exists.

    Args:
        backends: The members, at least one. Windows, blending and mirroring are those of the first one's recipe.

    Raises:
        ConfigError: If there is none, or recipes disagree in what a network is given or what its answer means.
    """

    name = "ensemble"

    def __init__(self, backends: Sequence[Backend]):
        if not backends:
            raise ConfigError("an ensemble needs at least one model.")
        self._members = tuple(backends)
        first = backends[0].recipe
        for number, backend in enumerate(backends[1:], 2):
            for key in _ALIKE:
                if getattr(backend.recipe, key) != getattr(first, key):
                    raise ConfigError(
                        f"model {number} of the ensemble has {key} {getattr(backend.recipe, key)!r}, the first one has "
                        f"{getattr(first, key)!r}; only models that see and say the same can be averaged."
                    )
        self.recipe: Recipe = first.replaced(
            provenance={"ensemble": [backend.recipe.provenance for backend in backends]},
            average="probabilities" if len(backends) > 1 else first.average,
        )
        self.device = ", ".join(dict.fromkeys(backend.device for backend in backends))
        # Members of one kind on one device share their arrays; others meet in main memory.
        self._is_shared = len({(type(backend), backend.device) for backend in backends}) == 1

    def asarray(self, windows: np.ndarray) -> Any:
        """Return windows as the members take them, or as they are where members differ."""
        return self._members[0].asarray(windows) if self._is_shared else windows

    def forward(self, windows: Any) -> Any:
        """Return logits (B, K, *patch) whose softmax (sigmoid) is the mean of the members' probabilities."""
        if len(self._members) == 1:
            return self._members[0].forward(windows)
        total = None
        for member in self._members:
            logits = member.forward(windows if self._is_shared else member.asarray(windows))
            if not self._is_shared:
                logits = member.to_numpy(logits)
            shares = _by_window(logits, self.recipe.activation)
            if total is None:
                total = shares
            else:
                total += shares
        return _as_logits(total / len(self._members), self.recipe.activation)

    def to_numpy(self, array: Any) -> np.ndarray:
        """Return an array in main memory."""
        return self._members[0].to_numpy(array) if self._is_shared else array

    def is_memory_error(self, error: BaseException) -> bool:
        """Whether `error` says that memory could not be had."""
        return any(member.is_memory_error(error) for member in self._members)

    def release_memory(self) -> None:
        """Let every member give back what it holds in reserve."""
        for member in self._members:
            member.release_memory()


def _by_window(logits: Any, activation: str) -> Any:
    """Return probabilities of logits (B, K, *patch)."""
    if isinstance(logits, np.ndarray):
        return np.stack([activated(one, activation) for one in logits])
    logits = logits.float()
    return logits.softmax(1) if activation == "softmax" else logits.sigmoid()


def _as_logits(shares: Any, activation: str) -> Any:
    tiny = float(np.finfo(np.float32).tiny)
    if isinstance(shares, np.ndarray):
        if activation == "softmax":
            return np.log(np.maximum(shares, tiny))
        shares = np.clip(shares, 1e-7, 1 - 1e-7)
        return np.log(shares / (1 - shares))
    return shares.clamp_min(tiny).log() if activation == "softmax" else shares.logit(eps=1e-7)
