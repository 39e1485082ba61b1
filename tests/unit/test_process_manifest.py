"""The manifest caches what files hold and notices when they change; the fingerprint follows the contents alone."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from itkit.errors import DataError
from itkit.io.volumes import Volume, write_volume
from itkit.process import manifest
from itkit.process.cases import Case, find_cases


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "data"
    for number, name in enumerate(("a", "b")):
        array = np.arange(24, dtype=np.int16).reshape(2, 3, 4) + number
        write_volume(root / "image" / f"{name}.mha", Volume(array, (3.0, 1.0, 2.0)))
        write_volume(root / "label" / f"{name}.nii.gz", Volume((array % 3 * 100).astype(np.uint16), (3.0, 1.0, 2.0)))
    write_volume(root / "image" / "c.nrrd", Volume(np.ones((2, 2, 3, 4), np.float32)))
    return root


def counted(monkeypatch, name):
    calls = []
    original = getattr(manifest, name)
    monkeypatch.setattr(manifest, name, lambda *a, **k: calls.append(a) or original(*a, **k))
    return calls


def test_entries_say_what_the_files_hold(root):
    entries = manifest.update_manifest(root)
    assert list(entries) == ["a.mha", "b.mha", "c.nrrd"]
    b = entries["b.mha"]
    assert (b["size"], b["spacing"], b["dtype"], b["channels"]) == ([2, 3, 4], [3.0, 1.0, 2.0], "int16", None)
    assert (b["min"], b["max"], b["labels"]) == (1, 24, [0, 100, 200])
    assert (entries["c.nrrd"]["channels"], entries["c.nrrd"]["labels"]) == (2, None)
    assert json.loads((root / "series_meta.json").read_text()) == entries == manifest.read_manifest(root)


def test_only_changed_files_are_read_again(root, monkeypatch):
    manifest.update_manifest(root)
    calls = counted(monkeypatch, "describe_case")
    manifest.update_manifest(root)
    assert calls == []
    write_volume(root / "label" / "a.nii.gz", Volume(np.zeros((2, 3, 4), np.uint16), (3.0, 1.0, 2.0)))
    (root / "image" / "c.nrrd").unlink()
    entries = manifest.update_manifest(root)
    assert [case.case_id for (case,) in calls] == ["a"]
    assert entries["a.mha"]["labels"] == [0]
    assert list(entries) == ["a.mha", "b.mha"]


def test_geometry_comes_from_a_current_manifest_else_from_the_file(root):
    entries = manifest.update_manifest(root)
    case = find_cases(root).cases[0]
    entries["a.mha"]["size"] = [9, 9, 9]
    assert manifest.case_geometry(case, entries)["size"] == [9, 9, 9]
    os.utime(case.image, ns=(1, 1))
    assert manifest.case_geometry(case, entries)["size"] == [2, 3, 4]
    assert manifest.case_geometry(case)["spacing"] == [3.0, 1.0, 2.0]


def test_fingerprint_follows_contents_and_names_only(root, tmp_path, monkeypatch):
    cold = manifest.fingerprint(root)
    manifest.update_manifest(root)
    calls = counted(monkeypatch, "checksum")
    assert manifest.fingerprint(root) == cold
    assert calls == [], "checksums come from the manifest"
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    assert manifest.fingerprint(tmp_path / "copy") == cold
    cases = list(find_cases(root).cases)
    assert manifest.fingerprint(reversed(cases)) == cold
    assert manifest.fingerprint(cases[:2]) != cold
    (root / "image" / "c.nrrd").rename(root / "image" / "d.nrrd")
    assert manifest.fingerprint(root) != cold
    (root / "image" / "d.nrrd").rename(root / "image" / "c.nrrd")
    assert manifest.fingerprint(root) == cold
    content = bytearray((root / "label" / "a.nii.gz").read_bytes())
    content[-1] ^= 1
    (root / "label" / "a.nii.gz").write_bytes(content)
    os.utime(root / "label" / "a.nii.gz", ns=(5, 5))
    assert manifest.fingerprint(root) != cold


def test_voxels_of_mhd_count(tmp_path):
    for value in (0, 1):
        write_volume(tmp_path / f"{value}" / "a.mhd", Volume(np.full((2, 2, 2), value, np.uint8)), compress=False)
    assert manifest.checksum(tmp_path / "0" / "a.mhd") != manifest.checksum(tmp_path / "1" / "a.mhd")


def test_damage_is_named(root):
    with pytest.raises(DataError, match=r"gone.mha: no such file"):
        manifest.fingerprint([Case("gone", root / "image" / "gone.mha")])
    with pytest.raises(DataError, match=r"gone.mha: no such file"):
        manifest.checksum(root / "gone.mha")
    (root / "series_meta.json").write_text("{")
    with pytest.raises(DataError, match="series_meta.json: cannot be read .*remove it"):
        manifest.read_manifest(root)
    assert manifest.fingerprint(root), "a broken cache does not stand in the way"
    (root / "series_meta.json").write_text("[1]")
    with pytest.raises(DataError, match="is not an object"):
        manifest.read_manifest(root)


def test_unwritable_folder_is_named(root, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(manifest, "write_text", refuse)
    with pytest.raises(DataError, match="series_meta.json: cannot be written .Permission denied"):
        manifest.update_manifest(root)
