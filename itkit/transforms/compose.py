"""The pipeline: transforms of itkit, MONAI and MMCV one after the other, on a sample or on several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmcv.transforms import BaseTransform

from itkit.errors import ConfigError
from itkit.transforms.base import RandomTransform
from itkit.transforms.building import build_from_config
from itkit.transforms.foreign import FromMM, FromMONAI
from itkit.transforms.sample import Sample

MM_PACKAGES = ("mmcv", "mmseg", "mmengine", "mmdet", "mmpretrain")
"""Packages whose transforms expect channels last and the label under ``gt_seg_map``."""


class Compose:
    """Run transforms in order.

    A transform of MONAI or of an MM package is wrapped by itself (`FromMONAI`, `FromMM`), and so is any other callable that
    is not one of ours, so that whatever it draws from the global generators depends on the sample's ``rng`` alone. Where
    a transform returns a list (`MultiSample`, `ExtractSlices`), the following ones see each of its samples. Where it
    returns None, the sample is given up and None is returned.

    Args:
        transforms: Config dicts with ``type`` (a class, a registered name, ``"monai.<Class>"``), or callables.

    Raises:
        ConfigError: If an entry is neither, or its type is unknown or cannot be built from its arguments.
    """

    def __init__(self, transforms: Sequence[dict | Callable[[Sample], Any]] | None):
        self.transforms = [build_transform(entry) for entry in transforms or ()]

    def __call__(self, results: Sample) -> Sample | list[Sample] | None:
        """Return the sample after all transforms; a list of samples once a transform made several of it."""
        for transform in self.transforms:
            if isinstance(results, list):
                parts = [transform(sample) for sample in results]
                results = [
                    one for part in parts if part is not None for one in (part if isinstance(part, list) else [part])
                ]
            else:
                results = transform(results)
            if results is None:
                return None
        return results

    def __repr__(self) -> str:
        """One line for each transform."""
        return "\n".join(["Compose(", *(f"    {transform!r}" for transform in self.transforms), ")"])


def build_transform(entry: dict | Callable[[Sample], Any]) -> Callable[[Sample], Any]:
    """Return the transform that `entry` describes, wrapped if it comes from another library.

    Raises:
        ConfigError: As for `Compose`.
    """
    if isinstance(entry, dict):
        entry = build_from_config(entry)
    if not callable(entry):
        raise ConfigError(f"a pipeline consists of dicts with 'type' and of callables; found {entry!r}.")
    return _wrapped(entry)


def _wrapped(transform: Callable[[Sample], Any]) -> Callable[[Sample], Any]:
    package = type(transform).__module__.partition(".")[0]
    if package == "itkit" or isinstance(transform, (RandomTransform, Compose)):
        return transform
    if package == "monai":
        return FromMONAI(transform)
    layout = "channels_last" if package in MM_PACKAGES and isinstance(transform, BaseTransform) else "itkit"
    return FromMM(transform, layout=layout)
