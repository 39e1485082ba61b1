"""`itk_combine`: make one label map of several, by rules of which the first that fits a voxel wins."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from itkit._support.files import write_json
from itkit._support.suggestions import did_you_mean
from itkit.errors import DataError, UsageError
from itkit.io.geometry import Match, compare_geometries
from itkit.io.labels import count_values, replace_values, require_label_map
from itkit.io.volumes import Volume, write_volume
from itkit.process.operation import Ask, Operation, Product, Stage, Task, require_apart
from itkit.process.reading import Reader
from itkit.process.sources import find_files, group_cases, is_dataset

MISSING_WAYS = ("fail", "skip", "background")


@dataclass(frozen=True)
class Rule:
    """One rule: voxels of `source` that hold one of `values` become `target`.

    Attributes:
        source: Name of the source.
        values: Label values; None means every value but 0.
        target: The value in the result.
    """

    source: str
    values: tuple[int, ...] | None
    target: int


@dataclass(frozen=True)
class Combine(Operation):
    """Combine label maps of the same case from several sources.

    Args:
        sources_named: Words ``"NAME=FOLDER"``; a dataset's ``label/`` is taken.
        rules: Words ``"NAME:a,b->t"``: values may be ranges (``3-7``), ``*`` is every value but 0; ``=`` may stand for
            ``->``, which shells want quoted. The first rule that fits a voxel decides; a voxel that none fits is 0.
        destination: Folder for the results.
        missing: A case that a source lacks: ``"fail"`` fails it, ``"skip"`` leaves it out, ``"background"`` treats that
            source as empty.
        recursive: Look into subfolders.
        dtype: NumPy name of the results' type. None: the smallest unsigned type that holds all targets (int16 or wider
            with negative ones).
        fix_geometry: Repair directions that are not orthonormal, and record it, instead of refusing the case.

    Raises:
        UsageError: If a word cannot be read, a rule names no source, a source no folder, a target does not fit the type,
            or the destination lies inside a source.
    """

    name: ClassVar[str] = "itk_combine"
    sources_named: tuple[str, ...]
    rules: tuple[str, ...]
    destination: str
    missing: str = "fail"
    recursive: bool = False
    dtype: str | None = None
    fix_geometry: bool = False

    def __post_init__(self):
        for folder in self.folders.values():
            require_apart(folder, self.destination)
        if self.missing not in MISSING_WAYS:
            raise UsageError(f"a missing case can {', '.join(MISSING_WAYS)}, not {self.missing!r}.")
        self.result_type  # noqa: B018  (checks the targets before anything is read)

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Name -> folder, as they were given."""
        found: dict[str, Path] = {}
        for word in self.sources_named:
            name, equals, folder = word.partition("=")
            if not (name and equals and folder):
                raise UsageError(f"{word!r} is no source; write NAME=FOLDER.")
            if name in found:
                raise UsageError(f"the source {name!r} is given twice.")
            found[name] = Path(folder)
        return found

    @cached_property
    def parsed(self) -> tuple[Rule, ...]:
        """The rules, in the order they were given."""
        return tuple(parse_rule(word, self.folders) for word in self.rules)

    @cached_property
    def result_type(self) -> np.dtype:
        """Type of the results."""
        targets = [rule.target for rule in self.parsed] + [0]
        try:
            kind = np.result_type(np.min_scalar_type(min(targets)), np.min_scalar_type(max(targets)))
            kind = np.dtype(self.dtype) if self.dtype else np.result_type(kind, np.int16) if min(targets) < 0 else kind
        except TypeError as error:
            raise UsageError(f"{self.dtype!r} is not the name of a number type, such as uint8 or int16.") from error
        if kind.kind not in "iu" or not np.iinfo(kind).min <= min(targets) <= max(targets) <= np.iinfo(kind).max:
            raise UsageError(f"the type {kind} cannot hold the targets {sorted(set(targets))}.")
        return kind

    @property
    def sources(self) -> tuple[Path, ...]:
        return tuple(self.folders.values())

    def parameters(self) -> dict:
        return {
            "rules": list(self.rules),
            "missing": self.missing,
            "dtype": str(self.result_type),
            "fix_geometry": self.fix_geometry,
        }

    def tasks(self) -> Sequence[Task]:
        files: dict[str, dict[str, Path]] = {}
        relative: dict[str, Path] = {}
        used = {rule.source for rule in self.parsed}
        for name, folder in self.folders.items():
            if name not in used:
                continue
            cases = group_cases(find_files(folder, recursive=self.recursive))
            for case in cases:
                file = case.label if is_dataset(folder) else case.files[0]
                if file is not None:
                    files.setdefault(case.case_id, {})[name] = file.path
                    inside = file.relative.relative_to(file.role) if file.role else file.relative
                    relative.setdefault(case.case_id, inside)
        found = []
        for case_id in sorted(files):
            if self.missing == "skip" and len(files[case_id]) < len(used):
                continue
            outputs = (Path(self.destination) / relative[case_id],)
            found.append(Task(case_id, tuple(files[case_id].values()), outputs, tuple(files[case_id])))
        if not found:
            raise DataError("no case is in all sources; the file names must be the same.", self.sources[0])
        return found

    def process(self, task: Task, stage: Stage) -> Product:
        reader = Reader(self.fix_geometry)
        volumes = self._read(task, reader)
        result, open_voxels = None, None
        for rule in self.parsed:
            if rule.source not in volumes:
                continue
            label = volumes[rule.source]
            if result is None:
                result = np.zeros(label.size_zyx, self.result_type)
                open_voxels = np.ones(label.size_zyx, bool)
            if rule.values is None:
                fits = label.array != 0
            else:
                fits = replace_values(label.array, dict.fromkeys(rule.values, 1), others=0, dtype=bool)
            fits &= open_voxels
            result[fits] = rule.target
            open_voxels &= ~fits
        first = next(iter(volumes.values()))
        write_volume(
            stage.path(task.outputs[0]), Volume(result, first.spacing_zyx, first.origin_xyz, first.direction_xyz)
        )
        counts = {str(value): count for value, count in count_values(result).items()}
        facts = {"sources": sorted(volumes), "voxels": counts}
        return Product(reader.record(facts), (*self._notes(volumes), *reader.notes()))

    def _read(self, task: Task, reader: Reader) -> dict[str, Volume]:
        """The label maps of a case by source, all on one grid, in the order of the sources."""
        used = {rule.source for rule in self.parsed}
        volumes: dict[str, Volume] = {}
        for name, path in zip(task.roles, task.inputs, strict=True):
            volume = reader.volume(path)
            label = require_label_map(volume.array, path)
            volumes[name] = Volume(label, volume.spacing_zyx, volume.origin_xyz, volume.direction_xyz)
            first = next(iter(volumes))
            match, difference = compare_geometries(volumes[first].geometry, volume.geometry)
            if match is not Match.EQUAL:
                text = difference.replace("image has", f"{first} has")
                raise DataError(
                    f"{name} has {text}. Resample it to the same grid first (itk_resample --target-folder).", path
                )
        absent = sorted(used - volumes.keys())
        if absent and self.missing == "fail":
            raise DataError(f"is not in {', '.join(absent)}; see --missing.", task.inputs[0])
        return volumes

    def _notes(self, volumes: Mapping[str, Volume]) -> tuple[str, ...]:
        absent = sorted({rule.source for rule in self.parsed} - volumes.keys())
        return (f"not in {', '.join(absent)}, treated as background there",) if absent else ()

    def finish(self, entries: Mapping[str, dict], ask: Ask) -> Iterable[Path]:
        folder = Path(self.destination)
        meta = {case: entry["record"] for case, entry in entries.items() if entry["state"] == "done"}
        write_json(folder / "combine_meta.json", meta)
        named = {name: str(path) for name, path in self.folders.items()}
        write_json(folder / "combine_configs.json", {"sources": named, **self.parameters()})
        return folder / "combine_meta.json", folder / "combine_configs.json"


def parse_rule(word: str, sources: Iterable[str]) -> Rule:
    """Return the rule that ``"NAME:a,b->t"`` says.

    Raises:
        UsageError: If the word is something else, or NAME is none of `sources`.
    """
    match = re.fullmatch(r"(?P<name>[^:]+):(?P<values>[^>=]+?)\s*(->|=)\s*(?P<target>-?\d+)", word.strip())
    if match is None:
        raise UsageError(f"{word!r} is no rule; write NAME:a,b->t, e.g. 'organs:5,6->1'.")
    name = match["name"]
    if name not in sources:
        raise UsageError(f"{word!r} names the source {name!r}, which is not given.{did_you_mean(name, sources)}")
    if match["values"].strip() == "*":
        return Rule(name, None, int(match["target"]))
    values: list[int] = []
    for part in match["values"].split(","):
        ends = re.fullmatch(r"\s*(-?\d+)(?:-(\d+))?\s*", part)
        if ends is None:
            raise UsageError(f"{word!r}: {part!r} is neither a whole number, nor a range such as 3-7, nor *.")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if last < first:
            raise UsageError(f"{word!r}: the range {part!r} is empty.")
        values += range(first, last + 1)
    return Rule(name, tuple(values), int(match["target"]))
