"""Bend the grey scale: intensities to a random power."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from itkit.errors import ConfigError
from itkit.registry import TRANSFORMS
from itkit.transforms.base import RandomTransform, probability, value_range
from itkit.transforms.sample import Sample, float_image


@TRANSFORMS.register_module()
class RandomGamma(RandomTransform):
    """Raise each channel, scaled to [0, 1] by its own extremes, to a random power and scale it back.

    Args:
        gamma: Power, (low, high), above 0. Its logarithm is drawn evenly, so that brightening and darkening are equally
            likely where low is 1 / high.
        prob: Chance to be applied.
        invert_prob: Chance to bend the bright end instead: the scale is turned around before and after.
        keep_statistics: Restore each channel's mean and standard deviation afterwards.

    Raises:
        ConfigError: If a power is not above 0 or a chance is no probability.
    """

    def __init__(
        self,
        gamma: float | Sequence[float] = (0.7, 1.5),
        prob: float = 1.0,
        *,
        invert_prob: float = 0.0,
        keep_statistics: bool = False,
    ):
        super().__init__(prob)
        self.gamma = value_range("gamma", gamma, self)
        if self.gamma[0] <= 0:
            raise ConfigError(f"RandomGamma: gamma must be above 0; found {gamma!r}.")
        self.invert_prob = probability("invert_prob", invert_prob, self)
        self.keep_statistics = keep_statistics

    def draw(self, results: Sample, rng: np.random.Generator) -> dict[str, Any] | None:
        """Draw the power and the direction."""
        if not self.happens(rng):
            return None
        gamma = float(np.exp(rng.uniform(*np.log(self.gamma))))
        return {
            "gamma": gamma,
            "invert": bool(rng.random() < self.invert_prob),
            "keep_statistics": self.keep_statistics,
        }

    @staticmethod
    def apply(results: Sample, params: dict[str, Any]) -> Sample:
        """Bend."""
        channels = []
        for channel in float_image(results):
            low, high = channel.min(), channel.max()
            if not high > low:
                channels.append(channel)
                continue
            unit = (high - channel if params["invert"] else channel - low) / (high - low)
            np.power(unit, np.float32(params["gamma"]), out=unit)
            unit *= high - low
            bent = high - unit if params["invert"] else unit + low
            if params["keep_statistics"]:
                bent = (bent - bent.mean()) * (channel.std() / max(bent.std(), np.float32(1e-8))) + channel.mean()
            channels.append(bent)
        results["img"] = np.stack(channels)
        return results
