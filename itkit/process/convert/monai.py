"""MONAI's data list: volumes as in the Decathlon, and a ``dataset.json`` with a list for each part of the split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from itkit.errors import DataError, UsageError
from itkit.io.headers import volume_stem
from itkit.process.convert.conversion import as_ascii_json
from itkit.process.convert.description import Description, names_by_number
from itkit.process.convert.layout import ForeignCase, LayoutConversion, inside
from itkit.process.convert.msd import DESCRIPTION_NAME, forgotten_cases, read_json, task_keys
from itkit.process.splits import PARTS

LISTS = {"train": "training", "val": "validation", "test": "test"}
"""Part of a split -> the list of ``dataset.json`` that has its cases."""
UNUSED = "unused"
"""The list of the cases that are in no part."""


@dataclass(frozen=True)
class MONAI(LayoutConversion):
    """What `monai.data.load_decathlon_datalist` loads: ``training``, ``validation`` and ``test`` are the parts of the split.

    Without a split, ``training`` has the labelled cases and ``test`` the others.

    Args:
        split: On the way there, the part in which all labelled cases are put, whatever ``split.json`` says: ``"train"``,
            ``"val"`` or ``"test"``. None and ``"all"``: by ``split.json``.

    Raises:
        UsageError: If there is no such part, or `split` is given on the way back.
    """

    name: ClassVar[str] = "itk_convert monai"
    split: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.split not in (None, "all", *PARTS):
            raise UsageError(f"{self.name}: --split is one of {', '.join(PARTS)} or all, not {self.split!r}.")
        if self.back and self.split is not None:
            raise UsageError(
                f"{self.name}: --split has no meaning with --back; dataset.json says what is in which part."
            )

    @cached_property
    def about(self) -> Description:
        about = super().about
        return about if self.split in (None, "all") else replace(about, split=None)

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"split": None if self.split == "all" else self.split}

    def part_of(self, case_id: str, labelled: bool) -> str | None:
        if self.split in (None, "all"):
            return super().part_of(case_id, labelled)
        return self.split if labelled else None

    def same_part(self, there: str | None, here: str | None) -> bool:
        return there is None or there == here

    def make_documents(self, about: Description, cases: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        divided = about.split is not None or self.split not in (None, "all")
        lists: dict[str, list[dict[str, str]]] = {"training": [], "test": []}
        if divided:
            lists = {name: [] for name in (*LISTS.values(), UNUSED)}
        for case in cases:
            part = case["part"] or (UNUSED if divided else "train" if case["label"] else "test")
            item = {"image": case["images"][0]} | ({"label": case["label"]} if case["label"] else {})
            lists[LISTS.get(part, part)].append(item)
        counts = {"numTraining": len(lists["training"]), "numTest": len(lists["test"])}
        # A list without items is none for MONAI, and a label that some items lack cannot be loaded.
        shown = {name: items for name, items in lists.items() if items or name in ("training", "test")}
        return {DESCRIPTION_NAME: as_ascii_json(task_keys(about, cases) | counts | shown)}

    def read_layout(self) -> tuple[Description, list[ForeignCase]]:
        root = Path(self.source)
        path = root / DESCRIPTION_NAME
        document = read_json(path, "itk_convert monai, or the author of the data, writes it beside the volumes")
        cases, split = [], {}
        for part, name in (*LISTS.items(), (None, UNUSED)):
            items = document.get(name, [])
            if not isinstance(items, list):
                raise DataError(f"{name} should be a list of cases, it is {items!r}.", path)
            found = [_case(root, item, part, path) for item in items]
            cases += found
            if part is not None:
                split[part] = [case.name for case in found]
        if not cases:
            raise DataError(f"has none of the lists {', '.join(LISTS.values())}, or they are empty.", path)
        divided = LISTS["val"] in document or UNUSED in document or any(
            case.part == "test" and case.label is not None for case in cases
        )  # fmt: skip
        if not divided:
            cases = [replace(case, part=None) for case in cases]
        cases += [replace(case, part=None) for case in forgotten_cases(root, cases)]
        labels, modality = document.get("labels"), document.get("modality")
        known = {
            "name": document.get("name"),
            "classes": list(names_by_number(labels, "labels", path)) if labels else None,
            "modality": list(names_by_number(modality, "modality", path)) if modality else None,
            **{key: document.get(key) for key in ("description", "reference", "licence", "release")},
        }
        meta = {key: value for key, value in known.items() if value}
        about = Description(
            meta.get("name"), tuple(meta["classes"]) if labels else None, tuple(meta["modality"]) if modality else None,
            split if divided else None, meta,
        )  # fmt: skip
        return about, cases


def _case(root: Path, item: object, part: str | None, path: Path) -> ForeignCase:
    if isinstance(item, str):
        item = {"image": item}
    if not isinstance(item, dict) or "image" not in item:
        raise DataError(f"has an item without an image: {item!r}.", path)
    names = item["image"] if isinstance(item["image"], list) else [item["image"]]
    images = tuple(inside(root, name, path) for name in names)
    if not images:
        raise DataError(f"has an item without an image: {item!r}.", path)
    label = item.get("label")
    problem = None
    if label is not None and not isinstance(label, str):
        label, problem = None, f"the label is {label!r}, not one file."
    return ForeignCase(
        volume_stem(images[0]), images, None if label is None else inside(root, label, path), part, problem
    )
