"""What a data tool is: cases found, one case worked on, documents written at the end."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from itkit.errors import ItkitError, UsageError
from itkit.io.headers import read_file_header, volume_suffix

Ask = Callable[[str], bool]
"""Puts a question to the user and returns whether the answer was yes."""


@dataclass(frozen=True)
class Task:
    """The work on one case.

    Attributes:
        case_id: Its name, unique within a run: the file's path below the source, without suffix, with ``/``.
        inputs: The files it is made of.
        outputs: Final paths of the files it becomes, as far as they are known before the case is read. They show in a
            dry run, and a case whose place is taken is refused before it costs anything.
        roles: What each input is, one word an input, where their order does not say it.
    """

    case_id: str
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...] = ()
    roles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Product:
    """What became of a case, besides the files.

    Attributes:
        record: Facts that go into the ledger and from there to `Operation.finish`; plain data.
        notes: Things a user should know although the case is done, a sentence each.
        failure: Why the case counts as failed although there is a record; then none of its files is published. None: it
            is done.
    """

    record: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    failure: str | None = None


class Abandoned(BaseException):
    """The run has been stopped: whatever works on a case ends, and nothing is noted about it."""


class Stage:
    """Where the files of one case are written until all of them are complete.

    Args:
        roots: Folders below which the case's files will lie.
        token: Name of the staging folder.

    Attributes:
        checksums: SHA-256 of files whose bytes need not be read again for that: the runner puts in those of the inputs,
            the operation may add those of staged files.
        abandoned: The run has been stopped.
    """

    FOLDER = ".itkit-staging"

    def __init__(self, roots: Sequence[Path], token: str):
        self.roots, self.token = tuple(Path(os.path.abspath(root)) for root in roots), token
        self.checksums: dict[Path, str] = {}
        self.abandoned = False
        self._made: set[str] = set()

    def path(self, final: str | os.PathLike) -> Path:
        """Return where to write the file that will become `final`; its folder is there already.

        Raises:
            UsageError: If `final` lies below none of the roots.
        """
        final = os.path.abspath(final)
        root = next((root for root in self.roots if final.startswith(_as_prefix(root))), None)
        if root is None:
            raise UsageError(f"{final}: lies outside of {', '.join(map(str, self.roots))}.")
        staged = _as_prefix(self.folder(root)) + final[len(_as_prefix(root)) :]
        folder = os.path.dirname(staged)
        if folder not in self._made:
            os.makedirs(folder, exist_ok=True)
            self._made.add(folder)
        return Path(staged)

    def folder(self, root: Path) -> Path:
        """Return the staging folder of this case below `root`."""
        return root / self.FOLDER / self.token

    def require_wanted(self) -> None:
        """End the work on a case whose run has been stopped; a long one calls this now and then.

        Raises:
            Abandoned: If so.
        """
        if self.abandoned:
            raise Abandoned

    def files(self) -> list[tuple[Path, Path]]:
        """Return (staged file, final path) of all that was written, ordered by final path; links count as files."""
        found = []
        for root in self.roots:
            folder = os.fspath(self.folder(root))
            for place, folders, names in os.walk(folder):
                names += [name for name in folders if os.path.islink(os.path.join(place, name))]
                final = _as_prefix(root) + _as_prefix(place)[len(_as_prefix(folder)) :]
                found += [(final + name, os.path.join(place, name)) for name in names]
        return [(Path(staged), Path(final)) for final, staged in sorted(found)]

    def as_final(self, text: str) -> str:
        """Return a message in which staged files are called by their final paths."""
        for root in self.roots:
            text = text.replace(f"{self.folder(root)}{os.sep}", f"{root}{os.sep}")
        return text

    def clear(self, *, keep: int = 0) -> None:
        """Remove the staging folder with all that is still in it.

        Args:
            keep: If it holds no more than so many folders and no file, they stay for the next case.
        """
        self.checksums.clear()
        if len(self._made) > keep or (self._made and self.files()):
            for root in self.roots:
                shutil.rmtree(self.folder(root), ignore_errors=True)
            self._made.clear()


def _as_prefix(folder: str | os.PathLike) -> str:
    """Return the folder with a separator behind it, which the root of all folders has already."""
    return os.path.join(folder, "")


class Operation:
    """One tool's work. Subclasses are frozen dataclasses whose fields are the tool's parameters.

    Objects are sent to other processes, so fields are plain data. `process` may run anywhere, in any order, in several
    processes at once; all other methods run in the main process.

    Attributes:
        name: The tool's name, e.g. ``"itk_orient"``; it stands in the ledger.
        destination: Folder of the results and of ``ledger.jsonl``. A field of the subclass.
    """

    name: ClassVar[str]
    destination: Path
    places: ClassVar[tuple[str, ...]] = ("source", "destination")
    """Fields that say where things lie; all other fields decide about the results."""
    preload: ClassVar[tuple[str, ...]] = ("numpy",)
    """Modules that `process` imports late; worker processes are forked from one that has them."""

    overlapped: ClassVar[int] = 1
    """Cases that one process works on at a time, each in a thread; `process` must then bear that, and see to it that what
    must not happen twice at once (a network on its device) does not."""

    @property
    def processes(self) -> int | None:
        """Processes where the user says nothing; None plans them from cores and memory."""
        return 1

    def begin(self, *, here: bool) -> None:
        """Get ready, once, in the main process, after the cases were planned and only if there is one to do.

        What is wrong with the whole run, e.g. a model that cannot be loaded, is said here instead of with every case.

        Args:
            here: The cases are done in this process; what was loaded is used.

        Raises:
            ItkitError: If nothing can be done.
        """

    def tasks(self) -> Sequence[Task]:
        """Return the cases of the source, in a stable order.

        Raises:
            DataError: If the source is missing or holds nothing to work on.
        """
        raise NotImplementedError

    def process(self, task: Task, stage: Stage) -> Product:
        """Do the work on one case: read its inputs, write its files to ``stage.path(final)``.

        Warnings given meanwhile are added to the product's notes.

        Raises:
            ItkitError: If this case cannot be done; the message becomes the reason.
        """
        raise NotImplementedError

    def finish(self, entries: Mapping[str, dict], ask: Ask) -> Iterable[Path]:
        """Write the documents about the whole run (through `_support.files`) and return their paths.

        Args:
            entries: Case id -> ledger entry (``state``, ``record``, ``outputs``, ``reason``, ...) of every case of this
                run, also those that an earlier run has done.
            ask: Puts a question to the user, for what cannot be undone.
        """
        return ()

    def describe(self, entries: Mapping[str, dict]) -> str | None:
        """Return what the terminal shows after the run besides the counts, e.g. a table; None: nothing."""
        return None

    def parameters(self) -> dict[str, Any]:
        """Return what decides about the results, as plain data; a case done with others is done again."""
        return {
            f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name not in type(self).places
        }

    @property
    def sources(self) -> tuple[Path, ...]:
        """Folders into which nothing is ever written."""
        return (Path(self.source),) if hasattr(self, "source") else ()

    @property
    def roots(self) -> tuple[Path, ...]:
        """Folders below which the results lie; the ledger is in `destination`."""
        return (Path(self.destination),)

    def memory_bytes(self, task: Task) -> int:
        """Return about how much memory the work on a case takes, from the headers of its volumes alone.

        Four bytes a voxel for three copies; a file whose header cannot be read counts nothing (it fails at once).
        """
        needed = 0
        for path in task.inputs:
            if volume_suffix(path):
                try:
                    header = read_file_header(path)
                except ItkitError:
                    continue
                needed += 3 * max(header.data_bytes, 4 * header.data_bytes // max(header.bytes_per_value, 1))
        return needed


def require_apart(source: str | os.PathLike, destination: str | os.PathLike) -> None:
    """Refuse a destination that is the source or lies inside of it.

    Raises:
        UsageError: If so.
    """
    if Path(destination).resolve().is_relative_to(Path(source).resolve()):
        raise UsageError(
            f"{os.fspath(destination)}: the destination is the source {os.fspath(source)}, or lies inside of it; nothing is "
            "ever written into a source. Choose another folder."
        )


def plain(value: Any) -> Any:
    """Return `value` with paths as text and tuples as lists, as JSON would give it back."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return value
