"""Logits of a whole volume as a zarr array that grows slab by slab, so that they need not fit into the memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from itkit._support.optional import require
from itkit.errors import DataError
from itkit.io.geometry import Geometry

_CHUNK_VOXELS = 1 << 20


class LogitsFile:
    """A zarr array (K, Z, Y, X), float32, on the grid of the image, with its place in space as attributes.

    Args:
        path: The folder to write; what is there is replaced.
        classes: Names of the channels.
        geometry: The image's grid.

    Raises:
        MissingDependency: If zarr is not installed.
        DataError: If the folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike, classes: Sequence[str], geometry: Geometry):
        zarr = require("zarr", extra="zarr", purpose="storing logits")
        size = geometry.size_zyx
        planes = max(1, min(size[0], _CHUNK_VOXELS // max(1, size[1] * size[2])))
        self.path = Path(path)
        facts = {
            "axes": ["class", "z", "y", "x"],
            "classes": list(classes),
            "spacing_zyx": list(geometry.spacing_zyx),
            "origin_xyz": list(geometry.origin_xyz),
            "direction_xyz": list(geometry.direction_xyz),
        }
        try:
            # What versions 2 and 3 of the library have in common.
            self._array = zarr.open_array(
                os.fspath(path),
                mode="w",
                shape=(len(classes), *size),
                chunks=(1, planes, size[1], size[2]),
                dtype="float32",
            )
            self._array.attrs.update(facts)
        except OSError as error:
            raise DataError(f"cannot be written ({error.strerror or error}).", path) from error

    def write(self, box: tuple[slice, slice, slice], logits: np.ndarray) -> None:
        """Write the logits (K, *box) of a box of voxels."""
        self._array[(slice(None), *box)] = logits
