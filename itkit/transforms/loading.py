"""Read a case's image and label from their files, and refuse what cannot be trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from itkit.errors import ConfigError, DataError
from itkit.io.geometry import require_same_grid
from itkit.io.preprocessing import NONFINITE, finite
from itkit.io.volumes import Volume, read_volume
from itkit.registry import TRANSFORMS
from itkit.transforms.sample import Sample, put_image


@TRANSFORMS.register_module()
class LoadVolume(BaseTransform):
    """Read ``img_path`` and ``seg_map_path`` and put arrays and geometry into the sample.

    Sets ``img`` (C, Z, Y, X) in the type of the file, ``gt_sem_seg`` (Z, Y, X) integer, ``seg_fields``, ``spacing_zyx`` (mm),
    ``origin_xyz`` (mm), ``direction_xyz``, ``ori_shape`` and ``img_shape``.

    Where the sample has a ``cache``, an object with ``get(path, read)`` that returns what ``read(path)`` once returned, files
    are read through it. Its volumes are shared and never written into.

    Args:
        with_label: Whether to read the label. A case whose ``seg_map_path`` is None or absent is left without one.
        check_labels: Refuse a label value that is negative or not below ``num_classes`` (where the sample has it). Turn it
            off before `MapLabels`, which checks its result.
        nonfinite: What to do with NaN and infinite intensities: ``"error"``, or ``"zero"`` to replace them by 0.

    Raises:
        ConfigError: If `nonfinite` is unknown.
        DataError: If a file is missing or damaged, an intensity is not finite, or a label value is impossible.
        GeometryError: If image and label do not lie on the same grid.
    """

    def __init__(self, with_label: bool = True, *, check_labels: bool = True, nonfinite: str = "error"):
        if nonfinite not in NONFINITE:
            raise ConfigError(f"LoadVolume: nonfinite must be one of {', '.join(NONFINITE)}; found {nonfinite!r}.")
        self.with_label = with_label
        self.check_labels = check_labels
        self.nonfinite = nonfinite

    def transform(self, results: Sample) -> Sample:
        """Read, check and store."""
        path = results.get("img_path")
        if not path:
            raise DataError(f"case {results.get('case_id', '?')} names no image ('img_path' is missing).")
        volume = _through_cache(results, path)
        image = volume.array if volume.array.ndim == 4 else volume.array[None]
        put_image(results, finite(image, self.nonfinite, path))
        results["ori_shape"] = results["img_shape"]
        results["spacing_zyx"] = tuple(volume.spacing_zyx)
        results["origin_xyz"] = tuple(volume.origin_xyz)
        results["direction_xyz"] = tuple(volume.direction_xyz)
        results.setdefault("seg_fields", [])
        label_path = results.get("seg_map_path")
        if self.with_label and label_path:
            label = _through_cache(results, label_path)
            require_same_grid(volume, label, label_path)
            array = _label_array(label.array, label_path)
            if self.check_labels:
                require_classes(array, results.get("num_classes"), label_path)
            results["gt_sem_seg"] = array
            results["seg_fields"] = list(dict.fromkeys([*results["seg_fields"], "gt_sem_seg"]))
        return results

    def __repr__(self) -> str:
        """Name and arguments."""
        return (
            f"LoadVolume(with_label={self.with_label}, check_labels={self.check_labels}, nonfinite={self.nonfinite!r})"
        )


def require_classes(label: np.ndarray, num_classes: int | None, path: str | None) -> None:
    """Refuse label values outside ``0 .. num_classes - 1``.

    Args:
        label: Integer label map.
        num_classes: Classes with background. ``None``: only negative values are refused.
        path: The label's file, for the message.

    Raises:
        DataError: With the values found.
    """
    low, high = int(label.min()), int(label.max())
    if low >= 0 and (num_classes is None or high < num_classes):
        return
    values = np.unique(label)
    wrong = values[(values < 0) | (values >= (np.inf if num_classes is None else num_classes))].tolist()
    shown = f"{wrong[:10]}{' ...' if len(wrong) > 10 else ''}"
    allowed = "must not be negative" if num_classes is None else f"must lie in 0 .. {num_classes - 1}"
    raise DataError(
        f"label values {shown} are impossible: they {allowed}. Fix the label, the dataset's classes, or map the "
        "values with MapLabels.",
        path,
    )


def _through_cache(results: Sample, path: str) -> Volume:
    cache: Any = results.get("cache")
    read: Callable[[str], Volume] = read_volume
    return read(path) if cache is None else cache.get(path, read)


def _label_array(label: np.ndarray, path: str) -> np.ndarray:
    if label.ndim == 4:
        if label.shape[0] != 1:
            raise DataError(f"a label map has one value per voxel; found {label.shape[0]} channels.", path)
        label = label[0]
    if label.dtype.kind in "iu":
        return label
    with np.errstate(invalid="ignore"):
        whole = label.astype(np.int32)
    if not np.array_equal(whole, label):
        wrong = np.unique(label[whole != label])[:5].tolist()
        raise DataError(f"label values {wrong} are no whole numbers. Save the label with an integer type.", path)
    return whole
