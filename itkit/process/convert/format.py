"""`itk_convert format`: the same volumes in another file format, voxel by voxel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from itkit.errors import DataError, UsageError
from itkit.io.geometry import require_same_grid
from itkit.io.headers import FORMATS
from itkit.process.convert.fidelity import read_noting, write_kept
from itkit.process.convert.layout import ConversionTask
from itkit.process.documents import carry_documents, differing_documents
from itkit.process.operation import Ask, Operation, Product, Stage, Task, require_apart
from itkit.process.reading import Reader
from itkit.process.sources import SourceFile, find_files, is_dataset


@dataclass(frozen=True)
class ConvertFormat(Operation):
    """Every volume keeps its voxels, its number type, its place in space and its place in the folder.

    Args:
        target: One of `itkit.io.headers.FORMATS`, with or without the leading dot.
        source: A folder of volumes, or a dataset. Not modified.
        destination: Folder for the results, in the layout of the source.
        recursive: Look into subfolders.
        fix_geometry: Repair directions that are not orthonormal, and record it, instead of refusing the case.

    Raises:
        UsageError: If there is no such format, or the destination lies inside the source.
    """

    name: ClassVar[str] = "itk_convert format"
    target: str
    source: str
    destination: str
    recursive: bool = False
    fix_geometry: bool = False

    def __post_init__(self):
        if self.suffix not in FORMATS:
            known = ", ".join(suffix.lstrip(".") for suffix in sorted(FORMATS))
            raise UsageError(f"{self.name}: the format is one of {known}, not {self.target!r}.")
        require_apart(self.source, self.destination)

    @property
    def suffix(self) -> str:
        """Ending of the results."""
        return "." + self.target.lstrip(".").lower()

    def parameters(self) -> dict:
        return {"target": self.suffix, "fix_geometry": self.fix_geometry}

    def tasks(self) -> Sequence[Task]:
        found: dict[str, list[SourceFile]] = {}
        for file in find_files(self.source, recursive=self.recursive):
            name = PurePosixPath(file.case_id)
            found.setdefault((name.relative_to(file.role) if file.role else name).as_posix(), []).append(file)
        return [self._task(case_id, found[case_id]) for case_id in sorted(found)]

    def _task(self, case_id: str, files: list[SourceFile]) -> Task:
        images = tuple(file.path for file in files)
        targets = [file.renamed(self.suffix) for file in files]
        if len(set(targets)) < len(targets):
            names = ", ".join(file.relative.as_posix() for file in files)
            return ConversionTask(case_id, images, problem=f"{names} would become one file. Keep one of them.")
        return ConversionTask(case_id, images, tuple(Path(self.destination) / name for name in targets), images=images)

    def process(self, task: ConversionTask, stage: Stage) -> Product:
        if task.problem is not None:
            raise DataError(task.problem, task.inputs[0])
        notes: list[str] = []
        reader, image = Reader(self.fix_geometry), None
        for path, output in zip(task.images, task.outputs, strict=True):
            volume = read_noting(path, notes, reader)
            if image is not None:
                require_same_grid(image, volume, path)
            image = volume.geometry
            notes += write_kept(stage.path(output), output, volume)
        return Product(reader.record({}), (*notes, *reader.notes()))

    def finish(self, entries: Mapping[str, dict], ask: Ask) -> Iterable[Path]:
        return carry_documents(Path(self.source), Path(self.destination)) if is_dataset(self.source) else ()

    def describe(self, entries: Mapping[str, dict]) -> str | None:
        return differing_documents(Path(self.source), Path(self.destination))
