"""The volumes of a source folder: a flat folder, a tree, or a dataset with ``image/`` and ``label/``."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from itkit.errors import DataError
from itkit.io.headers import FORMATS, volume_stem, volume_suffix
from itkit.process.cases import IMAGE_FOLDER, LABEL_FOLDER


@dataclass(frozen=True)
class SourceFile:
    """One volume file of a source.

    Attributes:
        path: The file.
        relative: Its path below the source.
        role: ``"image"`` or ``"label"``, by the folder of a dataset it lies in; None in a plain folder.
    """

    path: Path
    relative: Path
    role: str | None = None

    @property
    def case_id(self) -> str:
        """The path below the source without the volume suffix, with ``/``."""
        name = self.relative.as_posix()
        return name[: len(name) - len(volume_suffix(name))]

    def renamed(self, suffix: str) -> Path:
        """Return the relative path with another volume suffix."""
        return self.relative.parent / (volume_stem(self.relative) + suffix)


@dataclass(frozen=True)
class SourceCase:
    """One case of a source: an image with its label, or a single file.

    Attributes:
        case_id: Path below the source (below ``image/`` and ``label/`` of a dataset), without suffix, with ``/``.
        files: Its files, the image first.
    """

    case_id: str
    files: tuple[SourceFile, ...]

    @property
    def image(self) -> SourceFile | None:
        """The image, or the only file of a plain folder; None for a label alone."""
        return next((file for file in self.files if file.role != LABEL_FOLDER), None)

    @property
    def label(self) -> SourceFile | None:
        """The label of a dataset's case, if there is one."""
        return next((file for file in self.files if file.role == LABEL_FOLDER), None)


def is_dataset(folder: str | os.PathLike) -> bool:
    """Say whether `folder` has the one layout: a folder ``image/`` in it."""
    return (Path(folder) / IMAGE_FOLDER).is_dir()


def find_files(source: str | os.PathLike, *, recursive: bool = False) -> list[SourceFile]:
    """Return every volume of `source`, ordered by relative path.

    A dataset's ``image/`` and ``label/`` are looked into in any case; other subfolders only if `recursive`. Hidden files
    and folders are passed over. A symbolic link is followed; a folder that was entered already (a loop) is not entered
    again.

    Args:
        source: A folder, or one volume file.
        recursive: Look into subfolders.

    Raises:
        DataError: If there is no such folder, it cannot be listed, or it holds no volume.
    """
    source = Path(source)
    if source.is_file():
        if not volume_suffix(source):
            raise DataError(f"is not a volume file; known formats are {', '.join(sorted(FORMATS))}.", source)
        return [SourceFile(source, Path(source.name))]
    if not source.is_dir():
        raise DataError("no such folder.", source)
    dataset = is_dataset(source)
    found, above = [], len(os.path.join(source, ""))
    for path in _walk(source, recursive, (IMAGE_FOLDER, LABEL_FOLDER) if dataset else ()):
        relative = path[above:]
        top = relative.partition(os.sep)[0]
        role = top if dataset and top in (IMAGE_FOLDER, LABEL_FOLDER) else None
        found.append(SourceFile(Path(path), Path(relative), role))
    if not recursive and found:
        _warn_of_subfolders(source, dataset)
    if not found:
        hint = "" if recursive else " Look into its subfolders with -r." * any(p.is_dir() for p in source.iterdir())
        raise DataError(f"holds no volume ({', '.join(sorted(FORMATS))}).{hint}", source)
    return sorted(found, key=lambda file: file.relative.as_posix())


def group_cases(files: Iterable[SourceFile]) -> list[SourceCase]:
    """Put image and label of the same name together; every file of a plain folder is a case of its own.

    Where a name appears in several formats, or in a plain folder twice, the case ids carry the suffix.

    Returns:
        The cases, ordered by case id.
    """
    found: dict[str, list[SourceFile]] = {}
    for file in files:
        name = file.case_id
        found.setdefault(name.removeprefix(f"{file.role}/") if file.role else name, []).append(file)
    cases = []
    for case_id, group in found.items():
        roles = [file.role for file in group]
        if len(group) == len(set(roles)):
            cases.append(SourceCase(case_id, tuple(sorted(group, key=lambda file: file.role or ""))))
        else:
            cases += [SourceCase(file.relative.as_posix(), (file,)) for file in group]
    return sorted(cases, key=lambda case: case.case_id)


def _warn_of_subfolders(source: Path, dataset: bool) -> None:
    """Say how many volumes lie one folder deeper, so that nobody takes them for done."""
    tops = [source / name for name in (IMAGE_FOLDER, LABEL_FOLDER) if (source / name).is_dir()] if dataset else [source]
    below = [entry.path for top in tops for entry in os.scandir(top) if entry.name[0] != "." and _is_folder(entry)]
    count = 0
    for folder in below:
        with contextlib.suppress(OSError):
            count += sum(bool(volume_suffix(name)) and name[0] != "." for name in os.listdir(folder))
    if count:
        warnings.warn(f"{source}: {count} volumes in subfolders are left out; -r takes them too.", stacklevel=3)


def _walk(source: Path, recursive: bool, always: tuple[str, ...]) -> Iterator[str]:
    # What lies above the source is entered already: a link that leads there is a loop too.
    entered = {(at.st_dev, at.st_ino) for at in map(os.stat, source.resolve().parents)}
    top = os.fspath(source)
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"cannot be listed ({error.strerror}).", folder) from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                if recursive or (folder == top and entry.name in always):
                    waiting.append(os.path.join(folder, entry.name))
            elif volume_suffix(entry.name):
                yield os.path.join(folder, entry.name)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: whoever reads it is told
        return False
