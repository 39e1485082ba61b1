"""`itk_aug`: write randomly changed copies of images and their labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from itkit._support.files import write_json
from itkit.errors import DataError, UsageError
from itkit.io.geometry import require_same_grid
from itkit.io.headers import volume_suffix
from itkit.io.labels import require_label_map
from itkit.io.volumes import write_volume
from itkit.process import augmentation
from itkit.process.operation import Ask, Operation, Product, Stage, Task, require_apart
from itkit.process.reading import Reader
from itkit.process.sources import find_files


@dataclass(frozen=True)
class Augment(Operation):
    """Make `copies` random versions ``<case>_aug<k>`` of every image and its label.

    What is drawn depends on the seed, the case and the number of the copy alone.

    Args:
        images: Folder of images.
        labels: Folder of label maps with the same names.
        image_destination: Folder for the images; None writes none.
        label_destination: Folder for the labels; None writes none.
        copies: Versions a case.
        random_rot, random_scale, random_flip, random_elastic, elastic_grid, random_noise, random_gamma, random_blur: See
            `itkit.process.augmentation.Ranges`.
        fill: Intensity outside the image; None: the median of the image's outermost voxels.
        seed: Of all draws.
        recursive: Look into subfolders.
        fix_geometry: Repair directions that are not orthonormal, and record it, instead of refusing the case.

    Raises:
        UsageError: If nothing is asked for, a range is impossible, no destination is given, or one lies inside a source.
    """

    name: ClassVar[str] = "itk_aug"
    places: ClassVar[tuple[str, ...]] = ("images", "labels", "image_destination", "label_destination")
    preload: ClassVar[tuple[str, ...]] = ("numpy", "SimpleITK")
    images: str
    labels: str
    image_destination: str | None = None
    label_destination: str | None = None
    copies: int = 1
    random_rot: tuple[float, ...] = (0.0,)
    random_scale: float = 0.0
    random_flip: tuple[float, ...] = (0.0,)
    random_elastic: float = 0.0
    elastic_grid: float = 32.0
    random_noise: float = 0.0
    random_gamma: float = 0.0
    random_blur: float = 0.0
    fill: float | None = None
    seed: int = 0
    recursive: bool = False
    fix_geometry: bool = False

    def __post_init__(self):
        if not self.roots:
            raise UsageError("says no place for the results; give -oimg, -olbl, or both.")
        for destination in self.roots:
            for source in self.sources:
                require_apart(source, destination)
        self.ranges  # noqa: B018  (checks them before anything is read)

    @property
    def destination(self) -> Path:
        """The first of the destinations; the ledger is there."""
        return self.roots[0]

    @property
    def roots(self) -> tuple[Path, ...]:
        return tuple(Path(folder) for folder in (self.image_destination, self.label_destination) if folder)

    @property
    def sources(self) -> tuple[Path, ...]:
        return Path(self.images), Path(self.labels)

    @cached_property
    def ranges(self) -> augmentation.Ranges:
        """How strongly to change."""
        return augmentation.Ranges(
            augmentation.three("--random-rot", self.random_rot), self.random_scale,
            augmentation.three("--random-flip", self.random_flip), self.random_elastic, self.elastic_grid,
            self.random_noise, self.random_gamma, self.random_blur,
        )  # fmt: skip

    def tasks(self) -> Sequence[Task]:
        labels = {file.case_id: file for file in find_files(self.labels, recursive=self.recursive)}
        found = []
        for file in find_files(self.images, recursive=self.recursive):
            label = labels.get(file.case_id)
            outputs = [
                Path(root) / self._name(one.relative, one.case_id, number)
                for root, one in ((self.image_destination, file), (self.label_destination, label))
                if root and one
                for number in range(1, self.copies + 1)
            ]
            found.append(Task(file.case_id, (file.path,) if label is None else (file.path, label.path), tuple(outputs)))
        return found

    @staticmethod
    def _name(relative: Path, case_id: str, number: int) -> str:
        return f"{case_id}_aug{number}{volume_suffix(relative)}"

    def process(self, task: Task, stage: Stage) -> Product:
        if len(task.inputs) < 2:
            raise DataError(f"has no label of its name in {self.labels}.", task.inputs[0])
        reader = Reader(self.fix_geometry)
        image, label = (reader.volume(path) for path in task.inputs)
        augmentation.require_finite(image, task.inputs[0])
        require_label_map(label.array, task.inputs[1])
        require_same_grid(image, label, task.inputs[1])
        fill, record = augmentation.border_value(image) if self.fill is None else self.fill, {}
        for number in range(1, self.copies + 1):
            digest = hashlib.sha256(f"{self.seed}/{task.case_id}/{number}".encode()).digest()
            rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
            params = augmentation.draw(self.ranges, image, rng)
            record[str(number)] = params
            results = augmentation.apply(params, image, label, fill=fill)
            sides = (self.image_destination, self.label_destination)
            for root, path, volume in zip(sides, task.inputs, results, strict=True):
                if root:
                    final = Path(root) / self._name(path, task.case_id, number)
                    write_volume(stage.path(final), volume)
        return Product(reader.record({"fill": fill, "copies": record}), reader.notes())

    def finish(self, entries: Mapping[str, dict], ask: Ask) -> Iterable[Path]:
        cases = {case: entry["record"] for case, entry in entries.items() if entry["state"] == "done"}
        document = {"seed": self.seed, "ranges": asdict(self.ranges), "cases": cases}
        if self._without_image:
            document["labels_without_image"] = self._without_image
        write_json(self.destination / "aug_meta.json", document)
        return (self.destination / "aug_meta.json",)

    def describe(self, entries: Mapping[str, dict]) -> str | None:
        left = self._without_image
        if not left:
            return None
        return f"{len(left)} labels have no image of their name: {', '.join(left[:5])}{', ...' * (len(left) > 5)}"

    @cached_property
    def _without_image(self) -> list[str]:
        """Case ids of labels that have no image."""
        labels, images = (
            {file.case_id for file in find_files(folder, recursive=self.recursive)} for folder in self.sources[::-1]
        )
        return sorted(labels - images)
