"""`itk_patch`: cut volumes into patches for training, each at its own place in space."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from itkit._support.files import write_json
from itkit.errors import DataError, UsageError
from itkit.io.cropping import crop, pad, place_of
from itkit.io.geometry import require_same_grid
from itkit.io.headers import volume_suffix
from itkit.io.labels import require_label_map
from itkit.io.volumes import Volume, write_volume
from itkit.io.windows import window_starts
from itkit.process.cases import IMAGE_FOLDER, LABEL_FOLDER
from itkit.process.documents import carry_documents, differing_documents
from itkit.process.operation import Ask, Operation, Product, Stage, Task, require_apart
from itkit.process.reading import Reader
from itkit.process.sources import find_files, group_cases


@dataclass(frozen=True)
class Patch(Operation):
    """Cut every case into patches that cover it.

    Patches are `patch_stride` apart; the last one of an axis is shifted back until it ends with the volume. They are named
    ``image/<case>_<number>`` and ``label/<case>_<number>``; the number counts the grid of patches (X fastest), also those
    that are not kept, so that a name says where a patch comes from whatever is kept.

    A patch is kept if at least `minimum_foreground_ratio` of its label is not 0. One whose label is empty is kept with
    the probability `keep_empty_label_prob`, drawn from the seed, the case and the number alone.

    Args:
        source: A dataset, or a folder of images without labels.
        destination: Folder for the patches.
        patch_size: Voxels, one number or (Z, Y, X); -1 takes the whole axis.
        patch_stride: Voxels from one patch to the next, one number or (Z, Y, X), at most the patch's size; -1 is the
            patch's size.
        minimum_foreground_ratio: Between 0 and 1.
        keep_empty_label_prob: Between 0 and 1. None: 1 where `minimum_foreground_ratio` is 0, else 0.
        still_save_when_no_label: Keep all patches of a case that has no label. Otherwise such a case fails.
        pad_value: Volumes smaller than a patch get a margin of this value (labels of 0) on both sides. None: they fail.
        seed: Of the draws.
        recursive: Look into subfolders.
        fix_geometry: Repair directions that are not orthonormal, and record it, instead of refusing the case.

    Raises:
        UsageError: If a size, a stride or a share makes no sense, or the destination lies inside the source.
    """

    name: ClassVar[str] = "itk_patch"
    source: str
    destination: str
    patch_size: tuple[int, ...]
    patch_stride: tuple[int, ...]
    minimum_foreground_ratio: float = 0.0
    keep_empty_label_prob: float | None = None
    still_save_when_no_label: bool = False
    pad_value: float | None = None
    seed: int = 0
    recursive: bool = False
    fix_geometry: bool = False

    def __post_init__(self):
        require_apart(self.source, self.destination)
        for axis, size, stride in zip("ZYX", self.size_zyx, self.stride_zyx, strict=True):
            if size > 0 and stride > size:
                raise UsageError(
                    f"a stride of {stride} voxels along {axis} is larger than the patch of {size}: voxels between the "
                    "patches would be left out."
                )
        for name in ("minimum_foreground_ratio", "keep_empty_label_prob"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name} lies between 0 and 1, found {value:g}.")

    @property
    def size_zyx(self) -> tuple[int, ...]:
        """Voxels of a patch, (Z, Y, X); -1 the whole axis."""
        return _three("patch size", self.patch_size)

    @property
    def stride_zyx(self) -> tuple[int, ...]:
        """Voxels between patches, (Z, Y, X); -1 the patch's size."""
        return _three("patch stride", self.patch_stride)

    def tasks(self) -> Sequence[Task]:
        found = []
        for case in group_cases(find_files(self.source, recursive=self.recursive)):
            roles = tuple(file.role or IMAGE_FOLDER for file in case.files)
            found.append(Task(case.case_id, tuple(file.path for file in case.files), roles=roles))
        return found

    def process(self, task: Task, stage: Stage) -> Product:
        if IMAGE_FOLDER not in task.roles:
            raise DataError("is a label without an image.", task.inputs[0])
        if len(task.inputs) < 2 and not self.still_save_when_no_label:
            raise DataError(
                "has no label; with --still-save-when-no-label all of its patches are kept.", task.inputs[0]
            )
        reader = Reader(self.fix_geometry)
        image = reader.volume(task.inputs[0])
        label = reader.volume(task.inputs[1]) if len(task.inputs) == 2 else None
        if label is not None:
            require_label_map(label.array, task.inputs[1])
            require_same_grid(image, label, task.inputs[1])
        size = tuple(count if patch < 0 else patch for patch, count in zip(self.size_zyx, image.size_zyx, strict=True))
        image, label, margin = self._padded(task, image, label, size)
        strides = [patch if stride < 0 else stride for stride, patch in zip(self.stride_zyx, size, strict=True)]
        starts = [window_starts(*numbers) for numbers in zip(image.size_zyx, size, strides, strict=True)]
        kept, number = [], -1
        for number, start in enumerate(itertools.product(*starts)):
            part = None if label is None else crop(label, start, size)
            share = None if part is None else np.count_nonzero(part.array) / part.array.size
            if share is not None and not self._keeps(task.case_id, number, share):
                continue
            for path, folder, piece in (
                (task.inputs[0], IMAGE_FOLDER, crop(image, start, size)),
                (task.inputs[-1], LABEL_FOLDER, part),
            ):
                if piece is not None:
                    final = Path(self.destination) / folder / f"{task.case_id}_{number}{volume_suffix(path)}"
                    write_volume(stage.path(final), piece)
            index = [int(first) - before for first, before in zip(start, margin, strict=True)]
            kept.append([number, *index, None if share is None else round(share, 6)])
        record = {"patches_in_all": number + 1, "size": list(size), "spacing": list(image.spacing_zyx), "kept": kept}
        record["origin"], record["direction"] = list(place_of(image, margin)), list(image.direction_xyz)
        notes = () if kept else (f"none of {number + 1} patches is kept",)
        return Product(reader.record(record), (*notes, *reader.notes()))

    def _padded(self, task: Task, image: Volume, label: Volume | None, size: tuple[int, ...]):
        """Return image, label and the voxels put in front of each axis, so that one patch fits at least."""
        missing = [max(0, patch - count) for patch, count in zip(size, image.size_zyx, strict=True)]
        if not any(missing):
            return image, label, [0, 0, 0]
        if self.pad_value is None:
            raise DataError(
                f"has {tuple(image.size_zyx)} voxels (Z, Y, X), less than a patch of {size}; choose a smaller patch, or "
                "pad with --pad-value.",
                task.inputs[0],
            )
        before = [count // 2 for count in missing]
        after = [count - front for count, front in zip(missing, before, strict=True)]
        return pad(image, before, after, self.pad_value), label and pad(label, before, after, 0), before

    def _keeps(self, case_id: str, number: int, share: float) -> bool:
        if share > 0:
            return share >= self.minimum_foreground_ratio
        probability = self.keep_empty_label_prob
        if probability is None:
            probability = 0.0 if self.minimum_foreground_ratio > 0 else 1.0
        digest = hashlib.sha256(f"{self.seed}/{case_id}/{number}".encode()).digest()
        return int.from_bytes(digest[:7], "big") / (1 << 56) < probability

    def finish(self, entries: Mapping[str, dict], ask: Ask) -> Iterable[Path]:
        records = {case: entry["record"] for case, entry in entries.items() if entry["state"] == "done"}
        if records and not any(record["kept"] for record in records.values()):
            raise DataError("no patch of any case is kept; lower --minimum-foreground-ratio.", self.destination)
        document = {
            "patch_size": list(self.size_zyx),
            "patch_stride": list(self.stride_zyx),
            **{key: value for key, value in self.parameters().items() if not key.startswith("patch_")},
            "cases": {case: _described(case, record) for case, record in records.items()},
        }
        write_json(Path(self.destination) / "crop_meta.json", document)
        carried = carry_documents(Path(self.source), Path(self.destination))
        return (Path(self.destination) / "crop_meta.json", *carried)

    def describe(self, entries: Mapping[str, dict]) -> str | None:
        return differing_documents(Path(self.source), Path(self.destination))


def _described(case: str, record: dict) -> dict:
    """The entry of a case in ``crop_meta.json``."""
    patches = {
        f"{case}_{number}": {"start": [z, y, x], "foreground_ratio": share} for number, z, y, x, share in record["kept"]
    }
    return {**{key: value for key, value in record.items() if key != "kept"}, "patches": patches}


def _three(what: str, values: Sequence[int]) -> tuple[int, ...]:
    values = tuple(values) * 3 if len(values) == 1 else tuple(values)
    if len(values) != 3 or not all(value == -1 or value > 0 for value in values):
        raise UsageError(
            f"{what} is one number or three (Z, Y, X), each positive or -1 for the whole axis; found {values}."
        )
    return values
