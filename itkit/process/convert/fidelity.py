"""Read and write volumes so that whatever a format rounds, reinterprets or cannot hold is said or refused."""

from __future__ import annotations

from pathlib import Path

from itkit.errors import DataError, GeometryError
from itkit.io.geometry import Geometry, Match, compare_geometries, largest_displacement_mm
from itkit.io.headers import read_file_header
from itkit.io.volumes import Volume, read_header, read_unchecked, read_volume, write_volume
from itkit.process.reading import Reader

GEOMETRY_ATOL = 1e-6
"""Largest difference of a spacing or origin (mm) or a direction number that goes without saying."""


def read_noting(path: Path, notes: list[str], reader: Reader | None = None) -> Volume:
    """Read a volume and append to `notes` what its file says in more than one way, or scaled.

    Args:
        path: The file.
        notes: A sentence for each thing is appended.
        reader: Reads it; None: as it stands, without repair.

    Raises:
        DataError: As `itkit.io.volumes.read_volume`.
        GeometryError: As `itkit.io.volumes.read_volume`.
    """
    volume = read_volume(path) if reader is None else reader.volume(path)
    notes += [f"{path.name}: {note.rstrip('.')}" for note in read_unchecked(path, header_only=True).notes]
    if read_file_header(path).scale is not None:
        notes.append(f"{path.name}: stores numbers with a scale factor; the voxels are {volume.array.dtype} now")
    return volume


def write_kept(path: Path, final: Path, volume: Volume, *, series: bool = False) -> tuple[str, ...]:
    """Write `volume` to `path` and make sure that the file says what the volume is.

    Args:
        path: The file; its suffix chooses the format.
        final: Its later name, for messages.
        volume: Not modified.
        series: In NIfTI, channels become the fourth axis, as the Decathlon, MONAI and TorchIO have it; otherwise the
            fifth, as SimpleITK writes vectors.

    Returns:
        Notes: what the format has rounded.

    Raises:
        DataError: If the format cannot hold the size, the number type or the channels, or the file cannot be written.
        GeometryError: If the format cannot hold the place in space within the tolerances of `itkit.io.geometry`.
    """
    write_volume(path, volume, series=series)
    written = read_header(path)
    if written.dtype != volume.array.dtype.newbyteorder("="):
        raise DataError(f"the format holds voxels of {volume.array.dtype} as {written.dtype}; choose another.", final)
    channels = volume.array.shape[0] if volume.array.ndim == 4 else 1
    if (written.channels or 1) != channels:
        raise DataError(f"the format holds {written.channels or 1} of {channels} channels; choose another.", final)
    match, difference = compare_geometries(volume, written)
    if match is not Match.EQUAL:
        raise GeometryError(f"the format cannot hold the place in space: the file has {difference}.", final)
    if _largest_change(volume.geometry, written.geometry) <= GEOMETRY_ATOL:
        return ()
    moved = largest_displacement_mm(volume.geometry, written.geometry)
    return (f"{final.name}: the format rounds the place in space; voxels move by up to {moved:.1g} mm",)


def _largest_change(before: Geometry, after: Geometry) -> float:
    pairs = zip(
        (*before.spacing_zyx, *before.origin_xyz, *before.direction_xyz),
        (*after.spacing_zyx, *after.origin_xyz, *after.direction_xyz),
        strict=True,
    )
    return max(abs(a - b) for a, b in pairs)
