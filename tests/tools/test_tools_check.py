"""`itk_check`: every fault of a case is named, nothing is changed unless asked, and then only what is bad."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from tool_data import ledger, make_dataset, make_label, make_volume

from itkit.errors import DataError
from itkit.io.volumes import Volume, read_volume, write_volume
from itkit.process.check import duplicates
from itkit.process.manifest import update_manifest


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rules(folder, case):
    return {rule for rule, _, _ in json.loads((folder / "check.json").read_text())["cases"][case]}


def test_a_good_dataset_and_what_is_said_of_it(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 3)
    before = snapshot(source)
    code, out, said = tool("itk_check", "check", source, "-o", tmp_path / "out")
    assert code == 0
    assert "3 cases, 3 without problems" in out
    assert "size         Z 6 .. 6, Y 8 .. 8, X 10 .. 10 voxels" in out
    assert "spacing      Z 3 .. 3, Y 2 .. 2, X 1 .. 1 mm" in out
    assert "labels       0, 1, 2, 3" in out
    assert "3 done, 0 up to date, 0 failed" in said
    assert snapshot(source) == before
    written = json.loads((tmp_path / "out/series_meta.json").read_text())
    expected = update_manifest(source, write=False)
    assert {name: {**entry, "findings": []} for name, entry in expected.items()} == written
    assert "0 done, 3 up to date" in tool("itk_check", "check", source, "-o", tmp_path / "out")[2]


def test_without_o_the_place_is_beside_not_inside(tool, tmp_path, monkeypatch):
    source = make_dataset(tmp_path / "raw", 1)
    monkeypatch.chdir(tmp_path)
    assert tool("itk_check", "check", "raw")[0] == 0
    assert (tmp_path / "raw.check/series_meta.json").is_file()
    assert sorted(path.name for path in source.iterdir()) == ["image", "label"]


@pytest.fixture
def faulty(tmp_path):
    """A dataset with one fault a case, and the rule that must find it."""
    source = make_dataset(tmp_path / "raw", 1)
    (source / "meta.json").write_text('{"name": "F", "classes": ["b", "1", "2", "3"]}')
    image, label = source / "image", source / "label"

    def pair(name, volume=None, segmentation=None, suffix=".mha"):
        write_volume(image / (name + suffix), volume or make_volume())
        write_volume(label / (name + suffix), segmentation or make_label())

    nan = make_volume(dtype="float32")
    nan.array[0, 0, 0] = np.nan
    pair("nan", nan)
    pair("infinite", Volume(np.where(make_volume().array == 5, np.inf, 1.0), (3.0, 2.0, 1.0), *_place()))
    pair("moved", None, Volume(make_label().array, (3.0, 2.0, 1.0), (-12.5, 60.0, 7.0), make_label().direction_xyz))
    pair("shorter", None, make_label(size=(5, 8, 10)))
    pair("classes", None, make_label((0, 1, 4)))
    pair("negative", None, make_label((-1, 0, 1), dtype="int16"))
    pair("wide", None, make_label((0, 300), dtype="int16"))
    probabilities = make_label(dtype="float32")
    probabilities.array[0] = 0.5
    pair("fractions", None, probabilities)
    pair("truncated")
    (image / "truncated.mha").write_bytes((image / "truncated.mha").read_bytes()[:-40])
    pair("flipped", suffix=".nii.gz")
    data = bytearray((image / "flipped.nii.gz").read_bytes())
    data[-6] ^= 16  # in the checksum: nothing else can see it
    (image / "flipped.nii.gz").write_bytes(data)
    pair("empty")
    (label / "empty.mha").write_bytes(b"")
    pair("unlabelled")
    (label / "unlabelled.mha").unlink()
    pair("orphan")
    (image / "orphan.mha").unlink()
    return source


def _place():
    volume = make_volume()
    return volume.origin_xyz, volume.direction_xyz


EXPECTED = {
    "nan": ("finite", "1 of 480 voxels are NaN or infinite"),
    "infinite": ("finite", "voxels are NaN or infinite"),
    "moved": ("pair", "label has origin"),
    "shorter": ("pair", r"label has size \(5, 8, 10\), image has \(6, 8, 10\)"),
    "classes": ("classes", r"label values 4 are not in 0 \.\. 3"),
    "negative": ("classes", r"label values -1 are not in 0 \.\. 3"),
    "wide": ("classes", r"label values 300 are not in 0 \.\. 3"),
    "fractions": ("label", "the label map holds 0.5, which is no label"),
    "truncated": ("readable", "truncated.mha"),
    "flipped": ("readable", "flipped.nii.gz"),
    "empty": ("readable", "the file is empty"),
    "unlabelled": ("pair", "the image has no label of its name"),
    "orphan": ("pair", "the label has no image of its name"),
}


def test_every_fault_is_found_named_and_stops_nobody(tool, tmp_path, faulty):
    before = snapshot(faulty)
    code, _, said = tool("itk_check", "check", faulty, "-o", tmp_path / "out")
    assert code == 1
    entries = ledger(tmp_path / "out")
    assert entries.keys() == EXPECTED.keys() | {"case_0"}
    assert entries["case_0"]["state"] == "done"
    for case, (rule, text) in EXPECTED.items():
        assert entries[case]["state"] == "failed", case
        assert rule in rules(tmp_path / "out", case)
        assert re.search(text, entries[case]["reason"]), (case, entries[case]["reason"])
        assert f"FAILED  {case}: " in said
    assert f"1 done, 0 up to date, {len(EXPECTED)} failed" in said
    assert snapshot(faulty) == before
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress((faulty / "image/flipped.nii.gz").read_bytes())


def test_copies_hold_the_good_cases_only(tool, tmp_path, faulty):
    assert tool("itk_check", "copy", faulty, "-o", tmp_path / "good")[0] == 1
    assert [path.name for path in (tmp_path / "good/image").iterdir()] == ["case_0.mha"]
    assert (tmp_path / "good/label/case_0.mha").read_bytes() == (faulty / "label/case_0.mha").read_bytes()
    assert (tmp_path / "good/meta.json").read_text() == (faulty / "meta.json").read_text()
    assert list(json.loads((tmp_path / "good/series_meta.json").read_text())) == ["case_0.mha"]
    assert tool("itk_check", "symlink", faulty, "-o", tmp_path / "links")[0] == 1
    assert (tmp_path / "links/image/case_0.mha").resolve() == (faulty / "image/case_0.mha").resolve()


@pytest.mark.parametrize("name", ["itk_check", "itk_orient"])
def test_a_header_without_its_voxels_says_which_file_is_missing(tool, tmp_path, name):
    write_volume(tmp_path / "raw/a.mhd", make_volume())
    (tmp_path / "raw/a.zraw").unlink()
    words = (
        ["check", tmp_path / "raw", "-o", tmp_path / "out"]
        if name == "itk_check"
        else [tmp_path / "raw", tmp_path / "out", "RAS"]
    )
    code, _, said = tool(name, *words)
    assert code == 1
    assert "a.mhd: the voxels should be in 'a.zraw', which is not there." in said


def test_voxel_files_of_headers_are_copied_too(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 1, suffix=".mhd")
    assert tool("itk_check", "copy", source, "-o", tmp_path / "good")[0] == 0
    a, b = (read_volume(root / "image/case_0.mhd") for root in (source, tmp_path / "good"))
    np.testing.assert_array_equal(a.array, b.array)


def test_links_to_headers_come_with_links_to_their_voxels(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 1, suffix=".mhd")
    assert tool("itk_check", "symlink", source, "-o", tmp_path / "good")[0] == 0
    assert (tmp_path / "good/image/case_0.mhd").is_symlink()
    linked = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "good/image/case_0.mhd")))
    np.testing.assert_array_equal(linked, read_volume(source / "image/case_0.mhd").array)


def test_voxels_outside_of_their_folder_are_not_carried(tool, tmp_path):
    write_volume(tmp_path / "raw/a.mhd", make_volume())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "raw/a.zraw").rename(tmp_path / "elsewhere/a.zraw")
    header = (tmp_path / "raw/a.mhd").read_text().replace("= a.zraw", f"= {tmp_path}/elsewhere/a.zraw")
    (tmp_path / "raw/a.mhd").write_text(header)
    assert tool("itk_check", "check", tmp_path / "raw", "-o", tmp_path / "out")[0] == 0
    code, _, said = tool("itk_check", "copy", tmp_path / "raw", "-o", tmp_path / "good")
    assert code == 1
    assert "outside of its folder. Make it one file with itk_convert format." in said


def test_nothing_that_is_written_holds_a_nan(tool, tmp_path, faulty):
    assert tool("itk_check", "check", faulty, "-o", tmp_path / "out", "--report")[0] == 1

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    for name in ("series_meta.json", "check.json"):
        json.loads((tmp_path / "out" / name).read_text(), parse_constant=refuse)
    for line in (tmp_path / "out/ledger.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    entry = json.loads((tmp_path / "out/series_meta.json").read_text())["nan.mha"]
    values = read_volume(faulty / "image/nan.mha").array
    assert (entry["min"], entry["max"], entry["nonfinite"]) == (np.nanmin(values), np.nanmax(values), 1)


@pytest.mark.parametrize("fault", ["rights", "memory", "memory of the system", "copied meanwhile"])
def test_what_is_no_fault_of_the_files_is_never_deleted(tool, tmp_path, monkeypatch, fault):
    source = make_dataset(tmp_path / "raw", 2)
    whole = (source / "image/case_1.mha").read_bytes()
    before = snapshot(source)

    def read(path):
        if path.name == "case_1.mha" and path.parent.name == "image":
            if fault == "memory":
                raise MemoryError
            if fault == "copied meanwhile":
                path.write_bytes(whole + b"more")
                raise DataError("the compressed data end too early.", path)
            cause = MemoryError() if fault == "memory of the system" else PermissionError(13, "Permission denied")
            raise DataError("cannot be had.", path) from cause
        return read_volume(path)

    monkeypatch.setattr("itkit.process.check.read_volume", read)
    code, _, said = tool("itk_check", "delete", source, "-o", tmp_path / "out", "--yes")
    assert code == 1
    assert "1 done, 0 up to date, 1 failed" in said
    assert not (tmp_path / "out/deleted.jsonl").exists()
    assert snapshot(source).keys() == before.keys()
    assert rules(tmp_path / "out", "case_1") >= {"unexamined"}


def test_deleting_asks_and_removes_only_what_is_bad(tool, tmp_path, faulty):
    before = snapshot(faulty)
    code, _, said = tool("itk_check", "delete", faulty, "-o", tmp_path / "out")
    assert code == 1
    assert re.search(r"nothing was deleted; \d+ files of 13 cases would be. Answer with y, or --yes", said)
    assert snapshot(faulty) == before
    assert tool("itk_check", "delete", faulty, "-o", tmp_path / "out", "--yes")[0] == 1
    assert {path.name for path in (faulty / "image").iterdir()} == {"case_0.mha"}
    assert {path.name for path in (faulty / "label").iterdir()} == {"case_0.mha"}
    log = [json.loads(line) for line in (tmp_path / "out/deleted.jsonl").read_text().splitlines()]
    assert {line["case"] for line in log} == EXPECTED.keys()
    assert all(line["reason"] for line in log)
    assert tool("itk_check", "delete", faulty, "-o", tmp_path / "out", "--yes")[0] == 0


def test_a_file_that_cannot_be_deleted_is_named_and_stops_nobody(tool, tmp_path, faulty, monkeypatch):
    unlink = Path.unlink

    def stubborn(path, **options):
        if path.name == "shorter.mha" and path.parent.name == "image":
            raise PermissionError(1, "Operation not permitted")
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", stubborn)
    code, _, said = tool("itk_check", "delete", faulty, "-o", tmp_path / "out", "--yes")
    assert code == 1
    assert re.search(r"1 of \d+ files could not be deleted: .*image/shorter.mha: Operation not permitted", said)
    assert {path.name for path in (faulty / "image").iterdir()} == {"case_0.mha", "shorter.mha"}
    log = [json.loads(line) for line in (tmp_path / "out/deleted.jsonl").read_text().splitlines()]
    assert [line["kept"] for line in log if "kept" in line] == [str(faulty / "image/shorter.mha")]


@pytest.mark.parametrize(
    "words, text",
    [
        (["--min-size", 7, -1, -1], "size along Z is 6 voxels, at least 7 are asked for"),
        (["--max-size", -1, -1, 9], "size along X is 10 voxels, at most 9 are allowed"),
        (["--min-spacing", -1, 2.5, -1], "spacing along Y is 2 mm, at least 2.5 are asked for"),
        (["--max-spacing", 2.5, -1, -1], "spacing along Z is 3 mm, at most 2.5 are allowed"),
        (["--same-size", "Y", "X"], "size differs: Y 8, X 10"),
        (["--same-spacing", "z", "2"], "spacing differs: Z 3, X 1"),
    ],
)
def test_limits(tool, tmp_path, words, text):
    source = make_dataset(tmp_path / "raw", 1)
    code, _, said = tool("itk_check", "check", source, "-o", tmp_path / "out", *words)
    assert (code, text in said) == (1, True), said


def test_limits_that_are_met(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 1, spacing=(3.0, 1.0005, 1.0))
    words = ["--min-size", 6, 8, 10, "--max-size", 6, 8, 10, "--min-spacing", 3, 1, 1, "--same-spacing", "Y", "X"]
    assert tool("itk_check", "check", source, "-o", tmp_path / "out", *words)[0] == 0


def test_notes_do_not_fail_a_case(tool, tmp_path):
    constant = make_volume()
    constant.array[:] = 7
    source = make_dataset(tmp_path / "raw", 1)
    write_volume(source / "image/constant.mha", constant)
    write_volume(source / "label/constant.mha", make_label((0,)))
    code, _, said = tool("itk_check", "check", source, "-o", tmp_path / "out")
    assert code == 0
    assert "note    constant: every voxel of the image is 7" in said
    assert "note    constant: the label holds no foreground" in said
    assert tool("itk_check", "check", source, "-o", tmp_path / "out", "--require-foreground")[0] == 1


def test_the_same_voxels_under_two_names(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 3)
    write_volume(source / "image/twin.nii.gz", read_volume(source / "image/case_1.mha"))
    write_volume(source / "label/twin.nii.gz", read_volume(source / "label/case_1.mha"))
    code, out, _ = tool("itk_check", "check", source, "-o", tmp_path / "out")
    assert code == 0
    assert "same voxels  case_1 = twin" in out
    assert json.loads((tmp_path / "out/check.json").read_text())["duplicates"] == [["case_1", "twin"]]
    assert duplicates({"a": {"record": {"voxels": "1"}}, "b": {"record": {"voxels": "2"}}, "c": {"record": {}}}) == []


def test_a_plain_folder_needs_no_labels_and_unlabelled_may_be_allowed(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 2)
    assert tool("itk_check", "check", source / "image", "-o", tmp_path / "a")[0] == 0
    (source / "label/case_1.mha").unlink()
    assert tool("itk_check", "check", source, "-o", tmp_path / "b")[0] == 1
    assert tool("itk_check", "check", source, "-o", tmp_path / "b", "--allow-unlabelled")[0] == 0


def test_the_page_shows_every_readable_case_and_loads_nothing(tool, tmp_path, faulty):
    code, _, _ = tool("itk_check", "check", faulty, "-o", tmp_path / "out", "--report")
    assert code == 1
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("data:image/png;base64,") == len(EXPECTED) + 1 - 3  # two images cannot be read, one is not there
    for case in EXPECTED:
        assert case in page
    for title in ("size along Z", "spacing along X", "intensities", "volume of class 2"):
        assert title in page
    assert not re.search(r"(src|href)=['\"](?!data:)", page)
    assert "1 without problems" in page


def test_a_label_stored_as_floating_point_is_drawn_and_counted(tool, tmp_path):
    for name, dtype in (("a", "uint8"), ("b", "float32")):
        write_volume(tmp_path / f"raw/image/{name}.mha", make_volume())
        write_volume(tmp_path / f"raw/label/{name}.mha", make_label(dtype=dtype))
    assert tool("itk_check", "check", tmp_path / "raw", "-o", tmp_path / "out", "--report")[0] == 0
    a, b = (entry["record"] for entry in ledger(tmp_path / "out").values())
    assert a["volumes_ml"].keys() == {"1", "2", "3"}
    assert b["volumes_ml"] == a["volumes_ml"]
    assert "volume of class 1 in 2 cases" in (tmp_path / "out/report.html").read_text()


def test_results_do_not_depend_on_workers(tool, tmp_path, faulty):
    for name, more in (("one", []), ("two", ["--workers", 2])):
        assert tool("itk_check", "check", faulty, "-o", tmp_path / name, "--report", *more)[0] == 1
    for name in ("series_meta.json", "check.json", "report.html"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()


@pytest.mark.parametrize(
    "words, text",
    [
        (["copy", "raw"], "copy needs a folder for the results; give -o"),
        (["check", "raw", "-o", "raw/here"], "nothing is ever written into a source"),
        (["check", "raw", "--min-size", -2, 1, 1], "each at least 0, or -1 to ignore an axis"),
        (["check", "raw", "--same-size", "Y", "Q"], "takes axes (Z, Y, X), not 'Q'"),
        (["check", "raw", "--same-size", "Y", "Y"], "compares at least two different axes"),
        (["move", "raw"], "invalid choice: 'move'"),
    ],
)
def test_words_that_make_no_sense(tool, tmp_path, monkeypatch, words, text):
    make_dataset(tmp_path / "raw", 1)
    monkeypatch.chdir(tmp_path)
    code, _, said = tool("itk_check", *words)
    assert (code, text in said) == (2, True), said


def test_an_empty_and_a_missing_folder(tool, tmp_path):
    (tmp_path / "raw").mkdir()
    code, _, said = tool("itk_check", "check", tmp_path / "raw", "-o", tmp_path / "out")
    assert (code, "holds no volume" in said) == (1, True)
    code, _, said = tool("itk_check", "check", tmp_path / "gone", "-o", tmp_path / "out")
    assert (code, "no such folder" in said) == (1, True)
