"""The converter keeps every bit, goes on after a bad case, and a second run does only what is left."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct

import numpy as np
import pytest
import SimpleITK as sitk

from itkit.dataset import SeriesVolumeDataset
from itkit.dataset import converter as converter_module
from itkit.dataset.converter import Converter, SourceCase
from itkit.dataset.MSD.convert_nii_mha import MSDConverter, main
from itkit.dataset.MSD.meta import read_description
from itkit.errors import DataError, UsageError
from itkit.io.volumes import Volume, read_volume, write_volume

DESCRIPTION = {
    "name": "Toy", "description": "d", "reference": "r", "licence": "CC-BY-SA 4.0", "modality": {"0": "T1", "1": "T2"},
    "labels": {"0": "background", "1": "edema", "2": "tumour"},
}  # fmt: skip


@pytest.fixture
def source(tmp_path):
    """Three cases with two modalities."""
    source = tmp_path / "Task99_Toy"
    rng = np.random.default_rng(0)
    names = [f"toy_{k}" for k in range(3)]
    for name in names:
        modalities = [sitk.GetImageFromArray(rng.normal(size=(3, 4, 5)).astype(np.float32)) for _ in range(2)]
        (source / "imagesTr").mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(sitk.JoinSeries(modalities), os.fspath(source / "imagesTr" / f"{name}.nii.gz"))
        write_volume(source / "labelsTr" / f"{name}.nii.gz", Volume(rng.integers(0, 3, (3, 4, 5)).astype(np.uint8)))
    (source / "imagesTr" / "._toy_0.nii.gz").write_bytes(b"resource fork")
    cases = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names[:2]]
    (source / "dataset.json").write_text(json.dumps(DESCRIPTION | {"training": cases}))
    (source / "split.json").write_text(json.dumps({"train": names[:2], "val": names[2:]}))
    return source


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()
    }


def test_conversion(source, tmp_path, capfd):
    target = tmp_path / "out"
    assert main([str(source), str(target)]) == 0
    assert capfd.readouterr().err.endswith(f"{target}: 3 converted, 0 up to date, 0 failed\n")
    assert set(files_of(target)) == {
        *(f"{folder}/toy_{k}.mha" for folder in ("image", "label") for k in range(3)),
        "ledger.jsonl", "meta.json", "series_meta.json", "split.json",
    }  # fmt: skip
    for k in range(3):
        theirs = sitk.ReadImage(os.fspath(source / "imagesTr" / f"toy_{k}.nii.gz"))
        image = read_volume(target / "image" / f"toy_{k}.mha")
        np.testing.assert_array_equal(image.array, sitk.GetArrayFromImage(theirs))
        assert image.array.dtype == np.float32
    assert json.loads((target / "meta.json").read_text())["licence"] == "CC-BY-SA 4.0"
    data = SeriesVolumeDataset(target, "train")
    assert data.metainfo["classes"] == ("background", "edema", "tumour")
    assert data.case_ids == ["toy_0", "toy_1"]


def test_second_run_does_only_what_is_left(source, tmp_path, capfd):
    target = tmp_path / "out"
    main([str(source), str(target)])
    before = files_of(target)
    assert main([str(source), str(target)]) == 0
    assert "0 converted, 3 up to date, 0 failed" in capfd.readouterr().err
    assert {k: v for k, v in files_of(target).items() if "toy" in k} == {k: v for k, v in before.items() if "toy" in k}
    (target / "image" / "toy_0.mha").unlink()
    write_volume(source / "labelsTr" / "toy_1.nii.gz", Volume(np.ones((3, 4, 5), np.uint8)))
    assert main([str(source), str(target), "--dry-run"]) == 0
    assert "2 to convert, 1 up to date" in capfd.readouterr().err
    assert not (target / "image" / "toy_0.mha").exists()
    assert main([str(source), str(target)]) == 0
    assert "2 converted, 1 up to date" in capfd.readouterr().err
    assert read_volume(target / "label" / "toy_1.mha").array.min() == 1
    assert files_of(target)["image/toy_2.mha"] == before["image/toy_2.mha"]
    assert main([str(source), str(target), "--overwrite"]) == 0
    assert "3 converted, 0 up to date" in capfd.readouterr().err


def test_bad_cases_are_recorded_and_the_others_done(source, tmp_path, capfd):
    target = tmp_path / "out"
    (source / "imagesTr" / "toy_0.nii.gz").write_bytes((source / "imagesTr" / "toy_0.nii.gz").read_bytes()[:-20])
    write_volume(source / "labelsTr" / "toy_1.nii.gz", Volume(np.zeros((3, 4, 6), np.uint8)))
    plain = bytearray(gzip.decompress((source / "labelsTr" / "toy_2.nii.gz").read_bytes()))
    struct.pack_into("<4f", plain, 280, 1, 0.5, 0, 0)  # a sheared sform
    struct.pack_into("<h", plain, 252, 0)
    (source / "labelsTr" / "toy_2.nii.gz").write_bytes(gzip.compress(bytes(plain)))
    shutil.copy(source / "imagesTr" / "toy_1.nii.gz", source / "imagesTr" / "toy_3.nii.gz")
    write_volume(source / "labelsTr" / "toy_3.nii.gz", Volume(np.zeros((3, 4, 5), np.uint8)))
    assert main([str(source), str(target)]) == 1
    said = capfd.readouterr().err
    assert "1 converted, 0 up to date, 3 failed" in said
    reasons = {
        entry["case"]: entry["reason"]
        for entry in map(json.loads, (target / "ledger.jsonl").read_text().splitlines())
        if entry["state"] == "failed"
    }
    assert "compressed data end" in reasons["toy_0"]
    assert "label has size (3, 4, 6), image has (3, 4, 5)" in reasons["toy_1"]
    assert "orthonormal" in reasons["toy_2"]
    assert all(reason in said and f"toy_{k}.nii.gz" in reason for k, reason in enumerate(reasons.values()))
    assert [path.name for path in (target / "image").iterdir()] == ["toy_3.mha"]
    assert main([str(source), str(target)]) == 1
    assert "0 converted, 1 up to date, 3 failed" in capfd.readouterr().err


def test_foreign_files_are_not_replaced(source, tmp_path, capfd):
    target = tmp_path / "out"
    mine = target / "image" / "toy_1.mha"
    write_volume(mine, Volume(np.zeros((3, 4, 5), np.uint8)))
    content = mine.read_bytes()
    for _ in range(2):
        assert main([str(source), str(target)]) == 1
        assert "toy_1.mha: exists and was not written by this tool" in capfd.readouterr().err
        assert mine.read_bytes() == content
    assert main([str(source), str(target), "--overwrite"]) == 0
    assert mine.read_bytes() != content


def test_a_killed_run_goes_on(source, tmp_path, monkeypatch):
    target = tmp_path / "out"

    def die(path, volume, *, original=write_volume):
        original(path, volume)
        if path.name == "toy_1.mha":
            raise KeyboardInterrupt

    monkeypatch.setattr(converter_module, "write_volume", die)
    with pytest.raises(KeyboardInterrupt):
        main([str(source), str(target)])
    monkeypatch.undo()
    assert not (target / "image" / "toy_1.mha").exists(), "image and label appear together"
    summary = MSDConverter(source, target).run()
    assert (summary.current, summary.done, summary.failed) == (["toy_0"], ["toy_1", "toy_2"], {})


def test_unexpected_failure_of_a_case_is_its_reason(source, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("library trouble")

    monkeypatch.setattr(MSDConverter, "convert_case", fail)
    summary = MSDConverter(source, tmp_path / "out").run()
    assert summary.failed == {f"toy_{k}": "RuntimeError: library trouble" for k in range(3)}
    assert summary.exit_code == 1


def test_two_processes(source, tmp_path):
    summary = MSDConverter(source, tmp_path / "out").run(workers=2)
    assert sorted(summary.done) == ["toy_0", "toy_1", "toy_2"]
    assert MSDConverter(source, tmp_path / "out").run().current == ["toy_0", "toy_1", "toy_2"]


def test_senseless_places_are_refused(source, tmp_path, capfd):
    assert main([str(tmp_path / "no"), str(tmp_path / "out")]) == 2
    assert "no: no such folder" in capfd.readouterr().err
    with pytest.raises(UsageError, match="the destination is the source .* or lies inside of it"):
        MSDConverter(source, source / "out")
    (tmp_path / "file").write_text("")
    assert main([str(source), str(tmp_path / "file" / "out")]) == 1
    assert "cannot be written" in capfd.readouterr().err

    class Nothing(Converter):
        def cases(self) -> list[SourceCase]:
            return []

        def meta(self) -> dict:
            return {}

    with pytest.raises(DataError, match="holds no case"):
        Nothing(source, tmp_path / "out").run()
    for method in (Converter.cases, Converter.meta):
        with pytest.raises(NotImplementedError):
            method(Nothing(source, tmp_path / "out"))


@pytest.mark.parametrize("change,message", [
    (None, "no such file; a Decathlon task has it"),
    ("{", "cannot be read"),
    ({"labels": None}, "does not describe a Decathlon task"),
    ({"training": [{"image": "../../etc/x.nii.gz", "label": "y"}]}, "leads out of the folder"),
    ({"labels": {"0": "background", "2": "tumour"}}, r"label values must be 0, 1, 2, ...; found \[0, 2\]"),
])  # fmt: skip
def test_damaged_descriptions_are_named(source, change, message):
    path = source / "dataset.json"
    if change is None:
        path.unlink()
    else:
        path.write_text(change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=f"dataset.json: .*{message}"):
        read_description(source)


def test_real_hippocampus_to_the_bit(shared_data, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    real = shared_data("Task04_Hippocampus")
    source = tmp_path / "Task04_Hippocampus"
    description = json.loads((real / "dataset.json").read_text())
    description["training"] = description["training"][:4]
    for case in description["training"]:
        for path in case.values():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(real / path, source / path)
    (source / "dataset.json").write_text(json.dumps(description))
    target = tmp_path / "out"
    assert MSDConverter(source, target).run().failed == {}
    for case in description["training"]:
        for role, folder in (("image", "image"), ("label", "label")):
            path = source / case[role]
            ours = sitk.ReadImage(os.fspath(target / folder / path.name.replace(".nii.gz", ".mha")))
            theirs = sitk.ReadImage(os.fspath(path))
            assert ours.GetPixelID() == theirs.GetPixelID()
            for part in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
                assert getattr(ours, part)() == getattr(theirs, part)()
            np.testing.assert_array_equal(sitk.GetArrayViewFromImage(ours), sitk.GetArrayViewFromImage(theirs))
            raw = np.asarray(nibabel.load(path).dataobj)
            np.testing.assert_array_equal(sitk.GetArrayViewFromImage(ours), raw.T)
            assert sitk.GetArrayViewFromImage(ours).dtype == raw.dtype
