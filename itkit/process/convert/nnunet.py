"""nnU-Net's raw layout, version 2: a file for each channel, ``<case>_0000``, and ``dataset.json`` with names and counts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from itkit.errors import DataError, UsageError
from itkit.process.cases import list_volumes
from itkit.process.convert.conversion import as_ascii_json
from itkit.process.convert.description import Description, names_by_number
from itkit.process.convert.layout import (
    TEST,
    TRAINING,
    ForeignCase,
    LayoutConversion,
    inside,
    some,
    split_by_place,
)
from itkit.process.convert.msd import read_json

DATASET_NAME, FOLDS_NAME = "dataset.json", "splits_final.json"
FOLDER = re.compile(r"Dataset(\d{3,})_(.+)")
"""How nnU-Net finds a dataset: by the name of its folder."""
BACKGROUND = "background"
"""What nnU-Net calls label 0."""
EXTRA_KEY = "nnunet"
"""Entry of ``meta.json`` with what ``dataset.json`` says that no other layout knows, e.g. regions."""
_OWN_KEYS = {"channel_names", "labels", "numTraining", "file_ending", "name", "description", "reference", "licence",
             "release"}  # fmt: skip
_TEXTS = ("description", "reference", "licence", "release")


@dataclass(frozen=True)
class NnUNet(LayoutConversion):
    """One file a channel; what is not trained on is in ``imagesTs/``, with ``labelsTs/`` for its labels if it has some.

    Label values must be 0, 1, 2, ... and named, and all cases have the same number of channels. A split with a part ``val``
    becomes ``splits_final.json``, which nnU-Net looks for in its folder of preprocessed data.

    Raises:
        UsageError: If the folder of the layout is not called as nnU-Net wants it.
    """

    name: ClassVar[str] = "itk_convert nnunet"
    formats: ClassVar[tuple[str, ...]] = ("nii.gz", "nrrd", "mha")
    series: ClassVar[bool] = False
    document_names: ClassVar[tuple[str, ...]] = (DATASET_NAME, FOLDS_NAME)

    def __post_init__(self):
        super().__post_init__()
        if not self.back and not FOLDER.fullmatch(Path(self.destination).name):
            raise UsageError(
                f"{self.destination}: nnU-Net finds a dataset by the name of its folder, a number and a name: give e.g. "
                f"{Path(self.destination) / 'Dataset001_Name'}."
            )

    def image_names(self, name: str, place: str, channels: int | None) -> list[str]:
        return [f"images{place}/{name}_{channel:04d}{self.suffix}" for channel in range(channels or 1)]

    def check_values(self, outside: Sequence[int], classes: int | None, path: Path) -> str:
        what = "negative values are impossible" if classes is None else f"the dataset has {classes} classes"
        raise DataError(
            f"label values {some(outside)} have no class name ({what}), and nnU-Net refuses them. Correct the label, or name "
            "more classes with --labels.",
            path,
        )

    def check_channels(self, channels: int, named: int, path: Path) -> str:
        raise DataError(
            f"has {channels} channel(s), the dataset names {named}; nnU-Net needs the same in every case.", path
        )

    def same_classes(self, there: tuple[str, ...], here: tuple[str, ...]) -> bool:
        return there[1:] == here[1:]

    def make_documents(self, about: Description, cases: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        _require_one_channel_count(cases, self.destination)
        extra = about.meta.get(EXTRA_KEY, {})
        labels = extra.get("labels") or self._labels(about, cases)
        training = [case for case in cases if case["place"] == TRAINING]
        if not training:
            raise DataError("no case has a label and is in train or val; nnU-Net has nothing to train on.", self.source)
        document = {
            "channel_names": {str(channel): name for channel, name in enumerate(about.modality or ())},
            "labels": labels,
            "numTraining": len(training),
            "file_ending": self.suffix,
            "name": about.name or FOLDER.fullmatch(Path(self.destination).name).group(2),
            **{key: about.text(key) for key in _TEXTS if about.text(key)},
            **{key: value for key, value in extra.items() if key not in _OWN_KEYS},
        }
        documents = {DATASET_NAME: as_ascii_json(document)}
        folds = {part: [case["name"] for case in training if case["part"] == part] for part in ("train", "val")}
        if about.split is not None and folds["val"]:
            documents[FOLDS_NAME] = as_ascii_json([folds])
        return documents

    def read_layout(self) -> tuple[Description, list[ForeignCase]]:
        root = Path(self.source)
        path = root / DATASET_NAME
        document = read_json(path, "a raw dataset of nnU-Net has it beside imagesTr/ and labelsTr/")
        try:
            ending, channel_names, labels = document["file_ending"], document["channel_names"], document["labels"]
        except KeyError as error:
            raise DataError(
                f"does not describe a raw dataset of nnU-Net, version 2: it has no {error}.", path
            ) from error
        modality = names_by_number(channel_names, "channel_names", path)
        classes, regions = _classes(labels, path)
        cases = [
            *(self._listed(root, document["dataset"], path) if "dataset" in document else self._cases(root, TRAINING, ending,
                                                                                                   len(modality))),
            *self._cases(root, TEST, ending, len(modality)),
        ]  # fmt: skip
        named = FOLDER.fullmatch(root.resolve().name)
        meta = {
            "name": document.get("name") or (named.group(2) if named else root.name),
            "classes": list(classes),
            "modality": list(modality),
            **{key: document[key] for key in _TEXTS if document.get(key)},
        }
        extra = {key: value for key, value in document.items() if key not in (*_OWN_KEYS, "dataset")}
        if extra or regions:
            meta[EXTRA_KEY] = extra | ({"labels": labels} if regions else {})
        split = _folds(root / FOLDS_NAME, cases) if (root / FOLDS_NAME).is_file() else split_by_place(cases)
        return Description(meta["name"], classes, modality, split, meta), cases

    def describe(self, entries: Mapping[str, dict]) -> str | None:
        text, folder = super().describe(entries), Path(self.destination) / "imagesTr"
        if self.back or text is None:
            return text
        done = [entry for entry in entries.values() if entry["state"] == "done"]
        known = {Path(name).name for entry in done for name in entry["outputs"]}
        strange = [path.name for path in _volumes(folder) if path.name not in known]
        if strange:
            text += (
                f"\n{folder} holds {len(strange)} file(s) that belong to no case of this run, first {strange[0]}; nnU-Net "
                "trains on whatever is there: remove what does not belong there"
            )
        return text

    def _labels(self, about: Description, cases: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        """Name -> value. Classes that nobody named must be those that are there."""
        if self.about.classes is None:
            seen = sorted({value for case in cases for value in case.get("values", ())})
            missing = [value for value in range(len(about.classes)) if value and value not in seen]
            if missing:
                raise DataError(
                    f"the labels hold the values {some(seen)}, without {some(missing)}; nnU-Net needs 0, 1, 2, .... Renumber "
                    "them with itk_extract, or name the classes with --labels.",
                    self.source,
                )
        names = (BACKGROUND, *about.classes[1:])
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"several classes are called {twice[0]!r}; nnU-Net tells classes by name.", self.source)
        return {name: value for value, name in enumerate(names)}

    def _cases(self, root: Path, place: str, ending: str, channels: int) -> list[ForeignCase]:
        images, labels = root / f"images{place}", root / f"labels{place}"
        numbered = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
        found: dict[str, dict[int, Path]] = {}
        cases, part = [], "test" if place == TEST else None
        for path in _volumes(images):
            match = numbered.fullmatch(path.name)
            if match:
                found.setdefault(match.group(1), {})[int(match.group(2))] = path
            else:
                problem = f"an image file of nnU-Net is called <case>_0000{ending}, with the number of the channel."
                cases.append(ForeignCase(path.name, (path,), None, part, problem))
        for name, files in found.items():
            label, problem = labels / (name + ending), None
            if sorted(files) != list(range(channels)):
                numbers = ", ".join(f"{number:04d}" for number in sorted(files))
                problem = f"has the channels {numbers}, {DATASET_NAME} names {channels}, from 0000 on."
            elif not label.is_file() and place == TRAINING:
                problem = f"no label labels{place}/{label.name}."
            cases.append(
                ForeignCase(
                    name, tuple(files[k] for k in sorted(files)), label if label.is_file() else None, part, problem
                )
            )
        for path in _volumes(labels):
            name = path.name.removesuffix(ending)
            if name not in found:
                cases.append(ForeignCase(name, (), path, part, "a label without an image."))
        return cases

    def _listed(self, root: Path, listed: object, path: Path) -> list[ForeignCase]:
        """The training cases where ``dataset.json`` says which files they are."""
        try:
            return [
                ForeignCase(
                    name,
                    tuple(inside(root, image, path) for image in files["images"]),
                    inside(root, files["label"], path),
                )
                for name, files in listed.items()
            ]
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(f"'dataset' should be {{case: {{images, label}}}} ({error}).", path) from error


def _classes(labels: object, path: Path) -> tuple[tuple[str, ...], bool]:
    """Class names by value, and whether they are regions (sets of values), whose values have no names of their own."""
    try:
        regions = any(not isinstance(value, (int, str)) for value in labels.values())
        if not regions:
            return names_by_number({value: name for name, value in labels.items()}, "labels", path), False
        values = {int(v) for value in labels.values() for v in (value if isinstance(value, list) else [value])}
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"labels should be {{name: value}}, they are {labels!r}.", path) from error
    return (BACKGROUND, *(f"class_{value}" for value in range(1, max(values, default=0) + 1))), True


def _folds(path: Path, cases: Sequence[ForeignCase]) -> dict[str, list[str]]:
    """The first fold as train and val."""
    try:
        fold = json.loads(path.read_text(encoding="utf-8"))[0]
        train, val = ([str(name) for name in fold[part]] for part in ("train", "val"))
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"should be a list of {{train, val}} ({type(error).__name__}: {error}).", path) from error
    return {"train": train, "val": val, "test": [case.name for case in cases if case.part == "test" and case.label]}


def _require_one_channel_count(cases: Sequence[Mapping[str, Any]], folder: str) -> None:
    by_count: dict[int, list[str]] = {}
    for case in cases:
        by_count.setdefault(case["channels"] or 1, []).append(case["name"])
    if len(by_count) > 1:
        few = min(by_count.values(), key=len)
        counts = ", ".join(map(str, sorted(by_count)))
        raise DataError(
            f"the cases have {counts} channels, and nnU-Net needs the same in all; the odd ones are {', '.join(few[:5])}. "
            f"{DATASET_NAME} was not written.",
            folder,
        )


def _volumes(folder: Path) -> list[Path]:
    return [path for paths in list_volumes(folder).values() for path in paths] if folder.is_dir() else []
