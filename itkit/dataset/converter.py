"""The pattern of all converters: foreign layout in, ``image/``, ``label/`` and ``meta.json`` out, case by case, resumable."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.console import Console

from itkit._support.files import replace_when_complete, write_json
from itkit.dataset.splits import SPLIT_NAME, read_split
from itkit.errors import DataError, ItkitError, UsageError
from itkit.io.geometry import require_same_grid
from itkit.io.volumes import read_volume, write_volume
from itkit.process.cases import IMAGE_FOLDER, LABEL_FOLDER, list_volumes
from itkit.process.execution import RunOptions, RunSummary, run_operation
from itkit.process.manifest import update_manifest
from itkit.process.operation import Ask, Operation, Product, Stage, Task, require_apart

META_NAME = "meta.json"


@dataclass(frozen=True)
class SourceCase:
    """One case as the source has it.

    Attributes:
        case_id: Name of the files to write, without suffix.
        image: The image file or folder.
        label: The label file or folder; None for an unlabelled case.
    """

    case_id: str
    image: Path
    label: Path | None = None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """What the case is made of."""
        return (self.image,) if self.label is None else (self.image, self.label)


@dataclass(frozen=True)
class ConverterTask(Task):
    """The work on one case of a converter.

    Attributes:
        case: The case as the source has it.
    """

    case: SourceCase | None = None


@dataclass(frozen=True)
class Converter(Operation):
    """Convert a dataset of one layout. Subclasses say what the cases are and what is known of the dataset.

    It runs like every data tool: a case that fails is recorded in ``ledger.jsonl`` with the reason and does not stop the
    others. A second run does what is missing, what failed, and what changed in the source; other files at a target's
    place are never replaced unless that is asked for.

    Args:
        source: Folder of the dataset as it was published. Not modified.
        destination: Folder to write; made if missing.

    Raises:
        UsageError: If `source` is no folder, or `destination` is the same or lies inside of it.
    """

    name: ClassVar[str] = "Converter"
    suffix: ClassVar[str] = ".mha"
    description: ClassVar[str] = "Convert a dataset to itkit's layout."
    source: str | os.PathLike
    destination: str | os.PathLike

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        cls.name = cls.__name__

    def __post_init__(self):
        for place in ("source", "destination"):
            object.__setattr__(self, place, Path(getattr(self, place)))
        if not self.source.is_dir():
            raise UsageError(f"{self.source}: no such folder; give the folder of the dataset as it was published.")
        require_apart(self.source, self.destination)

    def cases(self) -> Iterable[SourceCase]:
        """Return the cases of the source.

        Raises:
            DataError: If the source is not what this converter reads.
        """
        raise NotImplementedError

    def meta(self) -> dict:
        """Return the document for ``meta.json``, at least ``{"name": ..., "classes": [background, ...]}``."""
        raise NotImplementedError

    def convert_case(self, case: SourceCase, outputs: Sequence[Path]) -> None:
        """Read one case, check it and write it; types and geometry stay as they are.

        Args:
            case: The case.
            outputs: Where to write the image and, if the case has one, the label; they are moved to their places later.

        Raises:
            DataError: If it cannot be done.
        """
        image = read_volume(case.image)
        label = None if case.label is None else read_volume(case.label)
        if label is not None:
            require_same_grid(image, label, case.label)
        for path, volume in zip(outputs, (image, label), strict=False):
            write_volume(path, volume)

    def tasks(self) -> list[Task]:
        """Return the cases as the runner wants them.

        Raises:
            DataError: If the source is not what this converter reads, or holds no case.
        """
        cases = list(self.cases())
        if not cases:
            raise DataError("holds no case.", self.source)
        return [ConverterTask(case.case_id, case.inputs, self._outputs(case), case=case) for case in cases]

    def _outputs(self, case: SourceCase) -> tuple[Path, ...]:
        folders = (IMAGE_FOLDER,) if case.label is None else (IMAGE_FOLDER, LABEL_FOLDER)
        return tuple(self.destination / folder / (case.case_id + self.suffix) for folder in folders)

    def process(self, task: ConverterTask, stage: Stage) -> Product:
        """Convert one case."""
        self.convert_case(task.case, [stage.path(output) for output in task.outputs])
        return Product()

    def finish(self, entries: Mapping[str, dict], ask: Ask) -> Iterable[Path]:
        """Write ``meta.json``, ``series_meta.json`` and, where the source has one, ``split.json``."""
        write_json(self.destination / META_NAME, self.meta())
        self._copy_split()
        if (self.destination / IMAGE_FOLDER).is_dir() and list_volumes(self.destination / IMAGE_FOLDER):
            update_manifest(self.destination)
        return [self.destination / META_NAME]

    def run(self, *, workers: int | None = 1, overwrite: bool = False, dry_run: bool = False) -> RunSummary:
        """Convert every case that is not up to date, then write the documents.

        Args:
            workers: Number of processes; 1 works in this one, None plans it.
            overwrite: Do all cases again and replace what is there.
            dry_run: Only say what would be done.

        Raises:
            DataError: If the source is not what this converter reads, or the destination cannot be written.
        """
        self.meta()  # a source that is not understood is told before anything is written
        return run_operation(self, RunOptions(workers=workers, overwrite=overwrite, dry_run=dry_run))[0]

    def _copy_split(self) -> None:
        source, target = self.source / SPLIT_NAME, self.destination / SPLIT_NAME
        if not source.is_file() or target.is_file():
            return
        read_split(source)
        with replace_when_complete(target) as temporary:
            shutil.copyfile(source, temporary)

    @classmethod
    def main(cls, arguments: Sequence[str] | None = None) -> int:
        """Run the converter as a command; return the exit code.

        Args:
            arguments: Words of the command line; None: those of the process.
        """
        module = sys.modules[cls.__module__].__spec__
        parser = argparse.ArgumentParser(
            prog=f"python -m {module.name}" if module else cls.__name__, description=cls.description
        )
        parser.add_argument("source", metavar="SRC", help="folder of the dataset as it was published")
        parser.add_argument("target", metavar="DST", help="folder to write image/, label/ and meta.json to")
        parser.add_argument("--workers", type=int, default=1, metavar="N", help="number of processes (default 1)")
        parser.add_argument("--overwrite", action="store_true", help="do all cases again and replace what is there")
        parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
        options = parser.parse_args(arguments)
        console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
        try:
            converter = cls(options.source, options.target)
            summary = converter.run(workers=options.workers, overwrite=options.overwrite, dry_run=options.dry_run)
        except ItkitError as error:
            console.print(f"error: {error}")
            return error.exit_code
        verb = "to convert" if options.dry_run else "converted"
        for case_id, reason in sorted(summary.failed.items()):
            console.print(f"  {case_id}: {reason}")
        for problem in summary.problems:
            console.print(problem)
        console.print(
            f"{converter.destination}: {len(summary.done)} {verb}, {len(summary.current)} up to date, "
            f"{len(summary.failed)} failed"
        )
        return summary.exit_code
