"""Two random views of one sample side by side, which contrastive pre-training compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmcv.transforms import BaseTransform

from itkit.errors import ConfigError
from itkit.registry import TRANSFORMS
from itkit.transforms.compose import Compose
from itkit.transforms.sample import Sample, child_generators


@TRANSFORMS.register_module()
class TwoViews(BaseTransform):
    """Run a pipeline twice on a sample, each time with an own generator, and pack both images as one pair.

    The generators are drawn from the sample's ``rng``, so the views depend on the seed and the sample's position alone. It is
    the last transform: the result holds ``inputs`` (2, C, ...), first view first, and the first view's ``data_samples``.

    Args:
        transforms: The pipeline of a view, with a packing transform at its end. Views must come out in one size.
        second: The pipeline of the second view, where it is another one. None: the same.

    Raises:
        ConfigError: If the sample has no generator, or a pipeline does not end with one packed image, of the same size both
            times.
    """

    def __init__(
        self,
        transforms: Sequence[dict | Callable[[Sample], object]],
        second: Sequence[dict | Callable[[Sample], object]] | None = None,
    ):
        self.first = Compose(transforms)
        self.second = self.first if second is None else Compose(second)

    def transform(self, results: Sample) -> dict[str, Any] | None:
        """Return the packed pair; None where a view was given up."""
        if results.get("rng") is None:
            raise ConfigError(
                "TwoViews needs the sample's generator: set results['rng'] to a numpy.random.Generator (the datasets of "
                "itkit do)."
            )
        generators = child_generators(results["rng"], 2)
        pipelines = (self.first, self.second)
        views = [pipeline({**results, "rng": rng}) for pipeline, rng in zip(pipelines, generators, strict=True)]
        if any(view is None for view in views):
            return None
        for view in views:
            if not isinstance(view, dict) or not isinstance(view.get("inputs"), torch.Tensor):
                found = sorted(view) if isinstance(view, dict) else f"{len(view)} samples"
                raise ConfigError(
                    "TwoViews: a view must end as one packed image; found "
                    f"{found}. End its transforms with PackSeg2DInputs or PackSeg3DInputs, and put what makes several "
                    "samples (MultiSample) around TwoViews."
                )
        images = [view["inputs"] for view in views]
        if images[0].shape != images[1].shape:
            raise ConfigError(
                f"TwoViews: the views have shapes {tuple(images[0].shape)} and {tuple(images[1].shape)}; crop both to one "
                "size."
            )
        return {**views[0], "inputs": torch.stack(images)}

    def __repr__(self) -> str:
        """Name and arguments."""
        return f"TwoViews(transforms={self.first!r}, second={self.second!r})"
