"""`itk_evaluate`: every case counts by a stated rule, nothing is compared across places, tables do not depend on the run."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from tool_data import OBLIQUE, ledger

from itkit.cli.main import run_tool
from itkit.io.volumes import Volume, write_volume

SPACING = (3.0, 2.0, 1.0)
DIAGONAL = float(np.linalg.norm(np.multiply((12, 14, 16), SPACING)))


def labels(dtype="uint8"):
    array = np.zeros((12, 14, 16), dtype)
    array[2:8, 3:9, 4:10], array[8:11, 9:12, 2:6] = 1, 2
    return array


def write(path, array, origin=(5.0, -7.0, 11.0), spacing=SPACING, direction=OBLIQUE):
    write_volume(path, Volume(array, spacing, origin, direction))


@pytest.fixture
def folders(tmp_path):
    """Truths a, b, c, d and predictions: a off by a voxel, b equal, c of label 3 instead of 2, d missing."""
    for name in "abcd":
        write(tmp_path / "gt" / f"{name}.mha", labels())
    write(tmp_path / "pred" / "a.nii.gz", np.roll(labels(), 1, 2))
    write(tmp_path / "pred" / "b.nrrd", labels("int16"))
    write(tmp_path / "pred" / "c.mha", np.where(labels() == 2, 3, labels()).astype(np.uint16))
    return tmp_path


def evaluate(folders, *words, truth="gt", prediction="pred", out="out"):
    return run_tool("itk_evaluate", [str(folders / truth), str(folders / prediction), str(folders / out), *words])


def cells(folder, column=None):
    with open(folder / "evaluation_cases.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {(row["case"], row["class"]): row if column is None else row[column] for row in rows}


def summary(folder):
    document = json.loads((folder / "evaluation.json").read_text())
    return {(row["measure"], row["class"]): row for row in document["summary"]}


def test_every_case_and_class_counts_by_the_rule(folders, capsys):
    assert evaluate(folders) == 1
    told = capsys.readouterr()
    assert "d: has no prediction; counted as an empty one." in told.err
    assert "no prediction (counted as empty), 1 of 4 cases: d" in told.out
    found = cells(folders / "out")
    assert len(found) == 4 * 3
    assert found["b", "1"] | {"case": "", "label": ""} == {
        "case": "", "label": "", "class": "1", "state": "measured", "found": "both", "Dice": "1", "IoU": "1", "Precision": "1",
        "Recall": "1", "Specificity": "1", "HD95": "0", "HD": "0", "ASSD": "0", "NSD": "1", "truth_mm3": "1296",
        "prediction_mm3": "1296", "truth_ml": "1.296", "prediction_ml": "1.296", "volume_difference": "0",
    }  # fmt: skip
    assert float(found["a", "1"]["Dice"]) == pytest.approx(5 / 6)
    assert float(found["a", "1"]["HD"]) == 1.0
    assert (found["c", "2"]["found"], found["c", "3"]["found"]) == ("truth only", "prediction only")
    for key in (("c", "2"), ("c", "3"), ("d", "1"), ("d", "2")):
        assert (found[key]["Dice"], found[key]["NSD"]) == ("0", "0")
        assert float(found[key]["HD95"]) == pytest.approx(DIAGONAL)
    assert (found["c", "2"]["volume_difference"], found["c", "3"]["volume_difference"]) == ("-1", "")
    assert found["d", "1"]["state"] == "no prediction"
    assert (found["b", "3"]["found"], found["b", "3"]["Dice"], found["b", "3"]["truth_mm3"]) == ("neither", "", "0")


def test_summary_follows_from_the_cases(folders):
    evaluate(folders)
    found = summary(folders / "out")
    dice = [float(cells(folders / "out", "Dice")[case, "1"]) for case in "abcd"]
    row = found["Dice", "1"]
    assert (row["cases"], row["counted"], row["undefined"], row["failed"], row["no_prediction"]) == (4, 4, 0, 0, 1)
    assert row["mean"] == pytest.approx(np.mean(dice))
    assert row["sd"] == pytest.approx(np.std(dice, ddof=1))
    quartiles = [row[key] for key in ("minimum", "first_quartile", "median", "third_quartile", "maximum")]
    assert quartiles == pytest.approx(np.quantile(dice, [0, 0.25, 0.5, 0.75, 1]))
    assert row["low"] <= row["mean"] <= row["high"]
    assert (found["Dice", "3"]["counted"], found["Dice", "3"]["undefined"], found["Dice", "3"]["mean"]) == (1, 3, 0.0)
    means = [found["Dice", name]["mean"] for name in "123"]
    assert found["Dice", "all classes"]["mean"] == pytest.approx(np.mean(means))
    assert found["prediction_ml", "2"]["mean"] == pytest.approx(found["truth_ml", "2"]["mean"] / 2)


def test_missing_predictions_may_be_allowed_and_count_all_the_same(folders, capsys):
    evaluate(folders, out="strict")
    assert evaluate(folders, "--allow-missing") == 0
    assert "d: has no prediction" in capsys.readouterr().err
    assert cells(folders / "out") == cells(folders / "strict")
    assert evaluate(folders, "--allow-missing") == 0
    write(folders / "pred" / "d.mha", labels())
    assert evaluate(folders, "--allow-missing") == 0
    assert cells(folders / "out", "Dice")["d", "1"] == "1"


def test_a_missing_prediction_fails_again_until_it_is_there(folders):
    assert evaluate(folders) == 1
    assert evaluate(folders) == 1
    write(folders / "pred" / "d.mha", labels())
    assert evaluate(folders) == 0
    assert ledger(folders / "out")["d"]["state"] == "done"


def test_a_prediction_at_another_place_is_never_taken_for_right(folders, capsys):
    write(folders / "pred" / "b.nrrd", labels(), origin=(25.0, -7.0, 11.0))
    assert evaluate(folders) == 1
    said = "prediction has origin (25, -7, 11), the truth has (5, -7, 11) (mm, (X, Y, Z)). Voxels of different places"
    assert said in capsys.readouterr().err
    row = cells(folders / "out")["b", "1"]
    assert (row["state"], row["found"], row["Dice"], row["truth_mm3"]) == ("failed", "unknown", "", "")
    row = summary(folders / "out")["Dice", "1"]
    assert (row["cases"], row["counted"], row["undefined"], row["failed"]) == (4, 3, 0, 1)


def test_resampled_by_physical_position(folders, capsys):
    """A prediction two slices further, on a grid that begins two slices later: only its position in space shows it."""
    origin = np.array([5.0, -7.0, 11.0]) + 2 * 3.0 * np.reshape(OBLIQUE, (3, 3))[:, 2]
    write(folders / "pred" / "b.nrrd", np.roll(labels(), 2, 0)[2:], origin=tuple(origin))
    assert evaluate(folders, "--grid", "resample", "--allow-missing") == 0
    assert "b: prediction has size (10, 14, 16), the truth has (12, 14, 16)" in capsys.readouterr().err
    assert float(cells(folders / "out", "Dice")["b", "1"]) == pytest.approx(2 / 3)
    note = ledger(folders / "out")["b"]["notes"][0]
    assert "resampled by physical position (nearest voxel). Its foreground was 1.440 ml and is 1.440 ml" in note


def test_a_grid_that_nearly_agrees_is_used_and_noted(folders, capsys):
    write(folders / "pred" / "b.nrrd", labels(), spacing=(3.015, 2.0, 1.0))
    assert evaluate(folders, "--allow-missing") == 0
    assert "b: prediction has spacing (3.015, 2, 1), the truth has (3, 2, 1)" in capsys.readouterr().err
    assert cells(folders / "out", "Dice")["b", "1"] == "1"


@pytest.mark.parametrize(
    "array, text",
    [
        (np.where(labels() == 1, -1, labels().astype(np.int16)), "holds label -1; labels are 0 .background. and up"),
        (labels("float32") / 2, "the label map holds 0.5, which is no label"),
        (np.where(labels() == 1, np.nan, labels()).astype(np.float32), "the label map holds NaN or infinite values"),
        (np.stack([labels(), labels()]), "has 2 values per voxel; a label map has one"),
        (labels()[:-5], r"prediction has size \(7, 14, 16\), the truth has \(12, 14, 16\) \(Z, Y, X\)"),
    ],
)
def test_damage_is_named_and_the_others_go_on(folders, capsys, array, text):
    write(folders / "pred" / "b.nrrd", array)
    assert evaluate(folders, "--allow-missing") == 1
    assert ledger(folders / "out")["b"]["state"] == "failed"
    assert re.search(rf"b: .*b.nrrd: {text}", capsys.readouterr().err)
    assert cells(folders / "out", "Dice")["c", "1"] == "1"


def test_a_truncated_file_and_a_picture_are_named(folders, capsys):
    path = folders / "pred" / "a.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    sitk.WriteImage(sitk.GetImageFromArray(labels()[0]), str(folders / "pred" / "c.mha"))
    assert evaluate(folders, "--allow-missing") == 1
    told = capsys.readouterr().err
    assert "FAILED  a: " in told
    assert "c.mha: is 2-dimensional" in told


def test_labels_of_any_number_and_whole_floats(folders):
    write(folders / "gt" / "b.mha", np.where(labels() == 2, 300, labels("float32")))
    write(folders / "pred" / "b.nrrd", np.where(labels() == 2, 300, labels("int32")))
    evaluate(folders, "--metrics", "Dice", "HD95")
    assert cells(folders / "out", "Dice")["b", "300"] == "1"
    assert cells(folders / "out", "HD95")["b", "300"] == "0"


def test_ignored_voxels_count_nowhere(folders):
    truth = labels("int16")
    truth[2:8, 3:9, 4] = -1
    write(folders / "gt" / "a.mha", truth)
    assert evaluate(folders, "--ignore-label", "-1", "--allow-missing") == 0
    row = cells(folders / "out")["a", "1"]
    assert float(row["Dice"]) == pytest.approx(2 * 30 / (30 + 36))
    assert float(row["truth_mm3"]) == 30 * 6 * 6.0


def test_chosen_classes_names_and_tolerances(folders):
    words = ("--classes", "liver", "--names", "1=liver", "2=spleen", "--metrics", "Dice", "NSD")
    evaluate(folders, *words, "--tolerance", "0", out="tight")
    evaluate(folders, *words, "--tolerance", "0", "liver=1", out="wide")
    assert {name for _, name in cells(folders / "tight")} == {"liver"}
    assert float(cells(folders / "tight", "NSD")["a", "liver"]) < 1
    assert float(cells(folders / "wide", "NSD")["a", "liver"]) == 1
    evaluate(folders, "--names", "1=liver", "2=spleen", out="all")
    assert {name for _, name in cells(folders / "all")} == {"liver", "spleen", "3"}


def test_datasets_and_their_names(folders):
    for name in "abcd":
        write(folders / "set" / "image" / f"{name}.mha", labels())
        write(folders / "set" / "label" / f"{name}.mha", labels())
    (folders / "set" / "meta.json").write_text('{"classes": ["background", "liver", "tumour"]}')
    assert evaluate(folders, truth="set", prediction="set") == 0
    assert {name for _, name in cells(folders / "out")} == {"liver", "tumour"}


def test_subfolders_are_kept_apart(folders):
    for side in ("gt", "pred"):
        write(folders / side / "site" / "a.mha", labels())
    assert evaluate(folders, "-r", "--allow-missing") == 0
    found = cells(folders / "out", "Dice")
    assert (found["site/a", "1"], found["a", "1"]) == ("1", "0.833333333")


def test_two_single_files_need_no_common_name(folders):
    assert evaluate(folders, truth="gt/a.mha", prediction="pred/b.nrrd") == 0
    assert cells(folders / "out", "Dice") == {("a", "1"): "1", ("a", "2"): "1"}


def test_predictions_without_a_truth_are_named(folders, capsys):
    write(folders / "pred" / "z.mha", labels())
    evaluate(folders)
    assert "predictions without a truth (not looked at), 1: z" in capsys.readouterr().out
    assert json.loads((folders / "out" / "evaluation.json").read_text())["predictions_without_truth"] == ["z"]


def test_formats_say_the_same(folders, capsys):
    openpyxl = pytest.importorskip("openpyxl")
    evaluate(folders, *(word for name in ("csv", "excel", "html") for word in ("--format", name)))
    out = folders / "out"
    book = openpyxl.load_workbook(out / "evaluation.xlsx")
    assert book.sheetnames == ["summary", "cases"]
    with open(out / "evaluation_cases.csv", newline="") as stream:
        rows = list(csv.reader(stream))
    for found, expected in zip(book["cases"].iter_rows(values_only=True), rows, strict=True):
        for one, other in zip(found, expected, strict=True):
            assert (one is None and other == "") or str(one) == other or float(one) == pytest.approx(float(other))
    with zipfile.ZipFile(out / "evaluation.xlsx") as archive:
        assert {info.date_time for info in archive.infolist()} == {(2000, 1, 1, 0, 0, 0)}
        times = re.findall(rb">(\d{4}-[^<]*)<", archive.read("docProps/core.xml"))
    assert times == [b"2000-01-01T00:00:00Z"] * 2, "the time of writing would make equal tables differ"
    page = (out / "evaluation.html").read_text()
    HTMLParser().feed(page)
    assert page.count("<svg xmlns") == 9
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in page
    assert "has no prediction; counted as an empty one." in page
    assert "<script" not in page


def test_names_are_texts_and_not_formulas_or_markup(folders):
    openpyxl = pytest.importorskip("openpyxl")
    for side in ("gt", "pred"):
        write(folders / side / "=1+1.mha", labels())
        write(folders / side / "<b>é&.mha", labels())
    evaluate(folders, "--format", "excel", "--format", "html")
    sheet = openpyxl.load_workbook(folders / "out" / "evaluation.xlsx")["cases"]
    assert {cell.data_type for cell in sheet["A"]} == {"s"}
    assert "=1+1" in {cell.value for cell in sheet["A"]}
    page = (folders / "out" / "evaluation.html").read_text()
    assert "&lt;b&gt;é&amp;" in page
    assert "<b>é" not in page


def test_excel_needs_openpyxl(folders, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert evaluate(folders, "--format", "excel") == 1
    said = "openpyxl is needed for --format excel and is not installed. Install it with: pip install 'itkit[excel]'"
    assert said in capsys.readouterr().err
    assert not (folders / "out").exists()


def test_tables_do_not_depend_on_workers_or_reruns(folders):
    formats = ("--format", "csv", "--format", "html", "--format", "excel", "--allow-missing")
    assert evaluate(folders, *formats, out="one") == 0
    assert evaluate(folders, *formats, "--workers", "2", out="two") == 0
    assert evaluate(folders, "--allow-missing", out="three") == 0
    (folders / "three" / "evaluation_cases.csv").unlink()
    write(folders / "gt" / "b.mha", labels()), write(folders / "pred" / "b.nrrd", labels("int16"))
    assert evaluate(folders, *formats, out="three") == 0
    names = [path.name for path in (folders / "one").iterdir() if path.name.startswith("evaluation")]
    assert len(names) == 5
    for name in names:
        assert (folders / "two" / name).read_bytes() == (folders / "one" / name).read_bytes(), name
        assert (folders / "three" / name).read_bytes() == (folders / "one" / name).read_bytes(), name


def test_only_what_is_stale_is_measured_again(folders, capsys):
    evaluate(folders, "--allow-missing", "--json")
    capsys.readouterr()
    evaluate(folders, "--allow-missing", "--json", "--format", "html", "--seed", "3")
    assert json.loads(capsys.readouterr().out)["done"] == [], "how it is told decides about no number"
    write(folders / "pred" / "a.nii.gz", labels())
    evaluate(folders, "--allow-missing", "--json")
    assert json.loads(capsys.readouterr().out)["done"] == ["a"]
    evaluate(folders, "--allow-missing", "--json", "--tolerance", "2")
    told = json.loads(capsys.readouterr().out)
    assert told["done"] == ["a", "b", "c", "d"]
    assert set(told["parameters"]) >= {"measures", "tolerance_mm", "grid"}


def test_tables_in_other_formats_are_not_left_behind(folders):
    evaluate(folders, "--format", "html")
    before = (folders / "out" / "evaluation.html").read_text()
    write(folders / "pred" / "a.nii.gz", labels())
    evaluate(folders)
    assert (folders / "out" / "evaluation_cases.csv").is_file()
    assert (folders / "out" / "evaluation.html").read_text() != before


@pytest.mark.parametrize(
    "words, code, text",
    [
        (("--metrics", "Dise"), 2, "unknown metric 'Dise'.* Did you mean Dice"),
        (("--classes", "liver"), 2, "no names are known"),
        (("--tolerance", "-3"), 2, "--tolerance '-3' is neither"),
        (("--names", "nothing.json"), 1, "nothing.json: cannot be read"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_written(folders, capsys, words, code, text):
    assert evaluate(folders, *words) == code
    assert re.search(text, capsys.readouterr().err)
    assert not (folders / "out").exists()


@pytest.mark.parametrize("words", [("--format", "pdf"), ("--grid", "guess"), ("--seed", "-1")])
def test_words_that_no_choice_holds(folders, words):
    with pytest.raises(SystemExit) as stop:
        evaluate(folders, *words)
    assert stop.value.code == 2


def test_sources_that_do_not_fit_are_named(folders, capsys):
    (folders / "empty").mkdir()
    write(folders / "other" / "x.mha", labels())
    for prediction, text in (
        ("empty", "empty: holds no volume"),
        ("nowhere", "nowhere: no such folder"),
        ("other", "no prediction that has the name of a truth. Truths: a, b, c and 1 more; predictions: x."),
    ):
        assert evaluate(folders, prediction=prediction) == 1
        assert text in capsys.readouterr().err
    assert evaluate(folders, out="pred/out") == 2
    assert "nothing is ever written into a source" in capsys.readouterr().err
    write(folders / "pred" / "a.mha", labels())
    assert evaluate(folders) == 1
    assert "a.nii.gz: and a.mha are one case, a; keep one of them." in capsys.readouterr().err


def test_a_foreign_table_is_never_replaced(folders, capsys):
    (folders / "out").mkdir()
    (folders / "out" / "evaluation.json").write_text("mine")
    assert evaluate(folders) == 1
    assert "evaluation.json: exists and is not of an earlier run here" in capsys.readouterr().err
    assert (folders / "out" / "evaluation.json").read_text() == "mine"


def test_overlap_alone_loads_no_scipy_and_no_simpleitk(folders):
    code = (
        "import sys; from itkit.cli.main import run_tool\n"
        f"run_tool('itk_evaluate', [{str(folders / 'gt')!r}, {str(folders / 'pred')!r}, {str(folders / 'out')!r}])\n"
        "print([name for name in ('scipy', 'pandas', 'torch', 'SimpleITK', 'openpyxl', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_real_labels_against_themselves(shared_data, tmp_path):
    source = shared_data("Task04_Hippocampus") / "labelsTr"
    for side in ("gt", "pred"):
        (tmp_path / side).mkdir()
        for path in sorted(source.glob("[!.]*.nii.gz"))[:3]:
            (tmp_path / side / path.name).write_bytes(path.read_bytes())
    assert evaluate(tmp_path) == 0
    found = summary(tmp_path / "out")
    assert [found[name, "all classes"]["mean"] for name in ("Dice", "NSD", "HD")] == [1, 1, 0]
