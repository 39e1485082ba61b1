"""Find the cases of a dataset folder: which image belongs to which label, and which files belong to nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from itkit.errors import DataError
from itkit.io.headers import volume_stem, volume_suffix

IMAGE_FOLDER, LABEL_FOLDER = "image", "label"


@dataclass(frozen=True)
class Case:
    """One patient's files.

    Attributes:
        case_id: File name without folder and volume suffix.
        image: The image file.
        label: The label file; None for an unlabelled case.
    """

    case_id: str
    image: Path
    label: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are there, image first."""
        return (self.image,) if self.label is None else (self.image, self.label)


@dataclass(frozen=True)
class CaseFolder:
    """What a dataset folder holds.

    Attributes:
        root: The folder.
        cases: Every image once, with its label if there is one, ordered by case id.
        orphans: Case id -> label file, for labels that have no image.
        duplicates: Case id -> files, where one folder holds a name in several formats.
    """

    root: Path
    cases: tuple[Case, ...]
    orphans: dict[str, Path] = field(default_factory=dict)
    duplicates: dict[str, tuple[Path, ...]] = field(default_factory=dict)

    @property
    def unlabelled(self) -> tuple[Case, ...]:
        """The cases without a label."""
        return tuple(case for case in self.cases if case.label is None)


def find_cases(root: str | os.PathLike) -> CaseFolder:
    """Pair ``<root>/image`` and ``<root>/label`` by file name, whatever the formats are.

    Hidden files (also ``._*`` of macOS) and files that are not volumes are passed over. Where a name appears in two
    formats, the first in alphabetical order stands in `cases` and all of them in `duplicates`.

    Args:
        root: The dataset's folder. ``label`` may be missing; then every case is unlabelled.

    Returns:
        The cases and all that does not fit.

    Raises:
        DataError: If the folder, or its ``image`` folder, is missing or holds no volume.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError("no such folder; a dataset is a folder with image/ and label/.", root)
    if not (root / IMAGE_FOLDER).is_dir():
        raise DataError(f"has no folder {IMAGE_FOLDER}/; a dataset keeps its images there.", root)
    images, labels = list_volumes(root / IMAGE_FOLDER), {}
    if not images:
        raise DataError("holds no volume (.mha, .mhd, .nii, .nii.gz or .nrrd).", root / IMAGE_FOLDER)
    if (root / LABEL_FOLDER).is_dir():
        labels = list_volumes(root / LABEL_FOLDER)
    duplicates: dict[str, tuple[Path, ...]] = {}
    for found in (images, labels):
        for case_id, files in found.items():
            if len(files) > 1:
                duplicates[case_id] = duplicates.get(case_id, ()) + files
    return CaseFolder(
        root,
        tuple(Case(case_id, images[case_id][0], labels.get(case_id, (None,))[0]) for case_id in sorted(images)),
        {case_id: labels[case_id][0] for case_id in sorted(labels.keys() - images.keys())},
        duplicates,
    )


def list_volumes(folder: str | os.PathLike) -> dict[str, tuple[Path, ...]]:
    """Return case id -> volume files of `folder` (not of its subfolders), both sorted by name.

    Raises:
        DataError: If the folder cannot be listed.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"cannot be listed ({error.strerror}).", folder) from error
    found: dict[str, tuple[Path, ...]] = {}
    for name in names:
        if not name.startswith(".") and volume_suffix(name):
            found[volume_stem(name)] = (*found.get(volume_stem(name), ()), Path(folder) / name)
    return dict(sorted(found.items()))
