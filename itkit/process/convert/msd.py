"""The Medical Segmentation Decathlon's layout: ``imagesTr/``, ``labelsTr/``, ``imagesTs/`` and ``dataset.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from itkit.errors import DataError
from itkit.io.headers import volume_stem
from itkit.process.cases import list_volumes
from itkit.process.convert.conversion import as_ascii_json
from itkit.process.convert.description import Description
from itkit.process.convert.layout import TEST, TRAINING, ForeignCase, LayoutConversion, split_by_place

DESCRIPTION_NAME = "dataset.json"


@dataclass(frozen=True)
class TaskDescription:
    """One task.

    Attributes:
        name: Its name, e.g. ``"Hippocampus"``.
        classes: Names of label values 0, 1, ..., the background first.
        modality: Name of each channel, e.g. ``("FLAIR", "T1w", "t1gd", "T2w")``.
        licence: As written.
        reference: Who published it.
        description: In a sentence.
        training: Image and label file of each case, relative to the task's folder.
        release: As written.
        test: Image file of each case without a published label.
    """

    name: str
    classes: tuple[str, ...]
    modality: tuple[str, ...]
    licence: str
    reference: str
    description: str
    training: tuple[tuple[str, str], ...]
    release: str = ""
    test: tuple[str, ...] = ()

    def document(self) -> dict:
        """Return what ``meta.json`` of the converted dataset says."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "modality": list(self.modality),
            "licence": self.licence,
            "reference": self.reference,
            "description": self.description,
        }


def read_task(root: str | os.PathLike) -> TaskDescription:
    """Read ``<root>/dataset.json``.

    Raises:
        DataError: If it is missing, not JSON, or does not describe a task of the Decathlon.
    """
    path = Path(root) / DESCRIPTION_NAME
    document = read_json(path, "a Decathlon task has it beside imagesTr/ and labelsTr/")
    try:
        labels = {int(value): str(name) for value, name in document["labels"].items()}
        modality = {int(channel): str(name) for channel, name in document.get("modality", {}).items()}
        training = tuple((_inside(case["image"]), _inside(case["label"])) for case in document["training"])
        test = tuple(_inside(case["image"] if isinstance(case, dict) else case) for case in document.get("test", ()))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"does not describe a Decathlon task ({type(error).__name__}: {error}).", path) from error
    if sorted(labels) != list(range(len(labels))) or not labels:
        raise DataError(f"label values must be 0, 1, 2, ...; found {sorted(labels)}.", path)
    return TaskDescription(
        name=str(document.get("name", Path(root).name)),
        classes=tuple(labels[value] for value in sorted(labels)),
        modality=tuple(modality[channel] for channel in sorted(modality)),
        licence=str(document.get("licence", document.get("license", ""))),
        reference=str(document.get("reference", "")),
        description=str(document.get("description", "")),
        training=training,
        release=str(document.get("release", "")),
        test=test,
    )


@dataclass(frozen=True)
class MSD(LayoutConversion):
    """The Decathlon's layout. Channels are the fourth axis of the image; what is not trained on is in ``imagesTs/``, with
    ``labelsTs/`` for its labels if it has some."""

    name: ClassVar[str] = "itk_convert msd"
    formats: ClassVar[tuple[str, ...]] = ("nii.gz",)

    def make_documents(self, about: Description, cases: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        training = [
            {"image": f"./{case['images'][0]}", "label": f"./{case['label']}"}
            for case in cases
            if case["place"] == TRAINING
        ]
        test = [f"./{case['images'][0]}" for case in cases if case["place"] == TEST]
        counts = {"numTraining": len(training), "numTest": len(test)}
        return {
            DESCRIPTION_NAME: as_ascii_json(task_keys(about, cases) | counts | {"training": training, "test": test})
        }

    def read_layout(self) -> tuple[Description, list[ForeignCase]]:
        root, task = Path(self.source), read_task(self.source)
        cases = [ForeignCase(volume_stem(image), (root / image,), root / label) for image, label in task.training]
        cases += [
            ForeignCase(volume_stem(image), (root / image,), label_beside(root / image), "test") for image in task.test
        ]
        cases += forgotten_cases(root, cases)
        meta = {key: value for key, value in (task.document() | {"release": task.release}).items() if value}
        return Description(task.name, task.classes, task.modality or None, split_by_place(cases), meta), cases


def task_keys(about: Description, cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what ``dataset.json`` says of the dataset as a whole."""
    return {
        "name": about.name or "",
        **{key: about.text(key) for key in ("description", "reference", "licence", "release")},
        "tensorImageSize": "4D" if any(case["channels"] for case in cases) else "3D",
        "modality": {str(channel): name for channel, name in enumerate(about.modality or ())},
        "labels": {str(value): name for value, name in enumerate(about.classes or ())},
    }


def forgotten_cases(root: Path, cases: Sequence[ForeignCase]) -> list[ForeignCase]:
    """Return the cases that lie in the folders and that ``dataset.json`` forgot, and labels that have no image."""
    named = {path for case in cases for path in (*case.images, case.label)}
    added = []
    for place, part in ((TRAINING, None), (TEST, "test")):
        images, labels = root / f"images{place}", root / f"labels{place}"
        there = list_volumes(images) if images.is_dir() else {}
        for name, path in ((name, path) for name, paths in there.items() for path in paths):
            if path not in named:
                label = label_beside(path)
                problem = None if label or part else f"no label in labels{place}/."
                added.append(ForeignCase(name, (path,), label, part, problem))
        for name, (path, *_) in (list_volumes(labels) if labels.is_dir() else {}).items():
            if name not in there and path not in named:
                added.append(ForeignCase(name, (), path, part, "a label without an image."))
    return added


def read_json(path: Path, why: str) -> dict[str, Any]:
    """Return the JSON object at `path`.

    Args:
        path: The file.
        why: Completes the sentence "no such file; ...".

    Raises:
        DataError: If it is missing, damaged, or something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"no such file; {why}.", path) from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error}).", path) from error
    if not isinstance(document, dict):
        raise DataError("is not a JSON object.", path)
    return document


def label_beside(image: Path) -> Path | None:
    """Return the label of an image in ``images<place>/``: the file of the same name in ``labels<place>/``; None without."""
    folder = image.parent.with_name(image.parent.name.replace("images", "labels", 1))
    if folder == image.parent:
        return None
    exact = folder / image.name
    if exact.is_file():
        return exact
    return list_volumes(folder).get(volume_stem(image), (None,))[0] if folder.is_dir() else None


def _inside(name: str) -> str:
    """The relative path `name`, refused if it leads out of the task's folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"path {name!r} leads out of the folder")
    return str(path)
