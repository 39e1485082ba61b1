"""`itk_check`: open every image and label, say what is wrong with them, and delete, copy or link by the answer."""

from __future__ import annotations

import base64
import contextlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from isal import isal_zlib

from itkit._support.files import write_json, write_text
from itkit.errors import DataError, UsageError
from itkit.io.headers import volume_files
from itkit.io.labels import count_values, require_whole
from itkit.io.volumes import Volume, read_volume
from itkit.process.carrying import carry_volume
from itkit.process.contents import is_same_input
from itkit.process.documents import carry_documents, differing_documents, read_meta
from itkit.process.findings import (
    NOTE,
    PROBLEM,
    Finding,
    Limits,
    examine_grid,
    examine_image,
    examine_label,
    examine_pair,
    findings_of,
)
from itkit.process.manifest import describe_volumes, write_manifest
from itkit.process.operation import Ask, Operation, Product, Stage, Task, require_apart
from itkit.process.sources import SourceCase, find_files, group_cases, is_dataset

MODES = ("check", "delete", "copy", "symlink")
AXES = {"Z": 0, "Y": 1, "X": 2, "0": 0, "1": 1, "2": 2}
THUMBNAILS = "thumbnails"
HISTOGRAM_BINS = 64
MAX_PICTURE_BYTES = 30_000
MOST_COUNTED = 256
"""Label values whose voxels are counted for the report."""


@dataclass(frozen=True)
class Check(Operation):
    """Examine every case of a folder; see `itkit.process.findings` for the rules.

    Args:
        mode: ``"check"`` only reports; ``"delete"`` removes the files of cases with problems from the source, after asking;
            ``"copy"`` and ``"symlink"`` put the cases without problems into `output`.
        source: A dataset, or a folder of images.
        output: Folder for ledger and reports (and the copies). None: ``<source's name>.check`` in the current folder.
        min_size: Fewest voxels, (Z, Y, X); -1 ignores an axis. None: no limit. So are the next three, in mm where spacing.
        max_size: Most voxels.
        min_spacing: Smallest spacing.
        max_spacing: Largest spacing.
        same_size: Axes (``"Z"``, ``"Y"``, ``"X"`` or 0, 1, 2) that must have the same number of voxels.
        same_spacing: Axes that must have the same spacing.
        require_foreground: A label without foreground is a problem.
        allow_unlabelled: An image without label is no problem.
        report: Write ``report.html`` with thumbnails.
        yes: Delete without asking.
        recursive: Look into subfolders.

    Raises:
        UsageError: If the mode is unknown, a limit is no triplet, or the output lies inside the source.
    """

    name: ClassVar[str] = "itk_check"
    places: ClassVar[tuple[str, ...]] = ("source", "output", "yes")
    mode: str
    source: str
    output: str | None = None
    min_size: tuple[float, ...] | None = None
    max_size: tuple[float, ...] | None = None
    min_spacing: tuple[float, ...] | None = None
    max_spacing: tuple[float, ...] | None = None
    same_size: tuple[str, ...] = ()
    same_spacing: tuple[str, ...] = ()
    require_foreground: bool = False
    allow_unlabelled: bool = False
    report: bool = False
    yes: bool = False
    recursive: bool = False

    def __post_init__(self):
        if self.mode not in MODES:
            raise UsageError(f"itk_check can {', '.join(MODES)}, not {self.mode!r}.")
        if self.output is None and self.mode in ("copy", "symlink"):
            raise UsageError(f"{self.mode} needs a folder for the results; give -o.")
        require_apart(self.source, self.destination)
        self.limits  # noqa: B018  (checks them before anything is read)

    @property
    def destination(self) -> Path:
        """Folder of ledger, documents and copies."""
        return (
            Path(self.output) if self.output is not None else Path.cwd() / f"{Path(self.source).resolve().name}.check"
        )

    @cached_property
    def limits(self) -> Limits:
        """What a case must fulfil."""
        classes = read_meta(Path(self.source)).get("classes") if Path(self.source).is_dir() else None
        return Limits(
            *(_triplet(name, getattr(self, name)) for name in ("min_size", "max_size", "min_spacing", "max_spacing")),
            same_size=_axes("--same-size", self.same_size), same_spacing=_axes("--same-spacing", self.same_spacing),
            num_classes=len(classes) if classes else None, require_foreground=self.require_foreground,
        )  # fmt: skip

    def parameters(self) -> dict[str, Any]:
        found = super().parameters()
        if found["mode"] == "delete":
            found["mode"] = "check"  # what is found does not depend on what is done about it
        return {**found, "num_classes": self.limits.num_classes}

    def tasks(self) -> Sequence[Task]:
        cases = group_cases(find_files(self.source, recursive=self.recursive))
        copies = self.mode in ("copy", "symlink")
        return [
            Task(
                case.case_id,
                tuple(file.path for file in case.files),
                tuple(self.destination / file.relative for file in case.files) if copies else (),
                self._roles(case),
            )
            for case in cases
        ]

    def _roles(self, case: SourceCase) -> tuple[str, ...]:
        return tuple(file.role or "image" for file in case.files)

    def process(self, task: Task, stage: Stage) -> Product:
        volumes, findings, paths = {}, [], dict(zip(task.roles, task.inputs, strict=True))
        for role, path in paths.items():
            try:
                volumes[role] = read_volume(path)
                findings += [Finding("header", NOTE, note) for note in volumes[role].notes]
            except DataError as error:
                if isinstance(error.__cause__, MemoryError):  # not the file's fault: once more, alone
                    raise MemoryError(str(error)) from error
                fault = "unexamined" if isinstance(error.__cause__, OSError) else "readable"
                findings.append(Finding(fault, PROBLEM, str(error)))
        record: dict[str, Any] = {"name": task.inputs[0].name}
        if "image" in volumes:
            label = volumes.get("label")
            record["entry"] = describe_volumes(
                volumes["image"], paths["image"], label, paths.get("label"), stage.checksums
            )
            record["voxels"] = _digest(volumes["image"])
        findings += self._examine(volumes, record.get("entry"), paths)
        problems = [finding.text for finding in findings if finding.severity == PROBLEM]
        if "image" in volumes and self.report:
            facts, picture = _drawn(task.case_id, volumes)
            record |= facts
            if problems:  # the files of a case that failed are not published, but this picture is wanted most
                record["picture"] = base64.b64encode(picture).decode()
            else:
                stage.path(self.destination / THUMBNAILS / f"{task.case_id}.png").write_bytes(picture)
        notes = tuple(finding.text for finding in findings if finding.severity == NOTE)
        record["findings"] = [[finding.rule, finding.severity, finding.text] for finding in findings]
        if not problems:
            self._take_over(task, stage)
        return Product(record, notes, "; ".join(problems) or None)

    def _examine(
        self, volumes: Mapping[str, Volume], entry: dict | None, paths: Mapping[str, Path]
    ) -> Iterator[Finding]:
        image, label = volumes.get("image"), volumes.get("label")
        if image is not None:
            yield from examine_image(image, entry["min"], entry["max"], entry.get("nonfinite", 0))
            yield from examine_grid(image, self.limits)
        if label is not None:
            values = entry["labels"] if entry else np.unique(label.array).tolist()
            yield from examine_label(label, values, self.limits)
        if image is not None and label is not None:
            yield from examine_pair(image, label)
        if "image" not in paths:
            yield Finding("pair", PROBLEM, "the label has no image of its name")
        elif "label" not in paths and self._labelled and not self.allow_unlabelled:
            yield Finding("pair", PROBLEM, "the image has no label of its name; see --allow-unlabelled")

    @cached_property
    def _labelled(self) -> bool:
        return is_dataset(self.source) and (Path(self.source) / "label").is_dir()

    def _take_over(self, task: Task, stage: Stage) -> None:
        """Stage the files of a good case, as `mode` says."""
        for path, final in zip(task.inputs, task.outputs, strict=False):
            carry_volume(path, final, stage, link=self.mode == "symlink")

    def finish(self, entries: Mapping[str, dict], ask: Ask) -> Iterable[Path]:
        folder = self.destination
        records = {case: entry.get("record") or {} for case, entry in entries.items()}
        manifest = {
            record["name"] if not self.recursive else case: {**record["entry"], "findings": record["findings"]}
            for case, record in sorted(records.items())
            if record.get("entry") and (self.mode in ("check", "delete") or entries[case]["state"] == "done")
        }
        written = [write_manifest(folder, manifest)]
        groups = duplicates(entries)
        document = {"source": str(self.source), **self.parameters(), "duplicates": groups}
        document["cases"] = {case: findings_of(entry) for case, entry in sorted(entries.items())}
        write_json(folder / "check.json", document)
        written.append(folder / "check.json")
        if self.mode in ("copy", "symlink"):
            written += carry_documents(Path(self.source), folder)
        if self.report:
            from itkit.process.check_page import render_page

            write_text(folder / "report.html", render_page(self, entries, groups))
            written.append(folder / "report.html")
        if self.mode == "delete":
            written += self._delete(entries, ask)
        return written

    def _delete(self, entries: Mapping[str, dict], ask: Ask) -> list[Path]:
        bad = {task.case_id: task for task in self.tasks() if _is_bad(task, entries.get(task.case_id, {}))}
        files = [part for task in bad.values() for path in task.inputs for part in volume_files(path)]
        if not files:
            return []
        if not self.yes and not ask(f"Delete {len(files)} files of {len(bad)} cases from {self.source} for ever?"):
            raise UsageError(
                f"nothing was deleted; {len(files)} files of {len(bad)} cases would be. Answer with y, or --yes."
            )
        log, kept = self.destination / "deleted.jsonl", []
        with open(log, "a", encoding="utf-8") as stream:

            def note(**facts: Any) -> None:  # before it happens: a file that is gone must never be unknown
                stream.write(json.dumps(facts, ensure_ascii=False) + "\n")
                stream.flush()

            for case_id, task in bad.items():
                parts = [part for path in task.inputs for part in volume_files(path)]
                note(case=case_id, files=[str(part) for part in parts], reason=entries[case_id]["reason"])
                for part in parts:
                    try:
                        part.unlink(missing_ok=True)
                    except OSError as error:
                        kept.append(f"{part}: {error.strerror}")
                        note(case=case_id, kept=str(part), reason=error.strerror)
        if kept:
            raise DataError(f"{len(kept)} of {len(files)} files could not be deleted: {kept[0]}.", self.source)
        return [log]

    def describe(self, entries: Mapping[str, dict]) -> str | None:
        records = [entry["record"]["entry"] for entry in entries.values() if (entry.get("record") or {}).get("entry")]
        if not records:
            return None
        lines = [
            f"{len(entries)} cases, {sum(entry['state'] == 'done' for entry in entries.values())} without problems"
        ]
        for what, key, unit in (("size", "size", "voxels"), ("spacing", "spacing", "mm")):
            columns = list(zip(*(record[key] for record in records), strict=True))
            ranges = [f"{min(column):g} .. {max(column):g}" for column in columns]
            lines.append(f"{what:12} Z {ranges[0]}, Y {ranges[1]}, X {ranges[2]} {unit}")
        ranges = [(record["min"], record["max"]) for record in records if record["min"] is not None]
        if ranges:
            lines.append(f"{'intensity':12} {min(low for low, _ in ranges):g} .. {max(high for _, high in ranges):g}")
        lines.append(f"{'types':12} " + ", ".join(_counted(record["dtype"] for record in records)))
        labels = sorted({value for record in records for value in record["labels"] or ()})
        if labels:
            shown = ", ".join(f"{value:g}" for value in labels[:24]) + ", ..." * (len(labels) > 24)
            lines.append(f"{'labels':12} {shown}")
        rules = [rule for entry in entries.values() for rule, _, _ in findings_of(entry)]
        if rules:
            lines.append(f"{'findings':12} " + ", ".join(_counted(rules)))
        lines += [f"{'same voxels':12} " + " = ".join(group) for group in duplicates(entries)]
        if self.mode in ("copy", "symlink"):
            lines += filter(None, [differing_documents(Path(self.source), self.destination)])
        return "\n".join(lines)


def _is_bad(task: Task, entry: Mapping) -> bool:
    """Whether a case may be deleted: what is wrong was found in these very files, and none of it comes from the machine."""
    rules = {rule for rule, severity, _ in findings_of(entry) if severity == PROBLEM}
    if not rules or "unexamined" in rules:
        return False
    return all(map(is_same_input, task.inputs, entry["inputs"].values()))


def duplicates(entries: Mapping[str, dict]) -> list[list[str]]:
    """Return groups of case ids whose images hold the same voxels, whatever their formats and names."""
    groups: dict[str, list[str]] = defaultdict(list)
    for case, entry in sorted(entries.items()):
        digest = (entry.get("record") or {}).get("voxels")
        if digest:
            groups[digest].append(case)
    return [group for group in groups.values() if len(group) > 1]


def _digest(volume: Volume) -> str:
    """Shape and two checksums of the voxels' bytes, 64 bits together: nobody forges them, and they cost a sixth of SHA-1."""
    data = memoryview(np.ascontiguousarray(volume.array)).cast("B")
    return f"{'x'.join(map(str, volume.array.shape))}:{isal_zlib.crc32(data):08x}{isal_zlib.adler32(data):08x}"


def _drawn(case_id: str, volumes: Mapping[str, Volume]) -> tuple[dict[str, Any], bytes]:
    """What the report shows of a case: the histogram of its intensities and the volumes of its classes; a picture (PNG)."""
    from itkit.process.figures import cut_case, draw_case, encode_png

    image, label = volumes["image"], None
    if "label" in volumes and volumes["label"].array.shape == image.array.shape[-3:]:
        with contextlib.suppress(DataError):  # what is no label map is not drawn; the findings say why
            label = require_whole(volumes["label"].array)
    finite = image.array[np.isfinite(image.array)] if image.array.dtype.kind == "f" else image.array.ravel()
    record: dict[str, Any] = {}
    if finite.size:
        counts, edges = np.histogram(finite, HISTOGRAM_BINS)
        record["histogram"] = {"counts": counts.tolist(), "low": float(edges[0]), "high": float(edges[-1])}
    if label is not None:
        voxel_ml = float(np.prod(image.spacing_zyx)) / 1000
        counted = list(count_values(label).items())[:MOST_COUNTED]
        record["volumes_ml"] = {str(value): round(count * voxel_ml, 4) for value, count in counted if value > 0}
    cuts = cut_case(image.array, label, spacing_zyx=image.spacing_zyx, direction_xyz=image.direction_xyz)
    return record, encode_png(draw_case(cuts, case_id, panel_px=200), max_bytes=MAX_PICTURE_BYTES)


def _counted(words: Iterable[str]) -> list[str]:
    counts: dict[str, int] = defaultdict(int)
    for word in words:
        counts[word] += 1
    return [f"{word} {count}" for word, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]


def _triplet(name: str, values: Sequence[float] | None) -> tuple[float | None, ...]:
    if values is None:
        return (None, None, None)
    if len(values) != 3 or not all(value == -1 or value >= 0 for value in values):
        flag = "--" + name.replace("_", "-")
        raise UsageError(
            f"{flag} takes three numbers (Z, Y, X), each at least 0, or -1 to ignore an axis; found {values}."
        )
    return tuple(None if value == -1 else value for value in values)


def _axes(flag: str, names: Sequence[str]) -> tuple[int, ...]:
    for name in names:
        if name.upper() not in AXES:
            raise UsageError(f"{flag} takes axes (Z, Y, X), not {name!r}.")
    axes = tuple(AXES[name.upper()] for name in names)
    if axes and len(set(axes)) < 2:
        raise UsageError(f"{flag} compares at least two different axes, found {' '.join(names)}.")
    return axes
