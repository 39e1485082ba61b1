"""`itk_orient`: turn the axes of every volume towards one of the 48 orientations, without interpolation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from itkit.io.geometry import Match, compare_geometries
from itkit.io.orientation import orientation, reorient, require_code
from itkit.io.volumes import write_volume
from itkit.process.documents import carry_documents, differing_documents
from itkit.process.operation import Ask, Operation, Product, Stage, Task, require_apart
from itkit.process.reading import Reader
from itkit.process.sources import find_files, group_cases


@dataclass(frozen=True)
class Orient(Operation):
    """Permute and flip axes; no voxel changes its value or its place in space.

    Args:
        source: A folder of volumes, or a dataset.
        destination: Folder for the results, in the layout of the source.
        orientation: One of `itkit.io.orientation.ORIENTATIONS`, e.g. ``"LPS"``.
        recursive: Look into subfolders.
        fix_geometry: Repair directions that are not orthonormal, and record it, instead of refusing the case.

    Raises:
        UsageError: If the orientation is none of the 48, or the destination lies inside the source.
    """

    name: ClassVar[str] = "itk_orient"
    source: str
    destination: str
    orientation: str
    recursive: bool = False
    fix_geometry: bool = False

    def __post_init__(self):
        require_code(self.orientation)
        require_apart(self.source, self.destination)

    def tasks(self) -> Sequence[Task]:
        return [
            Task(
                case.case_id,
                tuple(file.path for file in case.files),
                tuple(Path(self.destination) / file.relative for file in case.files),
            )
            for case in group_cases(find_files(self.source, recursive=self.recursive))
        ]

    def process(self, task: Task, stage: Stage) -> Product:
        reader, was, grids = Reader(self.fix_geometry), [], []
        for path, output in zip(task.inputs, task.outputs, strict=True):
            volume = reader.volume(path)
            write_volume(stage.path(output), reorient(volume, self.orientation))
            was.append(orientation(volume))
            grids.append(volume.geometry)
        notes = reader.notes()
        if len(grids) == 2:
            match, difference = compare_geometries(*grids)
            if match is not Match.EQUAL:
                notes += (f"label has {difference}; each was turned for itself",)
        return Product(reader.record({"was": was, "is": self.orientation}), notes)

    def finish(self, entries: Mapping[str, dict], ask: Ask) -> Iterable[Path]:
        return carry_documents(Path(self.source), Path(self.destination))

    def describe(self, entries: Mapping[str, dict]) -> str | None:
        return differing_documents(Path(self.source), Path(self.destination))
