"""How tools read their inputs: suspiciously, or, where the user asks for it, with leaning axes made straight and recorded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from itkit.io.repair import read_repaired
from itkit.io.volumes import Volume, VolumeHeader, read_header, read_volume


class Reader:
    """Read the inputs of one case.

    Args:
        fix_geometry: Repair a direction that is not orthonormal (see `itkit.io.repair.fix_geometry`) instead of refusing it.

    Attributes:
        audit: File name -> what was repaired, as plain data for the ledger.
    """

    def __init__(self, fix_geometry: bool):
        self.fix_geometry = fix_geometry
        self.audit: dict[str, dict] = {}

    def volume(self, path: Path) -> Volume:
        """Return the volume at `path`; the file is never changed.

        Raises:
            DataError: If it cannot be read.
            GeometryError: If its geometry is impossible (with `fix_geometry`: beyond repair).
        """
        return self._read(path, header_only=False)

    def header(self, path: Path) -> VolumeHeader:
        """Return the header of the volume at `path`; raises as `volume` does."""
        return self._read(path, header_only=True)

    def _read(self, path: Path, *, header_only: bool) -> Any:
        if not self.fix_geometry:
            return read_header(path) if header_only else read_volume(path)
        thing, repair = read_repaired(path, header_only=header_only)
        if repair is not None:
            self.audit[os.fspath(path)] = repair.as_dict()
        return thing

    def record(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the record of a case with the repairs, if there were any, as ``geometry_repairs``."""
        return {**facts, "geometry_repairs": self.audit} if self.audit else facts

    def notes(self) -> tuple[str, ...]:
        """Return a sentence for every repair."""
        return tuple(
            f"{Path(path).name}: the direction was not orthonormal (off by {repair['deviation']:.3g}) and was made so; voxels "
            f"moved by at most {repair['largest_displacement_mm']:.3g} mm"
            for path, repair in self.audit.items()
        )
