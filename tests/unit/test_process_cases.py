"""Cases are found by name whatever the format is, and whatever does not fit is told."""

from __future__ import annotations

import numpy as np
import pytest

from itkit.errors import DataError
from itkit.io.volumes import Volume, write_volume
from itkit.process.cases import find_cases


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_pairs_orphans_and_duplicates(tmp_path):
    touch(
        tmp_path,
        "image/b.2.nii.gz", "label/b.2.mha", "image/a.nii", "image/c.mha", "image/c.nii.gz", "label/c.mha", "label/d.nrrd",
        "image/._a.nii.gz", "image/.x.part-c.mha", "image/notes.txt", "image/e.mhd", "image/e.zraw", "image/.nii.gz",
    )  # fmt: skip
    found = find_cases(tmp_path)
    assert [(c.case_id, c.image.name, c.label and c.label.name) for c in found.cases] == [
        ("a", "a.nii", None), ("b.2", "b.2.nii.gz", "b.2.mha"), ("c", "c.mha", "c.mha"), ("e", "e.mhd", None),
    ]  # fmt: skip
    assert [case.case_id for case in found.unlabelled] == ["a", "e"]
    assert {name: path.name for name, path in found.orphans.items()} == {"d": "d.nrrd"}
    assert {name: [p.name for p in paths] for name, paths in found.duplicates.items()} == {"c": ["c.mha", "c.nii.gz"]}
    assert found.cases[1].files == (tmp_path / "image/b.2.nii.gz", tmp_path / "label/b.2.mha")


def test_empty_and_missing_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        find_cases(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no folder image/"):
        find_cases(tmp_path)
    touch(tmp_path, "image/readme.txt")
    with pytest.raises(DataError, match="image: holds no volume"):
        find_cases(tmp_path)


def test_folder_that_cannot_be_listed_is_named(tmp_path):
    from itkit.process.cases import list_volumes

    with pytest.raises(DataError, match="gone: cannot be listed"):
        list_volumes(tmp_path / "gone")


def test_a_written_volume_is_found(tmp_path):
    write_volume(tmp_path / "image" / "x.mhd", Volume(np.zeros((2, 2, 2), np.uint8)))
    assert [case.case_id for case in find_cases(tmp_path).cases] == ["x"]
