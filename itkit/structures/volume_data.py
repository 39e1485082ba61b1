"""Arrays that share one grid of voxels or pixels: label maps, logits, probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement

from itkit.errors import UsageError


class VolumeData(BaseDataElement):
    """Channel-first arrays over one grid: (C, Z, Y, X), or (C, Y, X) for a slice.

    All fields have the same number of dimensions and the same spatial size; their channels may differ. ``to``, ``cpu``,
    ``cuda``, ``detach``, ``numpy`` and ``clone`` work on all fields, as in every MMEngine data element.

    Example:
        ``VolumeData(data=torch.zeros(1, 40, 56, 40, dtype=torch.uint8))``

    Raises:
        UsageError: If a field is no array, has not three or four dimensions, or another grid than the fields before it.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """Store an array as the field `name`; the first field fixes the grid."""
        if name in ("_metainfo_fields", "_data_fields"):
            super().__setattr__(name, value)
            return
        if not isinstance(value, (torch.Tensor, np.ndarray)):
            raise UsageError(f"VolumeData.{name} must be a tensor or a NumPy array; found {type(value).__name__}.")
        if value.ndim not in (3, 4):
            raise UsageError(
                f"VolumeData.{name} must be (C, Z, Y, X) or (C, Y, X); found shape {tuple(value.shape)}. "
                "Add a channel axis in front if it has none."
            )
        others = [field for key, field in self.items() if key != name]
        if others and tuple(others[0].shape[1:]) != tuple(value.shape[1:]):
            raise UsageError(
                f"VolumeData.{name} has spatial shape {tuple(value.shape[1:])}, the fields before it have "
                f"{tuple(others[0].shape[1:])}; keep another grid in another VolumeData."
            )
        super().__setattr__(name, value)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Spatial size, (Z, Y, X) or (Y, X), or None while there is no field."""
        for value in self.values():
            return tuple(value.shape[1:])
        return None

    def __getitem__(self, box: slice | int | tuple[slice | int, ...]) -> VolumeData:
        """Return the part of all fields that lies in `box`, sharing memory.

        Args:
            box: One slice or number per spatial axis. A number keeps its axis, with length one. Missing axes at the end are
                taken whole. Channels are never cut.

        Raises:
            UsageError: If there are more entries than spatial axes, or an entry is neither a slice nor a number.
        """
        box = box if isinstance(box, tuple) else (box,)
        axes = len(self.shape or ())
        if len(box) > axes:
            raise UsageError(f"VolumeData of {axes} spatial axes cannot be cut by {len(box)} slices {box}.")
        slices = []
        for axis, entry in enumerate(box):
            if isinstance(entry, slice):
                slices.append(entry)
            elif isinstance(entry, (int, np.integer)):
                index = int(entry) + (self.shape[axis] if entry < 0 else 0)
                if not 0 <= index < self.shape[axis]:
                    raise UsageError(f"index {entry} lies outside spatial axis {axis} of {self.shape[axis]} voxels.")
                slices.append(slice(index, index + 1))
            else:
                raise UsageError(f"VolumeData is cut by slices and numbers; found {type(entry).__name__}.")
        part = type(self)(metainfo=self.metainfo)
        for key, value in self.items():
            setattr(part, key, value[(slice(None), *slices)])
        return part
