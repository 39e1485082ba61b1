"""`itk_extract`: take some classes out of label maps and give them new numbers."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from itkit._support.files import write_json
from itkit.errors import DataError, UsageError
from itkit.io.labels import count_values, replace_values, require_whole
from itkit.io.volumes import Volume, write_volume
from itkit.process.documents import META_NAME, SPLIT_NAME, carry_documents, read_meta
from itkit.process.operation import Ask, Operation, Product, Stage, Task, require_apart
from itkit.process.reading import Reader
from itkit.process.sources import SourceCase, find_files, group_cases, is_dataset

MANY_VALUES = 1000
"""A map with more values than this is probably no label map; its values are not listed."""
IMAGE_WAYS = ("copy", "symlink", "none")


@dataclass(frozen=True)
class Extract(Operation):
    """Map label values; every value that is not named becomes 0.

    Args:
        source: A folder of label maps, or a dataset whose ``label/`` is mapped.
        destination: Folder for the results, in the layout of the source.
        mapping: Words ``"old:new"``. No old value and no new value may appear twice.
        recursive: Look into subfolders.
        dtype: NumPy name of the results' type, e.g. ``"uint8"``. None keeps the source's (floating point holding whole
            numbers included).
        images: What becomes of a dataset's images: ``"copy"``, ``"symlink"`` or ``"none"``.
        fix_geometry: Repair directions of label maps that are not orthonormal, and record it, instead of refusing the case.

    Raises:
        UsageError: If a word is no mapping, a value appears twice, or the destination lies inside the source.
    """

    name: ClassVar[str] = "itk_extract"
    source: str
    destination: str
    mapping: tuple[str, ...]
    recursive: bool = False
    dtype: str | None = None
    images: str = "copy"
    fix_geometry: bool = False

    def __post_init__(self):
        parse_mapping(self.mapping)
        require_apart(self.source, self.destination)
        if self.images not in IMAGE_WAYS:
            raise UsageError(f"images are {', '.join(IMAGE_WAYS)}, not {self.images!r}.")

    def tasks(self) -> Sequence[Task]:
        cases = group_cases(find_files(self.source, recursive=self.recursive))
        dataset = is_dataset(self.source)
        chosen = [case for case in cases if not dataset or case.label is not None]
        if not chosen:
            raise DataError("holds images but no label; give a folder of label maps.", self.source)
        return [self._task(case, dataset) for case in chosen]

    def _task(self, case: SourceCase, dataset: bool) -> Task:
        files = [case.label if dataset else case.files[0]]
        if dataset and case.image is not None and self.images != "none":
            files.append(case.image)
        return Task(
            case.case_id,
            tuple(file.path for file in files),
            tuple(Path(self.destination) / file.relative for file in files),
        )

    def process(self, task: Task, stage: Stage) -> Product:
        reader = Reader(self.fix_geometry)
        volume = reader.volume(task.inputs[0])
        whole, mapping = require_whole(volume.array, task.inputs[0]), parse_mapping(self.mapping)
        before = count_values(whole)
        array = replace_values(whole, mapping, others=0, dtype=self._type(volume.array.dtype, mapping, task.inputs[0]))
        result = Volume(array, volume.spacing_zyx, volume.origin_xyz, volume.direction_xyz)
        write_volume(stage.path(task.outputs[0]), result)
        for path, output in zip(task.inputs[1:], task.outputs[1:], strict=True):
            staged = stage.path(output)
            if self.images == "symlink":
                staged.symlink_to(path.resolve())
            else:
                shutil.copy2(path, staged)
        after: dict[int, int] = {}
        for value, count in before.items():
            new = mapping.get(value, 0)
            after[new] = after.get(new, 0) + count
        notes = []
        if not mapping.keys() & before.keys():
            notes.append(f"holds no voxel of {', '.join(map(str, mapping))}")
        if len(before) > MANY_VALUES:
            notes.append(f"holds {len(before)} different values; is it an image?")
            before = after = {}
        facts = {"before": _text_keys(before), "after": _text_keys(after)}
        return Product(reader.record(facts), (*notes, *reader.notes()))

    def _type(self, stored: np.dtype, mapping: Mapping[int, int], path: Path) -> np.dtype:
        try:
            kind = stored if self.dtype is None else np.dtype(self.dtype)
        except TypeError as error:
            raise UsageError(f"{self.dtype!r} is not the name of a number type, such as uint8 or int16.") from error
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            wrong = sorted(new for new in mapping.values() if not limits.min <= new <= limits.max)
            if wrong:
                raise DataError(f"the new values {wrong} do not fit into {kind}; choose a type with --dtype.", path)
        return kind

    def finish(self, entries: Mapping[str, dict], ask: Ask) -> Iterable[Path]:
        folder = Path(self.destination)
        meta = {case: entry["record"] for case, entry in entries.items() if entry["state"] == "done"}
        configs = {"source": str(self.source), **self.parameters(), "mapping": _text_keys(parse_mapping(self.mapping))}
        write_json(folder / "extract_meta.json", meta)
        write_json(folder / "extract_configs.json", configs)
        return folder / "extract_meta.json", folder / "extract_configs.json", *self._documents(folder)

    def _documents(self, folder: Path) -> list[Path]:
        """The split as it is; ``meta.json`` with the classes that are left, if their values are 1, 2, 3, ..."""
        source, mapping = Path(self.source), parse_mapping(self.mapping)
        carried = carry_documents(source, folder, (SPLIT_NAME,))
        meta, classes = read_meta(source), {}
        names = meta.get("classes") or []
        for old, new in mapping.items():
            if new > 0 and 0 <= old < len(names):
                classes[new] = names[old]
        if classes and sorted(classes) == list(range(1, len(classes) + 1)):
            write_json(folder / META_NAME, {**meta, "classes": [names[0], *(classes[n] for n in sorted(classes))]})
            carried.append(folder / META_NAME)
        return carried


def parse_mapping(words: Sequence[str]) -> dict[int, int]:
    """Return old value -> new value of words ``"old:new"``.

    Raises:
        UsageError: If a word is something else, or an old or a new value appears twice.
    """
    mapping: dict[int, int] = {}
    for word in words:
        old, colon, new = word.partition(":")
        try:
            pair = int(old), int(new)
        except ValueError:
            raise UsageError(f"{word!r} is no mapping; write old:new with whole numbers, e.g. 5:1.") from None
        if pair[0] in mapping:
            raise UsageError(f"the old value {pair[0]} is mapped twice, to {mapping[pair[0]]} and to {pair[1]}.")
        if pair[1] in mapping.values():
            hint = "values that are not named become 0 anyway" if pair[1] == 0 else "itk_combine merges classes"
            raise UsageError(f"the new value {pair[1]} is given twice; {hint}.")
        mapping[pair[0]] = pair[1]
    if not mapping:
        raise UsageError("name at least one mapping, e.g. 5:1.")
    return mapping


def _text_keys(values: Mapping[int, int]) -> dict[str, int]:
    return {str(key): value for key, value in values.items()}
