"""`itk_orient`: turn the axes of every volume towards one of the 48 orientations, without interpolation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from itkit.errors import DataError, UsageError
from itkit.io.geometry import require_same_grid
from itkit.io.orientation import orientation, reorient, require_code
from itkit.io.volumes import write_volume
from itkit.process.documents import carry_documents, differing_documents
from itkit.process.operation import Ask, Operation, Product, Stage, Task, require_apart
from itkit.process.reading import Reader
from itkit.process.sources import find_files, group_cases

FIELDS = ("image", "label", "dataset")


@dataclass(frozen=True)
class Orient(Operation):
    """Permute and flip axes; no voxel changes its value or its place in space.

    Args:
        source: A folder of volumes, or a dataset.
        destination: Folder for the results, in the layout of the source.
        orientation: One of `itkit.io.orientation.ORIENTATIONS`, e.g. ``"LPS"``.
        recursive: Look into subfolders.
        fix_geometry: Repair directions that are not orthonormal, and record it, instead of refusing the case.
        field: ``"image"`` or ``"label"`` takes only that folder of a dataset, ``"dataset"`` all that is there.

    Raises:
        UsageError: If the orientation is none of the 48, the field unknown, or the destination lies inside the source.
    """

    name: ClassVar[str] = "itk_orient"
    source: str
    destination: str
    orientation: str
    recursive: bool = False
    fix_geometry: bool = False
    field: str = "dataset"

    def __post_init__(self):
        require_code(self.orientation)
        if self.field not in FIELDS:
            raise UsageError(f"--field is {', '.join(FIELDS)}, not {self.field!r}.")
        require_apart(self.source, self.destination)

    def tasks(self) -> Sequence[Task]:
        found = []
        for case in group_cases(find_files(self.source, recursive=self.recursive)):
            files = [file for file in case.files if self.field in (file.role or self.field, "dataset")]
            if files:
                outputs = tuple(Path(self.destination) / file.relative for file in files)
                found.append(Task(case.case_id, tuple(file.path for file in files), outputs))
        if not found:
            raise DataError(f"holds no {self.field}.", self.source)
        return found

    def process(self, task: Task, stage: Stage) -> Product:
        reader, was, image = Reader(self.fix_geometry), [], None
        for path, output in zip(task.inputs, task.outputs, strict=True):
            volume = reader.volume(path)
            if image is not None:
                require_same_grid(image, volume, path)
            image = volume.geometry
            write_volume(stage.path(output), reorient(volume, self.orientation))
            was.append(orientation(volume))
        return Product(reader.record({"was": was, "is": self.orientation}), reader.notes())

    def finish(self, entries: Mapping[str, dict], ask: Ask) -> Iterable[Path]:
        return carry_documents(Path(self.source), Path(self.destination))

    def describe(self, entries: Mapping[str, dict]) -> str | None:
        return differing_documents(Path(self.source), Path(self.destination))
