"""`itk_resample`: put volumes on a grid with another spacing or size, or on the grids of other volumes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from itkit._support.files import write_json
from itkit._support.suggestions import did_you_mean
from itkit.errors import DataError, UsageError
from itkit.io.geometry import Geometry, require_same_grid
from itkit.io.labels import require_whole
from itkit.io.resampling import resample_to_grid, resample_to_size, resample_to_spacing
from itkit.io.volumes import Volume, write_volume
from itkit.process.documents import carry_documents, differing_documents
from itkit.process.manifest import describe_volumes, without_stamps, write_manifest
from itkit.process.operation import Ask, Operation, Product, Stage, Task, require_apart
from itkit.process.reading import Reader
from itkit.process.sources import SourceFile, find_files, group_cases, is_dataset

KINDS = ("image", "label", "dataset")
LABEL_WAYS = {"nearest": "label", "linear": "label_linear"}


@dataclass(frozen=True)
class Resample(Operation):
    """Resample images linearly and label maps by the nearest voxel (or by classes); the number type stays.

    Args:
        kind: ``"image"``, ``"label"``, or ``"dataset"`` (``image/`` and ``label/``, each in its way).
        source: A folder of volumes, or a dataset (with ``"image"`` or ``"label"``, only these of it are done).
        destination: Folder for the results, in the layout of the source.
        spacing: Voxel spacing in mm, (Z, Y, X); -1 keeps an axis. The centre of the first voxel stays.
        size: Voxels, (Z, Y, X); -1 keeps an axis. The outer edges of the volume stay.
        target_folder: Folder of volumes with the same names, whose grids are taken, by physical position.
        antialias: Blur an image before its voxels become larger, so that nothing aliases.
        label_interpolation: ``"nearest"``, or ``"linear"``: every class is interpolated and the largest share wins.
        fill: Intensity beyond the volume where a target grid reaches further; labels are 0 there.
        recursive: Look into subfolders.
        fix_geometry: Repair directions that are not orthonormal, and record it, instead of refusing the case.

    Raises:
        UsageError: If not exactly one of spacing, size and target_folder is given, a number is impossible, or the
            destination lies inside the source.
    """

    name: ClassVar[str] = "itk_resample"
    kind: str
    source: str
    destination: str
    spacing: tuple[float, ...] | None = None
    size: tuple[int, ...] | None = None
    target_folder: str | None = None
    antialias: bool = False
    label_interpolation: str = "nearest"
    fill: float = 0.0
    recursive: bool = False
    fix_geometry: bool = False

    def __post_init__(self):
        require_apart(self.source, self.destination)
        for value, known, what in (
            (self.kind, KINDS, "the kind"),
            (self.label_interpolation, tuple(LABEL_WAYS), "the interpolation of labels"),
        ):
            if value not in known:
                raise UsageError(f"{what} is {', '.join(known)}, not {value!r}.{did_you_mean(value, known)}")
        given = [name for name in ("spacing", "size", "target_folder") if getattr(self, name) is not None]
        if len(given) != 1:
            flags = ", ".join("--" + name.replace("_", "-") for name in given) or "none"
            raise UsageError(f"needs exactly one of --spacing, --size and --target-folder; found {flags}.")
        if self.target_folder is not None:
            require_apart(self.target_folder, self.destination)
        if self.spacing is not None and not all(v == -1 or (math.isfinite(v) and v > 0) for v in self.spacing):
            raise UsageError(
                f"spacing {tuple(self.spacing)} (Z, Y, X) is a positive number of mm, or -1 to keep an axis."
            )
        if self.size is not None and not all(count == -1 or count > 0 for count in self.size):
            raise UsageError(f"size {tuple(self.size)} (Z, Y, X) is positive, or -1 to keep an axis.")
        for name in ("spacing", "size"):
            values = getattr(self, name)
            if values is not None and (len(values) != 3 or all(value == -1 for value in values)):
                raise UsageError(f"{name} {tuple(values)} is three numbers (Z, Y, X), and not all of them -1.")

    @property
    def sources(self) -> tuple[Path, ...]:
        return (Path(self.source),) if self.target_folder is None else (Path(self.source), Path(self.target_folder))

    def parameters(self) -> dict:
        return {key: value for key, value in super().parameters().items() if key != "target_folder"}

    def tasks(self) -> Sequence[Task]:
        if self.kind == "dataset" and not is_dataset(self.source):
            raise DataError("has no folder image/; give 'image' or 'label' for a plain folder.", self.source)
        cases = group_cases(find_files(self.source, recursive=self.recursive))
        targets = self._targets()
        found = []
        for case in cases:
            if self.kind == "dataset":
                files, roles = case.files, [file.role or "image" for file in case.files]
            else:  # of a dataset the images, or the label maps; of a plain folder everything
                files = tuple(file for file in case.files if file.role in (None, self.kind))
                roles = [self.kind] * len(files)
            if not files:
                continue
            inputs, outputs = [file.path for file in files], [Path(self.destination) / file.relative for file in files]
            if self.target_folder is not None and case.case_id in targets:
                inputs.append(targets[case.case_id].path)
                roles = [*roles, "target"]
            found.append(Task(case.case_id, tuple(inputs), tuple(outputs), tuple(roles)))
        if not found:
            raise DataError(f"holds no {self.kind}.", self.source)
        return found

    def _targets(self) -> dict[str, SourceFile]:
        if self.target_folder is None:
            return {}
        cases = group_cases(find_files(self.target_folder, recursive=self.recursive))
        return {case.case_id: case.image or case.files[0] for case in cases}

    def process(self, task: Task, stage: Stage) -> Product:
        reader = Reader(self.fix_geometry)
        volumes = {
            role: reader.volume(path) for role, path in zip(task.roles, task.inputs, strict=True) if role != "target"
        }
        paths = dict(zip(task.roles, task.inputs, strict=True))
        if self.target_folder is not None and "target" not in paths:
            raise DataError(f"has no partner of its name in {self.target_folder}.", task.inputs[0])
        target = reader.header(paths["target"]).geometry if "target" in paths else None
        if "image" in volumes and "label" in volumes:
            require_same_grid(volumes["image"], volumes["label"], paths["label"])
        results = {}
        for (role, volume), output in zip(volumes.items(), task.outputs, strict=True):
            results[role] = self._resampled(volume, role, target, paths[role])
            write_volume(stage.path(output), results[role])
        first = next(iter(results))
        label_path = stage.path(task.outputs[-1]) if "label" in results and first != "label" else None
        entry = describe_volumes(
            results[first], stage.path(task.outputs[0]), results["label"] if label_path else None, label_path
        )
        before = volumes[first]
        was = {"size": list(before.size_zyx), "spacing": list(before.spacing_zyx)}
        facts = {"name": task.outputs[0].name, "was": was, "is": entry}
        notes = reader.notes()
        if "nonfinite" in entry:
            notes += (f"{entry['nonfinite']:,} voxels are NaN or infinite now, because some of the source are",)
        return Product(reader.record(facts), notes)

    def _resampled(self, volume: Volume, role: str, target: Geometry | None, path: Path) -> Volume:
        kind = role
        if role == "label":
            require_whole(volume.array, path)
            kind = LABEL_WAYS[self.label_interpolation]
        smooth = self.antialias and role == "image"
        if target is not None:
            return resample_to_grid(volume, target, kind=kind, fill=self.fill if role == "image" else 0)
        if self.spacing is not None:
            return resample_to_spacing(volume, _kept(self.spacing), kind=kind, antialias=smooth)
        return resample_to_size(volume, _kept(self.size), kind=kind, antialias=smooth)

    def finish(self, entries: Mapping[str, dict], ask: Ask) -> Iterable[Path]:
        folder = Path(self.destination)
        done = {case: entry["record"] for case, entry in entries.items() if entry["state"] == "done"}
        by_name = self.kind == "dataset" and not self.recursive
        manifest = {record["name"] if by_name else case: without_stamps(record["is"]) for case, record in done.items()}
        manifest_path = write_manifest(folder, manifest)
        configs = {"source": str(self.source), "target_folder": self.target_folder, **self.parameters()}
        write_json(folder / "resample_configs.json", {**configs, "was": {case: done[case]["was"] for case in done}})
        return manifest_path, folder / "resample_configs.json", *carry_documents(Path(self.source), folder)


def _kept(values: Sequence[float]) -> tuple[float | None, ...]:
    """The numbers with None for -1."""
    return tuple(None if value == -1 else value for value in values)

    def describe(self, entries: Mapping[str, dict]) -> str | None:
        return differing_documents(Path(self.source), Path(self.destination))
