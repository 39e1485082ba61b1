"""`itk_extract`: take some classes out of label maps and give them new numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from itkit._support.files import write_json
from itkit.errors import DataError, UsageError
from itkit.io.geometry import require_same_grid
from itkit.io.labels import count_values, replace_values, require_whole
from itkit.io.volumes import Volume, write_volume
from itkit.process.carrying import carry_volume
from itkit.process.documents import META_NAME, SPLIT_NAME, carry_documents, differing_documents, read_meta
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
        images: What becomes of a dataset's images, also of those without a label: ``"copy"``, ``"symlink"`` or ``"none"``.
        fix_geometry: Repair directions that are not orthonormal, and record it, instead of refusing the case; such an image
            is written anew.

    Raises:
        UsageError: If a word is no mapping, a value appears twice, the type is unknown, or the destination lies inside the
            source.
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
        self.parsed  # noqa: B018  (checks the words before anything is read)
        require_apart(self.source, self.destination)
        if self.images not in IMAGE_WAYS:
            raise UsageError(f"images are {', '.join(IMAGE_WAYS)}, not {self.images!r}.")
        try:
            wanted = np.dtype(self.dtype or "uint8")
        except TypeError as error:
            raise UsageError(f"{self.dtype!r} is not the name of a number type, such as uint8 or int16.") from error
        if wanted.kind not in "iuf":
            raise UsageError(f"label maps are not stored as {wanted}; choose a type such as uint8 or int16.")

    @cached_property
    def parsed(self) -> dict[int, int]:
        """Old value -> new value."""
        return parse_mapping(self.mapping)

    def tasks(self) -> Sequence[Task]:
        cases = group_cases(find_files(self.source, recursive=self.recursive))
        dataset = is_dataset(self.source)
        if dataset and not any(case.label for case in cases):
            raise DataError("holds images but no label; give a folder of label maps.", self.source)
        found = [self._task(case, dataset) for case in cases]
        return [task for task in found if task.inputs]

    def _task(self, case: SourceCase, dataset: bool) -> Task:
        files = {"label": case.label if dataset else case.files[0]}
        if dataset and self.images != "none":
            files["image"] = case.image
        files = {role: file for role, file in files.items() if file is not None}
        return Task(
            case.case_id,
            tuple(file.path for file in files.values()),
            tuple(Path(self.destination) / file.relative for file in files.values()),
            tuple(files),
        )

    def process(self, task: Task, stage: Stage) -> Product:
        reader, facts, notes = Reader(self.fix_geometry), {}, []
        paths = dict(zip(task.roles, task.inputs, strict=True))
        outputs = dict(zip(task.roles, task.outputs, strict=True))
        volumes = {role: reader.volume(path) for role, path in paths.items()}
        if len(volumes) == 2:
            require_same_grid(volumes["image"], volumes["label"], paths["label"])
        if "label" in volumes:
            facts = self._map(volumes["label"], paths["label"], stage.path(outputs["label"]), notes)
        else:
            notes.append("has no label; its image goes along")
        if "image" in volumes:
            if str(paths["image"]) in reader.audit:
                write_volume(stage.path(outputs["image"]), volumes["image"])
            else:
                carry_volume(paths["image"], outputs["image"], stage, link=self.images == "symlink")
        return Product(reader.record(facts), (*notes, *reader.notes()))

    def _map(self, volume: Volume, path: Path, staged: Path, notes: list[str]) -> dict[str, dict]:
        """Write the mapped label map and return how many voxels every value had and has."""
        whole, mapping = require_whole(volume.array, path), self.parsed
        before = count_values(whole)
        array = replace_values(whole, mapping, others=0, dtype=self._type(volume.array.dtype, mapping, path))
        write_volume(staged, Volume(array, volume.spacing_zyx, volume.origin_xyz, volume.direction_xyz))
        after: dict[int, int] = {}
        for value, count in before.items():
            new = mapping.get(value, 0)
            after[new] = after.get(new, 0) + count
        if not mapping.keys() & before.keys():
            notes.append(f"holds no voxel of {', '.join(map(str, mapping))}")
        if len(before) > MANY_VALUES:
            notes.append(f"holds {len(before)} different values; is it an image?")
            before = after = {}
        return {"before": _text_keys(before), "after": _text_keys(after)}

    def _type(self, stored: np.dtype, mapping: Mapping[int, int], path: Path) -> np.dtype:
        kind = stored if self.dtype is None else np.dtype(self.dtype)
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            wrong = sorted(new for new in mapping.values() if not limits.min <= new <= limits.max)
            if wrong:
                raise DataError(f"the new values {wrong} do not fit into {kind}; choose a type with --dtype.", path)
        return kind

    def finish(self, entries: Mapping[str, dict], ask: Ask) -> Iterable[Path]:
        folder = Path(self.destination)
        done = {case: entry["record"] for case, entry in entries.items() if entry["state"] == "done"}
        meta = {case: record for case, record in done.items() if "before" in record}
        configs = {"source": str(self.source), **self.parameters(), "mapping": _text_keys(self.parsed)}
        write_json(folder / "extract_meta.json", meta)
        write_json(folder / "extract_configs.json", configs)
        return folder / "extract_meta.json", folder / "extract_configs.json", *self._documents(folder)

    def _documents(self, folder: Path) -> list[Path]:
        """The split as it is; ``meta.json`` with the classes that are left, if their values are 1, 2, 3, ..."""
        source, mapping = Path(self.source), self.parsed
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

    def describe(self, entries: Mapping[str, dict]) -> str | None:
        return differing_documents(Path(self.source), Path(self.destination), (SPLIT_NAME,))


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
