"""A dataset over patches that were cut beforehand: several files a case."""

from __future__ import annotations

import os
import re

from itkit.dataset.base import ITKITBaseSegDataset
from itkit.errors import DataError
from itkit.registry import DATASETS

PATCH_NAME = re.compile(r"(?P<case>.+)_(?P<patch>\d+)")


@DATASETS.register_module()
class PatchedDataset(ITKITBaseSegDataset):
    """Patches ``image/<case>_<number>.<ext>`` with labels of the same name; splits never divide a case.

    A sample's ``case_id`` is the patch's name (``liver_3_17``), ``parent_case`` the case it was cut from (``liver_3``),
    ``patch_number`` the number. Names in splits, `cases` and `limit` are those of the parent cases. The arguments are those
    of `ITKITBaseSegDataset`.

    Raises:
        DataError: As there, and if a file's name is not ``<case>_<number>``.
    """

    def find_samples(self) -> dict[str, list[dict]]:
        """Return parent case -> its patches, by number."""
        found: dict[str, list[dict]] = {}
        for patch in self.find_files().cases:
            match = PATCH_NAME.fullmatch(patch.case_id)
            if match is None:
                raise DataError("a patch is named <case>_<number>, e.g. liver_3_17.mha.", patch.image)
            found.setdefault(match["case"], []).append(
                {
                    "case_id": patch.case_id,
                    "parent_case": match["case"],
                    "patch_number": int(match["patch"]),
                    "img_path": os.fspath(patch.image),
                    "seg_map_path": None if patch.label is None else os.fspath(patch.label),
                }
            )
        for patches in found.values():
            patches.sort(key=lambda patch: patch["patch_number"])
        return found
