"""Keep volumes in memory so that small datasets are read from disk once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from itkit.io.volumes import Volume


class VolumeCache:
    """Volumes by path, up to a size; the loading transform reads through it.

    Each process (each loader worker) has its own: a pickled copy arrives empty. When the limit is reached, the volumes
    that are in stay in and further ones are read each time: in shuffled epochs throwing out would help nobody.

    Args:
        limit_mb: Size of the kept voxels, in MiB (2^20 bytes), per process.
    """

    def __init__(self, limit_mb: float = 2048):
        self.limit_mb = limit_mb
        self.used_bytes = 0
        self._volumes: dict[str, Volume] = {}

    def get(self, path: str, read: Callable[[str], Volume]) -> Volume:
        """Return what ``read(path)`` returns, or returned before; the array is the caller's own copy."""
        kept = self._volumes.get(path)
        if kept is None:
            volume = read(path)
            if self.used_bytes + volume.array.nbytes > self.limit_mb * 2**20:
                return volume
            self._volumes[path] = kept = volume
            self.used_bytes += volume.array.nbytes
        return dataclasses.replace(kept, array=kept.array.copy())

    def __len__(self) -> int:
        """Number of volumes in memory."""
        return len(self._volumes)

    def __reduce__(self):
        return type(self), (self.limit_mb,)

    def __deepcopy__(self, memo: dict) -> VolumeCache:
        """The same cache: a copied sample reads through the same memory."""
        return self
