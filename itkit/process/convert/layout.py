"""The pattern of all layouts: the one layout to another and back, case by case, then documents that fit what is there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from itkit._support.suggestions import did_you_mean
from itkit.errors import DataError, UsageError
from itkit.io.geometry import require_same_grid
from itkit.io.labels import count_values, require_whole
from itkit.io.volumes import Volume
from itkit.process.cases import IMAGE_FOLDER, LABEL_FOLDER
from itkit.process.convert.conversion import read_names, require_ours, write_documents
from itkit.process.convert.description import Description, read_described
from itkit.process.convert.fidelity import read_noting, write_kept
from itkit.process.documents import META_NAME
from itkit.process.operation import Ask, Operation, Product, Stage, Task, require_apart
from itkit.process.sources import find_files, is_dataset
from itkit.process.splits import PARTS, SPLIT_NAME, Split

TRAINING, TEST = "Tr", "Ts"
"""Endings of the folders of cases that are, and are not, trained on."""
MANY_VALUES = 256
"""Of a label map with more values, only the first ones are noted in the ledger."""
BACK_FORMATS = ("mha", "nii.gz", "nrrd", "mhd", "nii")


@dataclass(frozen=True)
class ForeignCase:
    """One case of another layout.

    Attributes:
        name: What it is called there.
        images: Its image; several files are its channels, in order.
        label: Its label, None without.
        part: The part of the split that its place there means; None: none.
        problem: Why it cannot be converted; None: it can.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None
    part: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class ConversionTask(Task):
    """The conversion of one case.

    Attributes:
        name: What the case is called in the other layout.
        images: Its image files; several are channels, in order.
        label: Its label file; None without.
        part: Its part of the split; None: none.
        place: `TRAINING` or `TEST`, on the way there.
        classes: Number of classes of the dataset; None: unknown.
        channels: Number of channels that the dataset names; None: unknown.
        problem: Why it cannot be done; None: it can.
    """

    name: str = ""
    images: tuple[Path, ...] = ()
    label: Path | None = None
    part: str | None = None
    place: str = TEST
    classes: int | None = None
    channels: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class LayoutConversion(Operation):
    """A dataset in the one layout becomes one in another, or (`back`) the reverse. Subclasses know one layout.

    Voxels, number types, places in space, case ids, classes, the split and ``meta.json`` are the same after there and back.
    ``meta.json`` and ``split.json`` travel along as they are; where the other layout's own document says the same thing, the
    two must agree.

    Args:
        source: The dataset to convert. Not modified.
        destination: Folder for the result.
        back: From the other layout to ``image/`` and ``label/``.
        format: Format of the volumes, without the leading dot; None: the first of `formats` (``mha`` on the way back).
        labels: Names of label values 0, 1, ..., instead of those that the source gives.
        modality: Name of each channel, instead of those that the source gives.
        dataset_name: Name of the dataset, instead of the one that the source gives.
        description: A sentence about it, instead of the one that the source gives.

    Raises:
        UsageError: If the format is none of the layout's, or the destination lies inside the source.
    """

    source: str
    destination: str
    back: bool = False
    format: str | None = None
    labels: tuple[str, ...] | None = None
    modality: tuple[str, ...] | None = None
    dataset_name: str | None = None
    description: str | None = None

    formats: ClassVar[tuple[str, ...]] = ("nii.gz", "nii")
    series: ClassVar[bool] = True
    """Whether channels are the fourth axis of a NIfTI file."""
    image_folder: ClassVar[str] = "images{place}"
    label_folder: ClassVar[str] = "labels{place}"
    document_names: ClassVar[tuple[str, ...]] = ("dataset.json",)

    def __post_init__(self):
        require_apart(self.source, self.destination)
        known = BACK_FORMATS if self.back else self.formats
        if self.format is not None and self.format.lstrip(".").lower() not in known:
            raise UsageError(f"{self.name}: the format is one of {', '.join(known)}, not {self.format!r}.")

    # What a subclass says of its layout

    def image_names(self, name: str, place: str, channels: int | None) -> list[str]:
        """Return the image files of a case below the layout's folder; several files hold a channel each.

        Args:
            name: The case there.
            place: `TRAINING` or `TEST`.
            channels: Channels of the image; None without a channel axis.
        """
        return [f"{self.image_folder.format(place=place)}/{name}{self.suffix}"]

    def label_name(self, name: str, place: str) -> str:
        """Return the label file of a case below the layout's folder."""
        return f"{self.label_folder.format(place=place)}/{name}{self.suffix}"

    def make_documents(self, about: Description, cases: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Return name -> text of the layout's own documents.

        Args:
            about: What is known of the dataset; classes and modality are known.
            cases: The records of all cases that are there, ordered by name.

        Raises:
            DataError: If the layout cannot say it.
        """
        raise NotImplementedError

    def read_layout(self) -> tuple[Description, list[ForeignCase]]:
        """Return what the source, a dataset in this layout, says of itself, and its cases.

        Raises:
            DataError: If it is none.
        """
        raise NotImplementedError

    def check_values(self, outside: Sequence[int], classes: int | None, path: Path) -> str:
        """Return a note on the label values `outside` of the dataset's `classes` (below 0, if their number is unknown), or
        refuse them."""
        return f"{path.name}: label values {some(outside)} have no class name"

    def check_channels(self, channels: int, named: int, path: Path) -> str:
        """Return a note on an image with another number of channels than the dataset has `named`, or refuse it."""
        return f"{path.name}: has {channels} channel(s), the dataset names {named}"

    def same_part(self, there: str | None, here: str | None) -> bool:
        """Say whether a case's place in the layout (`ForeignCase.part`) fits its part in ``split.json``."""
        return here in ((None, "test") if there == "test" else (None, "train", "val"))

    def same_classes(self, there: tuple[str, ...], here: tuple[str, ...]) -> bool:
        """Say whether class names of the layout's own document mean those of ``meta.json``."""
        return there == here

    # Both ways

    @property
    def tool(self) -> str:
        """What is typed."""
        return f"{self.name} --back" if self.back else self.name

    @property
    def suffix(self) -> str:
        """Ending of the volumes to write."""
        default = BACK_FORMATS[0] if self.back else self.formats[0]
        return "." + (self.format or default).lstrip(".").lower()

    @cached_property
    def about(self) -> Description:
        """What is known of the dataset, with what the user said instead."""
        about = self._layout[0] if self.back else read_described(self.source)
        meta = dict(about.meta)
        for key, value in (
            ("name", self.dataset_name), ("classes", self.labels), ("modality", self.modality),
            ("description", self.description),
        ):  # fmt: skip
            if value is not None:
                meta[key] = list(value) if isinstance(value, tuple | list) else value
        return replace(
            about,
            name=self.dataset_name or about.name,
            classes=tuple(self.labels) if self.labels else about.classes,
            modality=tuple(self.modality) if self.modality else about.modality,
            meta=meta,
        )

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: what was read of the dataset stays in the main process."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def parameters(self) -> dict[str, Any]:
        """Return what decides about the volumes; names of classes only make other documents."""
        return {"back": self.back, "format": self.suffix, **self._counts}

    def tasks(self) -> Sequence[Task]:
        documents = () if self.back else self.document_names
        require_ours(Path(self.destination), self.tool, (*documents, META_NAME, SPLIT_NAME))
        tasks = self._tasks_back() if self.back else self._tasks_there()
        seen = {task.case_id for task in tasks}
        for part in PARTS:
            for case_id in (self.about.split or {}).get(part, ()):
                if case_id not in seen:
                    problem = f"{part} names this case, and it is not there." + did_you_mean(case_id, seen)
                    tasks.append(ConversionTask(case_id, (self._split_path,), problem=problem))
        return tasks

    @property
    def _split_path(self) -> Path:
        """The file that the split comes from."""
        names = (SPLIT_NAME, *reversed(self.document_names))
        return next(path for path in (Path(self.source) / name for name in names) if path.is_file())

    def process(self, task: ConversionTask, stage: Stage) -> Product:
        if task.problem is not None:
            raise DataError(task.problem, task.inputs[0])
        notes: list[str] = []
        image = self._read_image(task, notes)
        record: dict[str, Any] = {"channels": image.array.shape[0] if image.array.ndim == 4 else None}
        channels = record["channels"] or 1
        if task.channels not in (None, channels):
            notes.append(self.check_channels(channels, task.channels, task.images[0]))
        label = None if task.label is None else read_noting(task.label, notes)
        if label is not None:
            record |= self._check_label(image, label, task, notes)
        write = self._write_back if self.back else self._write_there
        record |= write(task, stage, image, label, notes)
        return Product(record, tuple(notes))

    def finish(self, entries: Mapping[str, dict], ask: Ask) -> Iterable[Path]:
        done = {case_id: entry for case_id, entry in sorted(entries.items()) if entry["state"] == "done"}
        if not done:
            return ()
        about, documents, names = self.about, {}, {}
        if not self.back:
            parts = {
                case_id: self.part_of(case_id, entry["record"]["label"] is not None) for case_id, entry in done.items()
            }
            cases = [entry["record"] | {"part": parts[case_id]} for case_id, entry in done.items()]
            cases.sort(key=lambda case: case["name"])
            documents = self.make_documents(_complete(about, cases), cases)
            names = {e["record"]["name"]: case_id for case_id, e in done.items() if e["record"]["name"] != case_id}
        if about.meta:
            documents[META_NAME] = json.dumps(about.meta, indent=1, ensure_ascii=False) + "\n"
        if about.split is not None:
            there = {part: [case_id for case_id in about.split[part] if case_id in done] for part in PARTS}
            documents[SPLIT_NAME] = json.dumps(there, indent=1, ensure_ascii=False) + "\n"
        return write_documents(Path(self.destination), self.tool, documents, names)

    def describe(self, entries: Mapping[str, dict]) -> str | None:
        records = [entry["record"] for entry in entries.values() if entry["state"] == "done"]
        if not records:
            return None
        lines = [f"{len(records)} cases, {sum(record['label'] is not None for record in records)} with a label"]
        if self.about.classes is None:
            lines.append("class names: unknown; name them with --labels or in meta.json")
        else:
            seen = {value for record in records for value in record.get("values", ())}
            absent = [name for value, name in enumerate(self.about.classes) if value and value not in seen]
            lines += [f"classes that no case has: {', '.join(absent)}"] if absent else []
        if self.about.modality is None:
            lines.append("modality: unknown; name it with --modality or in meta.json")
        return "\n".join(lines)

    def _read_image(self, task: ConversionTask, notes: list[str]) -> Volume:
        volumes = [read_noting(path, notes) for path in task.images]
        if len(volumes) == 1:
            return volumes[0]
        for path, volume in zip(task.images, volumes, strict=True):
            if volume.array.ndim == 4:
                raise DataError(f"is one of several channels and has {volume.array.shape[0]} channels itself.", path)
            require_same_grid(volumes[0], volume, path)
        kinds = [volume.array.dtype for volume in volumes]
        if len(set(kinds)) > 1:
            kind = np.result_type(*kinds)
            whole = [volume.array for volume in volumes if volume.array.dtype.kind in "iu"]
            if any(not np.array_equal(array.astype(kind).astype(array.dtype), array) for array in whole):
                raise DataError(f"the channels have the types {', '.join(map(str, kinds))}; no type holds all.", path)
            notes.append(f"the channels have the types {', '.join(map(str, kinds))}; all are {kind} now")
        array = np.stack([volume.array for volume in volumes])
        return Volume(array, volumes[0].spacing_zyx, volumes[0].origin_xyz, volumes[0].direction_xyz)

    def _check_label(self, image: Volume, label: Volume, task: ConversionTask, notes: list[str]) -> dict[str, Any]:
        path = task.label
        if label.array.ndim == 4:
            raise DataError(f"the label has {label.array.shape[0]} channels; a label map has one value a voxel.", path)
        require_same_grid(image, label, path)
        values = sorted(count_values(require_whole(label.array, path)))
        outside = [value for value in values if value < 0 or (task.classes is not None and value >= task.classes)]
        if outside:
            notes.append(self.check_values(outside, task.classes, path))
        return {"values": values[:MANY_VALUES], "largest": values[-1]}

    # There

    def _tasks_there(self) -> list[Task]:
        found: dict[str, dict[str, list[Path]]] = {}
        if Path(self.source).is_dir() and not is_dataset(self.source):
            raise DataError(f"has no folder {IMAGE_FOLDER}/; a dataset keeps its images there.", self.source)
        for file in find_files(self.source, recursive=True):
            if file.role is not None:
                case_id = PurePosixPath(file.case_id).relative_to(file.role).as_posix()
                found.setdefault(case_id, {IMAGE_FOLDER: [], LABEL_FOLDER: []})[file.role].append(file.path)
        by_name: dict[str, list[str]] = {}
        for case_id in found:
            by_name.setdefault(_flat(case_id), []).append(case_id)
        return [
            self._task_there(case_id, *found[case_id].values(), by_name[_flat(case_id)]) for case_id in sorted(found)
        ]

    def _task_there(self, case_id: str, images: list[Path], labels: list[Path], same_name: list[str]) -> Task:
        name, part, problem = _flat(case_id), self.part_of(case_id, bool(labels)), None
        twice = images if len(images) > 1 else labels if len(labels) > 1 else None
        if twice:
            problem = f"{case_id!r} is there in several formats: {', '.join(path.name for path in twice)}. Keep one."
        elif not images:
            problem = "a label without an image."
        elif not labels and part in ("train", "val"):
            problem = f"the case is in {part} and has no label. Add it, or take the case out of {SPLIT_NAME}."
        elif len(same_name) > 1:
            problem = f"the cases {', '.join(sorted(same_name))} would both be called {name} there. Rename one."
        inputs = (*images, *labels)
        if problem:
            return ConversionTask(case_id, inputs, name=name, problem=problem)
        place = self.place_of(part, bool(labels))
        outputs = [*self.image_names(name, place, None), *([self.label_name(name, place)] if labels else [])]
        return ConversionTask(
            case_id, inputs, tuple(Path(self.destination) / output for output in outputs), name=name,
            images=tuple(images), label=labels[0] if labels else None, part=part, place=place, **self._counts,
        )  # fmt: skip

    @property
    def _counts(self) -> dict[str, int | None]:
        about = self.about
        return {"classes": about.classes and len(about.classes), "channels": about.modality and len(about.modality)}

    def part_of(self, case_id: str, labelled: bool) -> str | None:
        """Return the part of the split that a case will be in; None: none."""
        return self.about.part_of(case_id)

    def place_of(self, part: str | None, labelled: bool) -> str:
        """Return `TRAINING` for what may be trained on: labelled cases of train and val, or all labelled cases of a dataset
        that is not divided. Everything else is `TEST`."""
        trained = part in ("train", "val") or (part is None and self.about.split is None)
        return TRAINING if labelled and trained else TEST

    def _write_there(
        self, task: ConversionTask, stage: Stage, image: Volume, label: Volume | None, notes: list[str]
    ) -> dict[str, Any]:
        if label is None and task.part is None:
            notes.append("has no label and is not trained on")
        elif task.part is None and task.place == TEST:
            notes.append(f"is in no part of {SPLIT_NAME} and is not trained on")
        names = self.image_names(task.name, task.place, image.array.shape[0] if image.array.ndim == 4 else None)
        volumes = [image]
        if len(names) > 1 or image.array.ndim == 4 and not self.series:
            volumes = [replace(image, array=channel) for channel in image.array]
        for name, volume in zip(names, volumes, strict=True):
            notes += self._write(stage, name, volume)
        label_name = None
        if label is not None:
            label_name = self.label_name(task.name, task.place)
            notes += self._write(stage, label_name, label)
        return {"name": task.name, "place": task.place, "images": names, "label": label_name}

    def _write(self, stage: Stage, name: str, volume: Volume) -> tuple[str, ...]:
        final = Path(self.destination) / name
        return write_kept(stage.path(final), final, volume, series=self.series and not self.back)

    # Back

    @cached_property
    def _layout(self) -> tuple[Description, list[ForeignCase]]:
        """What the source says; ``meta.json`` and ``split.json`` beside it know more, and must not say otherwise."""
        if not Path(self.source).is_dir():
            raise DataError("no such folder.", self.source)
        (about, cases), carried = self.read_layout(), read_described(self.source)
        names = read_names(Path(self.source))
        cases = [replace(case, name=names.get(case.name, case.name)) for case in cases]
        if about.split is not None:
            split = {part: [names.get(name, name) for name in about.split[part]] for part in PARTS}
            about = replace(about, split=split)
        if carried.classes and about.classes and not self.same_classes(about.classes, carried.classes):
            raise DataError(
                f"names the classes {', '.join(carried.classes)}, {self.document_names[0]} names {', '.join(about.classes)}. "
                f"Correct one, or remove {META_NAME} to go by {self.document_names[0]}.",
                Path(self.source) / META_NAME,
            )
        if carried.split is not None:
            for case in cases:
                part = carried.part_of(case.name)
                if not self.same_part(case.part, part):
                    raise DataError(
                        f"puts case {case.name!r} into {part or 'no part'}, the layout into {case.part or 'training'}. Correct "
                        f"one, or remove {SPLIT_NAME} to go by the layout.",
                        Path(self.source) / SPLIT_NAME,
                    )
        if carried.meta:
            about = replace(
                about, meta=carried.meta, name=carried.name or about.name, classes=carried.classes or about.classes,
                modality=carried.modality or about.modality,
            )  # fmt: skip
        return replace(about, split=carried.split or about.split), cases

    def _tasks_back(self) -> list[Task]:
        cases = self._layout[1]
        if not cases:
            raise DataError("holds no case.", self.source)
        by_name: dict[str, list[ForeignCase]] = {}
        for case in cases:
            by_name.setdefault(case.name, []).append(case)
        return [self._task_back(name, by_name[name]) for name in sorted(by_name)]

    def _task_back(self, name: str, same_name: list[ForeignCase]) -> Task:
        case, problem = same_name[0], same_name[0].problem
        if len(same_name) > 1:
            found = ", ".join(str(each.images[0].relative_to(self.source)) for each in same_name if each.images)
            problem = f"several cases are called {name}: {found}. Rename them."
        elif not _is_inside(name):
            problem = f"a case cannot be called {name!r}."
        elif problem is None and not case.images:
            problem = f"case {name!r} names no image."
        paths = [path for each in same_name for path in (*each.images, *([each.label] if each.label else []))]
        inputs = tuple(paths) or (Path(self.source) / self.document_names[0],)
        if problem:
            return ConversionTask(name, inputs, problem=problem)
        folders = (IMAGE_FOLDER, LABEL_FOLDER)[: 1 if case.label is None else 2]
        return ConversionTask(
            name, inputs, tuple(Path(self.destination) / folder / (name + self.suffix) for folder in folders), name=name,
            images=case.images, label=case.label, part=self.about.part_of(name), **self._counts,
        )  # fmt: skip

    def _write_back(
        self, task: ConversionTask, stage: Stage, image: Volume, label: Volume | None, notes: list[str]
    ) -> dict[str, Any]:
        for output, volume in zip(task.outputs, (image, label), strict=False):
            notes += self._write(stage, output.relative_to(self.destination).as_posix(), volume)
        return {"label": None if label is None else f"{LABEL_FOLDER}/{task.name}{self.suffix}"}


def inside(root: Path, name: object, document: Path) -> Path:
    """Return ``root / name``, refused if `name` is no relative path that stays below `root`.

    Raises:
        DataError: If so; it names the document that says it.
    """
    if not isinstance(name, str) or not name or not _is_inside(name):
        raise DataError(f"names the file {name!r}, which leads out of the folder.", document)
    return root / PurePosixPath(name)


def split_by_place(cases: Iterable[ForeignCase]) -> Split | None:
    """Return the split that places mean, where they mean one: if a case that is not trained on has a label.

    Unlabelled cases can be told from the others without a split.
    """
    cases = list(cases)
    if not any(case.part == "test" and case.label is not None for case in cases):
        return None
    return {part: sorted(case.name for case in cases if (case.part or "train") == part) for part in PARTS}


def _complete(about: Description, cases: Sequence[Mapping[str, Any]]) -> Description:
    """Classes and modality that nobody named, from the cases that are there."""
    largest = max((record["largest"] for record in cases if record["label"] is not None), default=0)
    channels = max((record["channels"] or 1 for record in cases), default=1)
    classes = about.classes or ("background", *(f"class_{value}" for value in range(1, largest + 1)))
    return replace(
        about, classes=classes, modality=about.modality or tuple(f"channel_{number}" for number in range(channels))
    )


def _flat(case_id: str) -> str:
    """The case's name in a layout without subfolders."""
    return case_id.replace("/", "__")


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.parts != ()


def some(values: Sequence[int]) -> str:
    """Return the first few of many values, as text."""
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
