"""`itk_evaluate --compare`: the same cases, the same truths, Wilcoxon and Holm, and everything left out is named."""

from __future__ import annotations

import csv
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from itkit.cli.main import run_tool
from itkit.errors import DataError, UsageError
from itkit.io.volumes import Volume, write_volume
from itkit.measures.statistics import adjust_holm, median_interval, signed_rank_test
from itkit.process.evaluation.methods import compare_methods, find_results, load_method

CASES = [f"case_{number}" for number in range(8)]


def truth(number):
    array = np.zeros((10, 12, 14), np.uint8)
    array[2:8, 3:9, 4:10], array[8:10, 9:12, 2:6] = 1, 2
    array[0, 0, number] = 1
    return array


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Evaluations a (one voxel off), b (two off, and one case without prediction), c (as a, half of the cases better)."""
    root = tmp_path_factory.mktemp("methods")
    for number, case in enumerate(CASES):
        write_volume(root / "gt" / f"{case}.mha", Volume(truth(number)))
        for name, shift in (("a", 1), ("b", 2), ("c", number % 2)):
            if (name, case) != ("b", "case_3"):
                write_volume(root / "pred" / name / f"{case}.mha", Volume(np.roll(truth(number), shift, 1)))
    for name in "abc":
        words = [str(root / "gt"), str(root / "pred" / name), str(root / name), "--metrics", "Dice", "HD95", "NSD"]
        run_tool("itk_evaluate", words)
    return root


def compare(results, out, *words):
    return run_tool("itk_evaluate", ["--compare", *map(str, results), "-o", str(out), *words])


def rows_of(out):
    document = json.loads((out / "comparison.json").read_text())
    return {(row["measure"], row["class"], row["first"], row["second"]): row for row in document["pairs"]}


def means(folder, measure="Dice"):
    cases = json.loads((folder / "evaluation.json").read_text())["cases"]
    return {case["case"]: np.mean([values[measure] for values in case["classes"].values()]) for case in cases}


def test_pairs_by_hand(results, tmp_path, capsys):
    assert compare([results / name for name in "abc"], tmp_path / "out", "--metrics", "dice") == 0
    found = rows_of(tmp_path / "out")
    assert list(found) == [("Dice", "all classes", *pair) for pair in (("a", "b"), ("a", "c"), ("b", "c"))]
    changes = [
        np.array([means(results / second)[case] - means(results / first)[case] for case in CASES])
        for *_, first, second in found
    ]
    expected = [signed_rank_test(change) for change in changes]
    for row, change, p, adjusted in zip(found.values(), changes, expected, adjust_holm(expected), strict=True):
        assert (row["cases"], row["undefined"]) == (8, 0)
        assert row["difference"] == pytest.approx(change.mean())
        assert row["second_mean"] - row["first_mean"] == pytest.approx(change.mean())
        assert row["median_difference"] == pytest.approx(np.median(change))
        assert [row["median_low"], row["median_high"]] == pytest.approx(median_interval(change))
        assert (row["p"], row["p_holm"]) == (pytest.approx(p), pytest.approx(adjusted))
        assert row["low"] <= row["difference"] <= row["high"]
    a_b, a_c, b_c = found.values()
    assert a_b["p"] == pytest.approx(2 / 2**8)
    assert (a_b["first_better"], a_b["equal"], a_b["second_better"], a_b["better"]) == (8, 0, 0, "a")
    assert (a_c["first_better"], a_c["equal"], a_c["second_better"], a_c["better"]) == (0, 4, 4, "")
    assert b_c["better"] == "c"
    told = capsys.readouterr().out
    assert "b: 1 cases without prediction, counted as empty: case_3" in told
    assert re.search(r"Dice +all classes +a +b +8 ", told)


def test_small_distances_are_the_better_ones(results, tmp_path):
    compare([results / "a", results / "b"], tmp_path / "out", "--metrics", "HD95")
    (row,) = rows_of(tmp_path / "out").values()
    assert row["difference"] > 0
    assert (row["first_better"], row["better"]) == (8, "a")


def test_classes_have_a_family_of_tests_of_their_own(results, tmp_path):
    compare([results / name for name in "abc"], tmp_path / "out", "--metrics", "Dice", "--per-class")
    rows = list(rows_of(tmp_path / "out").values())
    assert [row["class"] for row in rows] == ["all classes"] * 3 + ["1"] * 3 + ["2"] * 3
    for family in (rows[:3], rows[3:]):
        assert [row["p_holm"] for row in family] == pytest.approx(adjust_holm([row["p"] for row in family]))


def test_every_format_and_a_plot_of_every_measure(results, tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    out = tmp_path / "out"
    formats = [word for name in ("csv", "excel", "html", "json") for word in ("--format", name)]
    assert compare([f"new={results / 'a'}", f"old={results / 'b'}"], out, *formats) == 0
    for name in ("Dice", "HD95", "NSD"):
        tree = ElementTree.parse(out / f"comparison_{name}.svg")
        titles = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}title")]
        assert sum(title.startswith("case_3: ") for title in titles) == 3, "in both methods, and the difference"
        assert "var(" not in "".join(element.get("fill", "") for element in tree.iter())
    with open(out / "comparison_pairs.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["measure"], row["first"], row["second"]) for row in rows] == [
        (m, "new", "old") for m in ("Dice", "HD95", "NSD")
    ]
    assert openpyxl.load_workbook(out / "comparison.xlsx")["pairs"].max_row == 4
    page = (out / "comparison.html").read_text()
    assert page.count("<svg xmlns") == 6
    assert "new · old" in page


def test_a_second_run_does_nothing_and_a_new_result_everything(results, tmp_path, capsys):
    import shutil

    for name in "ab":
        shutil.copytree(results / name, tmp_path / name)
    pair = [tmp_path / "a", tmp_path / "b"]
    assert compare(pair, tmp_path / "out") == 0
    first = (tmp_path / "out" / "comparison.json").read_bytes()
    assert compare(pair, tmp_path / "out") == 0
    told = capsys.readouterr()
    assert "0 done, 1 up to date" in told.err
    assert told.out.count("Dice") == 2, "the table is shown all the same"
    shutil.copy(results / "c" / "evaluation.json", tmp_path / "b" / "evaluation.json")
    assert compare(pair, tmp_path / "out") == 0
    assert (tmp_path / "out" / "comparison.json").read_bytes() != first


def test_cases_that_one_method_lacks_are_left_out_and_named(results, tmp_path, capsys):
    document = json.loads((results / "c" / "evaluation.json").read_text())
    document["cases"] = document["cases"][:6]
    document["cases"][0] |= {"state": "failed", "reason": "unreadable"}
    document["cases"][1]["classes"]["300"] = {"Dice": 0.0}
    (tmp_path / "c.json").write_text(json.dumps(document))
    assert compare([results / "a", f"c={tmp_path / 'c.json'}"], tmp_path / "out", "--metrics", "Dice") == 0
    (row,) = rows_of(tmp_path / "out").values()
    assert row["cases"] == 5
    told = capsys.readouterr().out
    assert "c: 1 cases failed, not compared: case_0" in told
    assert "c: 2 cases not among its results, not compared: case_6, case_7" in told
    assert "c: 1 classes that another method does not have, not compared: 300" in told


def test_tables_of_itk_evaluate_and_of_mmrun_are_read_alike(results, tmp_path):
    wide = tmp_path / "run" / "cases.csv"
    wide.parent.mkdir()
    document = json.loads((results / "a" / "evaluation.json").read_text())
    with open(wide, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case_id", "Dice/1", "Dice/2", "HD95/1", "HD95/2"])
        for case in document["cases"]:
            found = case["classes"]
            writer.writerow([case["case"], *(found[name][measure] for measure in ("Dice", "HD95") for name in "12")])
    methods = [
        load_method("json", results / "a" / "evaluation.json"),
        load_method("long", results / "a" / "evaluation_cases.csv"),
        load_method("wide", find_results([str(results / "b"), str(wide.parent)])["run"]),
    ]
    for measure in ("Dice", "HD95"):
        arrays = [method.array(CASES, ["1", "2"], measure) for method in methods]
        np.testing.assert_allclose(arrays[1], arrays[0], rtol=1e-8)
        np.testing.assert_array_equal(arrays[2], arrays[0])
    assert methods[1].states == methods[0].states
    assert [row["equal"] for row in compare_methods(methods, ["Dice"]).rows][1] == 8, "JSON and wide table"


def test_methods_are_called_as_their_folders_with_as_much_path_as_needed(results, tmp_path):
    for name in ("one/eval", "two/eval"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "evaluation.json").write_text("{}")
    words = [str(tmp_path / "one" / "eval"), str(tmp_path / "two" / "eval"), f"x={results / 'a'}"]
    assert list(find_results(words)) == ["one/eval", "two/eval", "x"]
    with pytest.raises(UsageError, match="two methods are called 'x'"):
        find_results([f"x={results / 'a'}", f"x={results / 'b'}"])


def test_other_truths_are_refused(results, tmp_path):
    document = json.loads((results / "a" / "evaluation.json").read_text())
    document["cases"][2]["classes"]["1"]["truth_mm3"] += 1
    (tmp_path / "other.json").write_text(json.dumps(document))
    methods = [load_method("a", results / "a" / "evaluation.json"), load_method("o", tmp_path / "other.json")]
    with pytest.raises(
        DataError, match="case_2: the truth of 1 has .* of a and .* of o; methods are compared on the same"
    ):
        compare_methods(methods)


def test_other_tolerances_are_refused_for_what_they_change(results, tmp_path):
    document = json.loads((results / "b" / "evaluation.json").read_text())
    document["parameters"]["tolerance_mm"] = 3.0
    (tmp_path / "other.json").write_text(json.dumps(document))
    methods = [load_method("a", results / "a" / "evaluation.json"), load_method("o", tmp_path / "other.json")]
    with pytest.raises(UsageError, match="a was evaluated with tolerance mm 1.0, o with 3.0; .* or leave NSD out"):
        compare_methods(methods)
    assert len(compare_methods(methods, ["Dice"]).rows) == 1


def test_what_cannot_be_compared_is_named(results, tmp_path, capsys):
    a, b = results / "a", results / "b"
    assert compare([a], tmp_path / "out") == 2
    assert "needs the results of at least two methods" in capsys.readouterr().err
    assert compare([a, tmp_path], tmp_path / "out") == 1
    assert "holds no results (evaluation.json, evaluation_cases.csv, cases.csv). Run itk_evaluate first." in (
        capsys.readouterr().err
    )
    assert compare([a, tmp_path / "nowhere"], tmp_path / "out") == 1
    assert "nowhere: no such folder or file" in capsys.readouterr().err
    assert compare([a, b], a) == 2
    assert "holds the results of a; choose another folder with -o" in capsys.readouterr().err
    (tmp_path / "broken.json").write_text('{"cases": [{"case": 1}]}')
    assert compare([a, tmp_path / "broken.json"], tmp_path / "out") == 1
    assert "broken.json: holds no results of an evaluation" in capsys.readouterr().err
    assert compare([a, b], tmp_path / "out", "--metrics", "IoU") == 1
    assert "metric 'IoU' is not in the results of a, b; all of them have Dice, HD95, NSD" in capsys.readouterr().err
    assert compare([a, b], tmp_path / "out", "--metrics", "Dise") == 1
    assert "Did you mean Dice?" in capsys.readouterr().err


def test_methods_without_anything_in_common():
    from pathlib import Path

    from itkit.process.evaluation.methods import Method

    one = Method("one", Path("x"), ("Dice",), {"a": {"1": {"Dice": 1.0}}}, {"a": "measured"})
    other = Method("other", Path("x"), ("Dice",), {"b": {"1": {"Dice": 1.0}}}, {"b": "measured"})
    with pytest.raises(DataError, match="one and other have no measured case in common: a; b"):
        compare_methods([one, other])
    other = Method("other", Path("x"), ("Dice",), {"a": {"2": {"Dice": 1.0}}}, {"a": "measured"})
    with pytest.raises(DataError, match="one and other have no class in common"):
        compare_methods([one, other])
    other = Method("other", Path("x"), ("IoU",), {"a": {"1": {"IoU": 1.0}}}, {"a": "measured"})
    with pytest.raises(DataError, match="one and other have no measure in common"):
        compare_methods([one, other])


def test_a_case_that_only_one_method_defines_is_counted_as_undefined():
    from pathlib import Path

    from itkit.process.evaluation.methods import Method

    def method(name, values):
        cases = {f"c{n}": {"1": {"Dice": value}} for n, value in enumerate(values)}
        return Method(name, Path("x"), ("Dice",), cases, dict.fromkeys(cases, "measured"))

    (row,) = compare_methods([method("a", [0.5, None, 0.5, 0.7]), method("b", [0.6, 0.9, None, 0.9])]).rows
    assert (row["cases"], row["undefined"]) == (2, 2)
    assert (row["first_mean"], row["second_mean"]) == (pytest.approx(0.6), pytest.approx(0.75))
    assert row["median_difference"] == pytest.approx(0.15)


def test_usage_names_both_ways(capsys):
    for words in (["--compare", "--help"], ["--help"]):
        with pytest.raises(SystemExit) as stop:
            run_tool("itk_evaluate", words)
        assert stop.value.code == 0
    told = capsys.readouterr().out
    assert "usage: itk_evaluate --compare" in told
    assert "GT PRED OUT" in told
    with pytest.raises(SystemExit) as stop:
        run_tool("itk_evaluate", ["gt", "pred"])
    assert stop.value.code == 2
    assert "the following arguments are required: OUT" in capsys.readouterr().err
