"""From volumes to slices, for networks that work in 2D; neighbouring slices may come along as channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from itkit.errors import ConfigError, DataError
from itkit.registry import TRANSFORMS
from itkit.transforms.base import RandomTransform, probability
from itkit.transforms.sample import Sample, label_keys, put_image, spatial_shape
from itkit.transforms.spatial.crop_place import draw_foreground_voxel


def take_slice(results: Sample, index: int, *, axis: int = 0, neighbours: int = 0) -> Sample:
    """Return one slice of a volume as a sample of its own.

    Args:
        results: The sample of the volume; not modified.
        index: Which slice.
        axis: Axis that is cut: 0 is Z.
        neighbours: Slices on either side that become channels, in order of position, each with all the volume's channels:
            (C * (2 * neighbours + 1), Y, X). Beyond the border the last slice repeats.

    Returns:
        A new sample with 2D arrays; ``z_index`` and ``slice_axis`` say where the slice comes from. The label is that of the
        middle slice.
    """
    taken = dict(results)
    image = results["img"]
    positions = np.clip(np.arange(index - neighbours, index + neighbours + 1), 0, image.shape[axis + 1] - 1)
    stack = np.moveaxis(image.take(positions, axis=axis + 1), axis + 1, 0)
    put_image(taken, stack.reshape(-1, *stack.shape[2:]))
    for key in label_keys(results):
        taken[key] = np.ascontiguousarray(results[key].take(index, axis=axis))
    taken["z_index"], taken["slice_axis"] = int(index), axis
    return taken


class _Slicing:
    """The arguments that taking one slice and taking all have in common."""

    def _check(self, axis: int, neighbours: int) -> None:
        if axis not in (0, 1, 2):
            raise ConfigError(f"{type(self).__name__}: axis must be 0, 1 or 2; found {axis!r}.")
        if not (isinstance(neighbours, int) and neighbours >= 0):
            raise ConfigError(f"{type(self).__name__}: neighbours must be 0 or more; found {neighbours!r}.")
        self.axis, self.neighbours = axis, neighbours

    def _depth(self, results: Sample) -> int:
        shape = spatial_shape(results)
        if len(shape) != 3:
            raise DataError(
                f"{type(self).__name__} needs a volume; the sample is {len(shape)}D already.", results.get("img_path")
            )
        return shape[self.axis]


@TRANSFORMS.register_module()
class ExtractSlice(_Slicing, RandomTransform):
    """Take one slice of the volume: a random one, the middle one, or a fixed one.

    Args:
        index: ``"random"``, ``"centre"``, or the number of the slice (negative counts from the end).
        axis: Axis that is cut: 0 is Z.
        neighbours: Slices on either side that become channels (2.5D); beyond the border the last slice repeats.
        foreground_ratio: With a random index, share of slices that are drawn through a voxel of a random foreground class.

    Raises:
        ConfigError: If an argument is none of the above.
        DataError: If the sample is no volume or has no such slice.
    """

    def __init__(
        self, index: str | int = "random", axis: int = 0, neighbours: int = 0, *, foreground_ratio: float = 0.0
    ):
        super().__init__()
        self._check(axis, neighbours)
        if isinstance(index, bool) or (not isinstance(index, int) and index not in ("random", "centre")):
            raise ConfigError(f"ExtractSlice: index must be 'random', 'centre' or a number; found {index!r}.")
        self.index = index
        self.foreground_ratio = probability("foreground_ratio", foreground_ratio, self)

    def transform(self, results: Sample) -> Sample:
        """As for every random transform; a slice that is not random needs no generator and leaves no record."""
        if self.index == "random":
            return super().transform(results)
        depth = self._depth(results)
        index = depth // 2 if self.index == "centre" else self.index + (depth if self.index < 0 else 0)
        if not 0 <= index < depth:
            raise DataError(f"ExtractSlice: there is no slice {self.index} among {depth}.", results.get("img_path"))
        return take_slice(results, index, axis=self.axis, neighbours=self.neighbours)

    def draw(self, results: Sample, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the slice."""
        index = int(rng.integers(self._depth(results)))
        keys = label_keys(results)
        if rng.random() < self.foreground_ratio and keys:
            voxel = draw_foreground_voxel(results[keys[0]], rng, num_classes=results.get("num_classes"))
            index = index if voxel is None else voxel[self.axis]
        return {"index": index, "axis": self.axis, "neighbours": self.neighbours}

    @staticmethod
    def apply(results: Sample, params: dict[str, Any]) -> Sample:
        """Take it."""
        return take_slice(results, params["index"], axis=params["axis"], neighbours=params["neighbours"])


@TRANSFORMS.register_module()
class ExtractSlices(_Slicing, BaseTransform):
    """Take all slices of the volume; returns a list of samples.

    Args:
        axis: Axis that is cut: 0 is Z.
        neighbours: Slices on either side that become channels (2.5D); beyond the border the last slice repeats.
        step: Take every n-th slice.

    Raises:
        ConfigError: If an argument is none of the above.
        DataError: If the sample is no volume.
    """

    def __init__(self, axis: int = 0, neighbours: int = 0, *, step: int = 1):
        self._check(axis, neighbours)
        if not (isinstance(step, int) and step > 0):
            raise ConfigError(f"ExtractSlices: step must be a positive integer; found {step!r}.")
        self.step = step

    def transform(self, results: Sample) -> list[Sample]:
        """Return the slices in order."""
        indices = range(0, self._depth(results), self.step)
        return [take_slice(results, i, axis=self.axis, neighbours=self.neighbours) for i in indices]

    def __repr__(self) -> str:
        """Name and arguments."""
        return f"ExtractSlices(axis={self.axis}, neighbours={self.neighbours}, step={self.step})"
