"""The pattern of all converters: foreign layout in, ``image/``, ``label/`` and ``meta.json`` out, case by case, resumable."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from itkit._support.files import replace_when_complete, write_json
from itkit.dataset.splits import SPLIT_NAME, read_split
from itkit.errors import DataError, ItkitError, UsageError
from itkit.io.geometry import require_same_grid
from itkit.io.volumes import read_volume, write_volume
from itkit.process.cases import IMAGE_FOLDER, LABEL_FOLDER, list_volumes
from itkit.process.ledger import Ledger
from itkit.process.manifest import update_manifest

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


@dataclass
class ConversionSummary:
    """What a run did.

    Attributes:
        converted: Case ids written (or, in a dry run, to be written).
        current: Case ids that were up to date.
        failed: Case id -> reason.
    """

    converted: list[str] = field(default_factory=list)
    current: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 if every case is there, else 1."""
        return 1 if self.failed else 0


class Converter:
    """Convert a dataset of one layout. Subclasses say what the cases are and what is known of the dataset.

    A case that fails is recorded in ``ledger.jsonl`` with the reason and does not stop the others. A second run does what
    is missing, what failed, and what changed in the source; other files at a target's place are never replaced unless
    `overwrite` is set.

    Args:
        source: Folder of the dataset as it was published. Not modified.
        target: Folder to write; made if missing.
        overwrite: Do all cases again and replace what is there.

    Raises:
        UsageError: If `source` is no folder, or `target` is the same or lies inside of it.
    """

    suffix = ".mha"
    description = "Convert a dataset to itkit's layout."

    def __init__(self, source: str | os.PathLike, target: str | os.PathLike, *, overwrite: bool = False):
        self.source, self.target, self.overwrite = Path(source), Path(target), overwrite
        if not self.source.is_dir():
            raise UsageError(f"{self.source}: no such folder; give the folder of the dataset as it was published.")
        if self.target.resolve().is_relative_to(self.source.resolve()):
            raise UsageError(f"{self.target}: the target lies inside the source {self.source}; choose another folder.")

    def cases(self) -> Iterable[SourceCase]:
        """Return the cases of the source.

        Raises:
            DataError: If the source is not what this converter reads.
        """
        raise NotImplementedError

    def meta(self) -> dict:
        """Return the document for ``meta.json``, at least ``{"name": ..., "classes": [background, ...]}``."""
        raise NotImplementedError

    def outputs(self, case: SourceCase) -> list[Path]:
        """Return the files that a case becomes."""
        name = case.case_id + self.suffix
        folders = [IMAGE_FOLDER] if case.label is None else [IMAGE_FOLDER, LABEL_FOLDER]
        return [self.target / folder / name for folder in folders]

    def convert_case(self, case: SourceCase) -> None:
        """Read one case, check it and write it; types and geometry stay as they are.

        Raises:
            DataError: If it cannot be done. A file that was written before that is this converter's all the same.
        """
        image = read_volume(case.image)
        label = None if case.label is None else read_volume(case.label)
        if label is not None:
            require_same_grid(image, label, case.label)
        for path, volume in zip(self.outputs(case), (image, label), strict=False):
            write_volume(path, volume)

    def run(self, *, workers: int = 1, dry_run: bool = False) -> ConversionSummary:
        """Convert every case that is not up to date, then write ``meta.json``, ``series_meta.json`` and ``split.json``.

        Args:
            workers: Number of processes; 1 works in this one.
            dry_run: Only say what would be done.

        Raises:
            DataError: If the source is not what this converter reads, or the target cannot be written.
        """
        cases, meta = list(self.cases()), self.meta()
        if not cases:
            raise DataError("holds no case.", self.source)
        ledger, summary = Ledger(self.target), ConversionSummary()
        todo = []
        for case in cases:
            if not self.overwrite and ledger.is_current(case.case_id, case.inputs, self.outputs(case)):
                summary.current.append(case.case_id)
            else:
                todo.append(case)
        if dry_run:
            summary.converted = [case.case_id for case in todo]
            return summary
        try:
            self.target.mkdir(parents=True, exist_ok=True)
            for case, reason in self._outcomes(todo, ledger, workers):
                if reason is None:
                    summary.converted.append(case.case_id)
                else:
                    summary.failed[case.case_id] = reason
            write_json(self.target / META_NAME, meta)
            self._copy_split()
        except OSError as error:
            raise DataError(f"cannot be written ({error.strerror or error}).", self.target) from error
        if (self.target / IMAGE_FOLDER).is_dir() and list_volumes(self.target / IMAGE_FOLDER):
            update_manifest(self.target)
        return summary

    def _outcomes(
        self, cases: Sequence[SourceCase], ledger: Ledger, workers: int
    ) -> Iterator[tuple[SourceCase, str | None]]:
        """Convert and yield each case with the reason of its failure, in order of completion, under a progress bar."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(self.target.name, total=len(cases))
            free = []
            for case in cases:
                taken = [path for path in self.outputs(case) if path.exists() and not ledger.owns(path)]
                if taken and not self.overwrite:
                    reason = f"{taken[0]}: exists and was not written by this converter; remove it or use --overwrite."
                    ledger.record(case.case_id, case.inputs, (), reason)
                    yield case, reason
                    progress.advance(task)
                else:
                    free.append(case)
            for case, reason in self._converted(free, ledger, workers):
                ledger.record(case.case_id, case.inputs, self.outputs(case), reason)
                yield case, reason
                progress.advance(task)

    def _converted(
        self, cases: Sequence[SourceCase], ledger: Ledger, workers: int
    ) -> Iterator[tuple[SourceCase, str | None]]:
        if workers <= 1 or len(cases) < 2:
            for case in cases:
                ledger.begin(case.case_id, case.inputs, self.outputs(case))
                yield case, self.attempt(case)
            return
        for case in cases:
            ledger.begin(case.case_id, case.inputs, self.outputs(case))
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(cases)), mp_context=context) as pool:
            running = {pool.submit(self.attempt, case): case for case in cases}
            for future in as_completed(running):
                error = future.exception()
                reason = future.result() if error is None else f"the worker process died ({error}); run again."
                yield running[future], reason

    def attempt(self, case: SourceCase) -> str | None:
        """Convert one case; return the reason if that fails."""
        try:
            self.convert_case(case)
        except ItkitError as error:
            return str(error)
        except Exception as error:  # the border of one case: the others go on
            return f"{type(error).__name__}: {error}"
        return None

    def _copy_split(self) -> None:
        source, target = self.source / SPLIT_NAME, self.target / SPLIT_NAME
        if not source.is_file() or (target.is_file() and not self.overwrite):
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
            converter = cls(options.source, options.target, overwrite=options.overwrite)
            summary = converter.run(workers=options.workers, dry_run=options.dry_run)
        except ItkitError as error:
            console.print(f"error: {error}")
            return error.exit_code
        verb = "to convert" if options.dry_run else "converted"
        console.print(
            f"{converter.target}: {len(summary.converted)} {verb}, {len(summary.current)} up to date, "
            f"{len(summary.failed)} failed"
        )
        for case_id, reason in sorted(summary.failed.items()):
            console.print(f"  {case_id}: {reason}")
        return summary.exit_code
