"""Random transforms draw first and apply second, so that what was done can be recorded and done again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from itkit.errors import ConfigError
from itkit.registry import TRANSFORMS
from itkit.transforms.sample import Sample


class RandomTransform(BaseTransform):
    """A transform whose randomness is drawn from the sample's own generator before anything is changed.

    A subclass implements `draw` and `apply`. `apply` uses nothing but the sample and the drawn parameters, which makes
    `replay` work on the record alone.

    Args:
        prob: Chance that the transform is applied to a sample, 0 to 1.

    Raises:
        ConfigError: If `prob` is no probability.
    """

    def __init__(self, prob: float = 1.0):
        self.prob = probability("prob", prob, self)

    def happens(self, rng: np.random.Generator) -> bool:
        """Draw whether the transform is applied; always consumes one number."""
        return bool(rng.random() < self.prob)

    @abstractmethod
    def draw(self, results: Sample, rng: np.random.Generator) -> dict[str, Any] | None:
        """Return everything that `apply` needs to know, or None if nothing is to be done. Changes only `rng`."""

    @staticmethod
    @abstractmethod
    def apply(results: Sample, params: dict[str, Any]) -> Sample:
        """Change the sample as `params` say. The same sample and parameters give the same result, bit for bit."""

    def transform(self, results: Sample) -> Sample:
        """Draw, record in ``applied``, apply.

        Raises:
            ConfigError: If the sample carries no generator.
        """
        rng = results.get("rng")
        if rng is None:
            raise ConfigError(
                f"{type(self).__name__} is random and the sample has no generator: set results['rng'] to a "
                "numpy.random.Generator (the datasets of itkit do)."
            )
        params = self.draw(results, rng)
        if params is None:
            return results
        results["applied"] = [*results.get("applied", ()), (type(self).__name__, params)]
        return self.apply(results, params)

    def __repr__(self) -> str:
        """Name and arguments."""
        arguments = ", ".join(f"{key}={value!r}" for key, value in vars(self).items() if not key.startswith("_"))
        return f"{type(self).__name__}({arguments})"


def replay(results: Sample, applied: Sequence[tuple[str, dict[str, Any]]]) -> Sample:
    """Do to a sample what was done to another one.

    Args:
        results: The sample, as it was before the first entry of `applied`. Its arrays are not modified.
        applied: The record that random transforms left under ``applied``.

    Returns:
        The sample after all entries; its own ``applied`` is extended by them.

    Raises:
        ConfigError: If a recorded name is no random transform of the registry.
    """
    results = dict(results)
    for name, params in applied:
        kind = TRANSFORMS.get(name)
        if kind is None or not issubclass(kind, RandomTransform):
            raise ConfigError(f"cannot replay {name!r}: no random transform of that name is registered.")
        results["applied"] = [*results.get("applied", ()), (name, params)]
        results = kind.apply(results, params)
    return results


def probability(name: str, value: float, owner: Any) -> float:
    """Return `value` if it lies between 0 and 1.

    Raises:
        ConfigError: If it does not.
    """
    if not (isinstance(value, (int, float)) and 0 <= value <= 1):
        raise ConfigError(f"{type(owner).__name__}: {name} must be between 0 and 1; found {value!r}.")
    return float(value)


def value_range(
    name: str, value: float | Sequence[float], owner: Any, *, around: float | None = None, least: float | None = None
) -> tuple[float, float]:
    """Return (low, high) from two numbers, or from one.

    Args:
        name: What to call it in a message.
        value: Two numbers, low and high; or one number d, which means ``around - d .. around + d``, or without `around`
            exactly d.
        owner: The transform it belongs to.
        around: See `value`.
        least: Smallest value allowed.

    Raises:
        ConfigError: If low is above high, a number is not finite, or one lies below `least`.
    """
    if isinstance(value, (int, float)):
        low, high = (value, value) if around is None else (around - value, around + value)
    else:
        if len(value) != 2:
            raise ConfigError(f"{type(owner).__name__}: {name} must be one number or (low, high); found {value!r}.")
        low, high = value
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ConfigError(f"{type(owner).__name__}: {name} must be finite with low <= high; found {value!r}.")
    if least is not None and low < least:
        raise ConfigError(f"{type(owner).__name__}: {name} must not go below {least}; found {value!r}.")
    return float(low), float(high)
