"""What the ``dataset.json`` of a Medical Segmentation Decathlon task says."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from itkit.errors import DataError

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
    """

    name: str
    classes: tuple[str, ...]
    modality: tuple[str, ...]
    licence: str
    reference: str
    description: str
    training: tuple[tuple[str, str], ...]

    def document(self) -> dict:
        """Return what ``meta.json`` of the converted dataset says."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "modality": list(self.modality),
            "licence": self.licence,
            "reference": self.reference,
            "description": self.description,
            "source": "Medical Segmentation Decathlon (Antonelli et al., Nature Communications 13:4128, 2022)",
        }


def read_description(root: str | os.PathLike) -> TaskDescription:
    """Read ``<root>/dataset.json``.

    Raises:
        DataError: If it is missing, not JSON, or does not describe a task of the Decathlon.
    """
    path = Path(root) / DESCRIPTION_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError("no such file; a Decathlon task has it beside imagesTr/ and labelsTr/.", path) from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error}).", path) from error
    try:
        labels = {int(value): str(name) for value, name in document["labels"].items()}
        modality = {int(channel): str(name) for channel, name in document.get("modality", {}).items()}
        training = tuple((_inside(case["image"]), _inside(case["label"])) for case in document["training"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"does not describe a Decathlon task ({type(error).__name__}: {error}).", path) from error
    if sorted(labels) != list(range(len(labels))) or len(labels) < 2:
        raise DataError(f"label values must be 0, 1, 2, ...; found {sorted(labels)}.", path)
    return TaskDescription(
        name=str(document.get("name", Path(root).name)),
        classes=tuple(labels[value] for value in sorted(labels)),
        modality=tuple(modality[channel] for channel in sorted(modality)),
        licence=str(document.get("licence", document.get("license", ""))),
        reference=str(document.get("reference", "")),
        description=str(document.get("description", "")),
        training=training,
    )


def _inside(name: str) -> str:
    """The relative path `name`, refused if it leads out of the task's folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"path {name!r} leads out of the folder")
    return str(path)
