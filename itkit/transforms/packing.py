"""From the sample dictionary to what collates: an input tensor and a data sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform

from itkit.errors import ConfigError, DataError
from itkit.registry import TRANSFORMS
from itkit.structures import Seg3DDataSample, VolumeData
from itkit.transforms.sample import Sample, label_keys

META_KEYS = (
    "case_id",
    "img_path",
    "seg_map_path",
    "ori_shape",
    "img_shape",
    "spacing_zyx",
    "origin_xyz",
    "direction_xyz",
)
OPTIONAL_META_KEYS = ("seg_map_path", "z_index")
"""Packed when they are there: a case without a label has no ``seg_map_path``, a whole volume no ``z_index``."""


class _PackSegInputs(BaseTransform):
    """What packing a volume and packing a slice have in common."""

    axes: int
    layout: str

    def __init__(self, meta_keys: Sequence[str] = (*META_KEYS, "z_index")):
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: Sample) -> dict[str, Any]:
        """Return ``{"inputs": tensor, "data_samples": Seg3DDataSample}``."""
        image = results.get("img")
        if image is None or image.ndim != self.axes + 1:
            found = "no 'img'" if image is None else f"shape {image.shape}"
            raise DataError(
                f"{type(self).__name__} packs images {self.layout}; found {found}.", results.get("img_path")
            )
        missing = [key for key in self.meta_keys if key not in results and key not in OPTIONAL_META_KEYS]
        if missing:
            raise ConfigError(
                f"{type(self).__name__}: the sample of case {results.get('case_id', '?')} has no {missing}; "
                f"it holds {sorted(results)}. Load it with LoadVolume, or name other meta_keys."
            )
        sample = Seg3DDataSample(metainfo={key: results[key] for key in self.meta_keys if key in results})
        for key in label_keys(results):
            label = results[key]
            if label.shape != image.shape[1:]:
                raise DataError(
                    f"{key!r} has shape {label.shape}, the image {image.shape[1:]}; a transform changed only "
                    "one of them.",
                    results.get("seg_map_path"),
                )
            dtype = np.uint8 if label.dtype in (np.uint8, np.bool_) else np.int64
            setattr(sample, key, VolumeData(data=_tensor(label[None], dtype)))
        return {"inputs": _tensor(image, np.float32), "data_samples": sample}

    def __repr__(self) -> str:
        """Name and arguments."""
        return f"{type(self).__name__}(meta_keys={self.meta_keys})"


@TRANSFORMS.register_module()
class PackSeg3DInputs(_PackSegInputs):
    """Pack a volume: inputs (C, Z, Y, X) float32; each label map as `VolumeData` (1, Z, Y, X), uint8 or int64.

    Args:
        meta_keys: Keys of the sample that become metadata. ``seg_map_path`` and ``z_index`` may be absent.

    Raises:
        DataError: If the image is no volume, or a label has another size.
        ConfigError: If the sample lacks one of the other keys.
    """

    axes, layout = 3, "(C, Z, Y, X)"


@TRANSFORMS.register_module()
class PackSeg2DInputs(_PackSegInputs):
    """Pack a slice: inputs (C, Y, X) float32; each label map as `VolumeData` (1, Y, X), uint8 or int64.

    Args:
        meta_keys: Keys of the sample that become metadata. ``seg_map_path`` and ``z_index`` may be absent.

    Raises:
        DataError: If the image is no slice, or a label has another size.
        ConfigError: If the sample lacks one of the other keys.
    """

    axes, layout = 2, "(C, Y, X)"


def _tensor(array: np.ndarray, dtype: type) -> torch.Tensor:
    """Return a contiguous tensor of `dtype`; it shares memory with `array` only if that is writable and fits as it is."""
    array = np.ascontiguousarray(array, dtype=dtype)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
