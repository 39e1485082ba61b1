"""Transforms of MONAI, MMCV and MMSegmentation inside our pipelines: layout, label axes and seeds are translated.

MONAI is imported when one of its transforms is built, not before.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from itkit.errors import ConfigError
from itkit.registry import TRANSFORMS
from itkit.transforms.base import RandomTransform
from itkit.transforms.building import build_from_config
from itkit.transforms.sample import Sample, axis_spacing, child_generators, label_keys, put_image

LAYOUTS = ("itkit", "channels_last")


@TRANSFORMS.register_module()
class FromMONAI(RandomTransform):
    """Apply a transform of MONAI.

    The image goes in as (C, *spatial) with an affine made of the voxel spacing, label maps get a channel axis and lose it
    again; what comes back are NumPy arrays, labels in their own type. Dictionary transforms find the keys of the sample
    (``img``, ``gt_sem_seg``); array transforms get the image. A transform that returns a list gives a list of samples. A
    transform that is not random and changes the spacing (``Spacingd``) changes ``spacing_zyx``.

    Args:
        transform: A MONAI transform, or its config such as ``dict(type="monai.RandGaussianNoised", keys=["img"])``.

    Raises:
        ConfigError: If it is no MONAI transform, or it returns label values that are no whole numbers.
    """

    def __init__(self, transform: dict | Callable[[Any], Any]):
        from monai.transforms import Transform

        super().__init__()
        self.inner = build_from_config(transform) if isinstance(transform, dict) else transform
        if not isinstance(self.inner, Transform):
            raise ConfigError(f"FromMONAI needs a transform of MONAI; found {type(self.inner).__name__}.")

    def draw(self, results: Sample, rng: np.random.Generator) -> dict[str, Any]:
        """Return the transform and a seed for it."""
        return {"inner": self.inner, "seed": int(rng.integers(2**32))}

    def transform(self, results: Sample) -> Sample | list[Sample]:
        """As for every random transform; one that is not random needs no generator and leaves no record."""
        from monai.transforms import Randomizable

        if isinstance(self.inner, Randomizable):
            return super().transform(results)
        return self.apply(results, {"inner": self.inner, "seed": None})

    @staticmethod
    def apply(results: Sample, params: dict[str, Any]) -> Sample | list[Sample]:
        """Seed the transform, translate the sample, apply, translate back."""
        from monai.data import MetaTensor
        from monai.transforms import Compose, MapTransform

        inner, seed = params["inner"], params["seed"]
        if seed is not None:
            inner.set_random_state(seed=seed)
        axes = results["img"].ndim - 1
        affine = torch.diag(torch.tensor([*axis_spacing(results), *[1.0] * (4 - axes)], dtype=torch.float64))
        given = dict(results)
        given["img"] = MetaTensor(np.array(results["img"]), affine=affine)
        for key in label_keys(results):
            given[key] = MetaTensor(np.array(results[key])[None], affine=affine)
        with _seeded(seed):
            if isinstance(inner, (MapTransform, Compose)):
                taken = inner(given)
            else:
                taken = {**given, "img": inner(given["img"])}
        if not isinstance(taken, (list, tuple)):
            return _from_monai(taken, results, spacing_counts=seed is None)
        samples = [_from_monai(one, results, spacing_counts=False) for one in taken]
        if results.get("rng") is not None:
            for sample, generator in zip(
                samples, child_generators(np.random.default_rng(seed), len(samples)), strict=True
            ):
                sample["rng"] = generator
        return samples


def _from_monai(taken: dict[str, Any], before: Sample, *, spacing_counts: bool) -> Sample:
    from monai.data import MetaTensor

    results = dict(taken)
    image = taken["img"]
    if spacing_counts and isinstance(image, MetaTensor) and image.ndim == 4 and "spacing_zyx" in results:
        results["spacing_zyx"] = tuple(float(v) for v in image.pixdim[:3])
    put_image(results, _array(image))
    for key in label_keys(before):
        label, dtype = _array(taken[key]), before[key].dtype
        if label.dtype != dtype:
            whole = np.rint(label)
            if not np.array_equal(whole, label):
                raise ConfigError(
                    f"a MONAI transform made label values that are no whole numbers in {key!r}; give it "
                    "mode='nearest' for that key."
                )
            label = whole.astype(dtype)
        results[key] = np.ascontiguousarray(label[0])
    return results


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


@TRANSFORMS.register_module()
class FromMM(RandomTransform):
    """Apply a transform of MMCV or MMSegmentation, or any callable that draws from the global generators.

    The generators of ``random``, ``numpy.random`` and ``torch`` are seeded from the sample for the call and put back
    afterwards.

    Args:
        transform: The callable, or its config.
        layout: ``"channels_last"``: the callable sees ``img`` as (Y, X, C) or (Z, Y, X, C) and the label as ``gt_seg_map``,
            as MM packages do; what it loads is taken for that, too. ``"itkit"``: it sees the sample as it is.

    Raises:
        ConfigError: If `layout` is unknown.
    """

    def __init__(self, transform: dict | Callable[[Sample], Any], layout: str = "channels_last"):
        super().__init__()
        if layout not in LAYOUTS:
            raise ConfigError(f"FromMM: layout must be one of {', '.join(LAYOUTS)}; found {layout!r}.")
        self.inner = build_from_config(transform) if isinstance(transform, dict) else transform
        self.layout = layout

    def draw(self, results: Sample, rng: np.random.Generator) -> dict[str, Any]:
        """Return the callable, its layout and a seed for it."""
        return {"inner": self.inner, "layout": self.layout, "seed": int(rng.integers(2**32))}

    @staticmethod
    def apply(results: Sample, params: dict[str, Any]) -> Any:
        """Call it under its seed, in its layout."""
        with _seeded(params["seed"]):
            if params["layout"] == "itkit":
                return params["inner"](results)
            taken = params["inner"](_to_channels_last(results))
        return _from_channels_last(taken, results) if isinstance(taken, dict) else taken


def _to_channels_last(results: Sample) -> Sample:
    given = dict(results)
    if "img" in given:
        given["img"] = np.array(np.moveaxis(given["img"], 0, -1), order="C")
    if "gt_sem_seg" in label_keys(results):
        given["gt_seg_map"] = np.array(given.pop("gt_sem_seg"))
    if "seg_fields" in given:
        given["seg_fields"] = ["gt_seg_map" if key == "gt_sem_seg" else key for key in given["seg_fields"]]
    return given


def _from_channels_last(taken: dict[str, Any], before: Sample) -> Sample:
    results = dict(taken)
    if "img" in results:
        image, old = results["img"], before.get("img")
        without_channel = image.ndim == (2 if old is None else old.ndim - 1)
        put_image(results, image[None] if without_channel else np.moveaxis(image, -1, 0))
    if "gt_seg_map" in results:
        label = results.pop("gt_seg_map")
        old = before.get("gt_sem_seg")
        results["gt_sem_seg"] = np.ascontiguousarray(label if old is None else label.astype(old.dtype, copy=False))
    if "seg_fields" in results:
        results["seg_fields"] = ["gt_sem_seg" if key == "gt_seg_map" else key for key in results["seg_fields"]]
    return results


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Seed the three global generators for a block and restore them; None changes nothing."""
    if seed is None:
        yield
        return
    kept = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.random.set_rng_state(kept[2])
