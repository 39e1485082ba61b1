"""Several samples from one loaded volume, so that reading it pays more than once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmcv.transforms import BaseTransform

from itkit.errors import ConfigError
from itkit.registry import TRANSFORMS
from itkit.transforms.compose import Compose
from itkit.transforms.sample import Sample, child_generators


@TRANSFORMS.register_module()
class MultiSample(BaseTransform):
    """Run the same transforms several times on a sample, each time with an own generator; returns a list.

    The generators are drawn from the sample's ``rng``, so the n-th sample does not depend on what the others did. The
    loader's collate function must accept lists of samples (`multi_sample_collate`).

    Args:
        num_samples: How many, at least 1.
        transforms: The pipeline that each of them goes through.

    Raises:
        ConfigError: If `num_samples` is below 1, or the sample has no generator.
    """

    def __init__(self, num_samples: int, transforms: Sequence[dict | Callable[[Sample], object]]):
        if num_samples < 1:
            raise ConfigError(f"MultiSample: num_samples must be at least 1; found {num_samples}.")
        self.num_samples = num_samples
        self.inner = Compose(transforms)

    def transform(self, results: Sample) -> list[Sample]:
        """Return the samples, in order; those that a transform gave up are missing."""
        if results.get("rng") is None:
            raise ConfigError(
                "MultiSample needs the sample's generator: set results['rng'] to a numpy.random.Generator (the "
                "datasets of itkit do)."
            )
        samples: list[Sample] = []
        for generator in child_generators(results["rng"], self.num_samples):
            made = self.inner({**results, "rng": generator})
            samples.extend([] if made is None else made if isinstance(made, list) else [made])
        return samples

    def __repr__(self) -> str:
        """Name and arguments."""
        return f"MultiSample(num_samples={self.num_samples}, transforms={self.inner!r})"
