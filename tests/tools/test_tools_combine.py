"""`itk_combine`: the first rule wins, grids must agree, a missing case never goes unnoticed."""

import json

import numpy as np
import pytest
from tool_data import make_dataset, make_label

from itkit.errors import UsageError
from itkit.io.volumes import Volume, read_volume, write_volume
from itkit.process.combine import Rule, parse_rule


@pytest.fixture
def two(tmp_path):
    for name, seed in (("a", 0), ("b", 10)):
        for number in range(2):
            label = make_label((0, 1, 2, 300), seed=seed + number, dtype="int16")
            write_volume(tmp_path / name / f"case_{number}.mha", label)
    return tmp_path


def test_the_first_rule_that_fits_wins(tool, two):
    words = ["--source", f"a={two / 'a'}", f"b={two / 'b'}", "--map", "a:1,300->4", "b:*->3", "a:2=5", two / "out"]
    assert tool("itk_combine", *words)[0] == 0
    for number in range(2):
        a, b = (read_volume(two / name / f"case_{number}.mha").array for name in "ab")
        result = read_volume(two / "out" / f"case_{number}.mha")
        expected = np.zeros(a.shape, int)  # written from the last rule to the first, so that the first one stays
        for fits, target in ((a == 2, 5), (b != 0, 3), (np.isin(a, (1, 300)), 4)):
            expected[fits] = target
        np.testing.assert_array_equal(result.array, expected)
        assert result.array.dtype == np.uint8
        assert result.geometry == read_volume(two / "a" / f"case_{number}.mha").geometry
    meta = json.loads((two / "out/combine_meta.json").read_text())
    assert sum(meta["case_0"]["voxels"].values()) == 480
    configs = json.loads((two / "out/combine_configs.json").read_text())
    assert configs["rules"] == ["a:1,300->4", "b:*->3", "a:2=5"]


def test_the_order_of_rules_decides_not_that_of_sources(tool, two):
    base = ["--source", f"a={two / 'a'}", "--source", f"b={two / 'b'}"]
    assert tool("itk_combine", *base, "--map", "b:*->1", "--map", "a:*->2", two / "out")[0] == 0
    b = read_volume(two / "b/case_0.mha").array
    assert (read_volume(two / "out/case_0.mha").array[b != 0] == 1).all()


def test_words_of_other_suites_mean_the_same(tool, two):
    words = ["--map", "a:1->1", "--map", "b:1->2"]
    assert tool("itk_combine", "--source", f"a={two / 'a'}", f"b={two / 'b'}", *words, two / "long")[0] == 0
    assert tool("itk_combine", "-i", f"a={two / 'a'}", "-i", f"b={two / 'b'}", *words, two / "short")[0] == 0
    for path in (two / "long").glob("*.mha"):
        assert (two / "short" / path.name).read_bytes() == path.read_bytes()


def test_one_folder_may_be_two_sources(tool, two):
    words = ["--source", f"a={two / 'a'}", f"again={two / 'a'}", "--map", "again:1->2", "a:*->9", two / "out"]
    assert tool("itk_combine", *words)[0] == 0
    a = read_volume(two / "a/case_0.mha").array
    np.testing.assert_array_equal(read_volume(two / "out/case_0.mha").array, np.select([a == 1, a != 0], [2, 9], 0))


def test_a_missing_case_fails_is_skipped_or_is_background(tool, two):
    (two / "b/case_1.mha").unlink()
    words = ["--source", f"a={two / 'a'}", f"b={two / 'b'}", "--map", "b:1->1", "a:1->2"]
    code, _, said = tool("itk_combine", *words, two / "fail")
    assert code == 1
    assert "case_1.mha: is not in b; see --missing" in said
    assert (two / "fail/case_0.mha").exists()
    assert not (two / "fail/case_1.mha").exists()
    code, _, said = tool("itk_combine", *words, "--missing", "skip", two / "skip")
    assert (code, "1 done" in said) == (0, True)
    code, _, said = tool("itk_combine", *words, "--missing", "background", two / "empty")
    assert code == 0
    assert "note    case_1: not in b, treated as background there" in said
    a = read_volume(two / "a/case_1.mha").array
    np.testing.assert_array_equal(read_volume(two / "empty/case_1.mha").array, 2 * (a == 1))


def test_another_grid_is_refused(tool, two):
    label = read_volume(two / "b/case_0.mha")
    write_volume(two / "b/case_0.mha", Volume(label.array, label.spacing_zyx, (-12.5, 60.25, 7.0), label.direction_xyz))
    words = ["--source", f"a={two / 'a'}", f"b={two / 'b'}", "--map", "b:1->1", "a:1->2", two / "out"]
    code, _, said = tool("itk_combine", *words)
    assert code == 1
    assert "b has origin (-12.5, 60.25, 7), a has (-12.5, 40.25, 7)" in said
    assert "1 done, 0 up to date, 1 failed" in said


def test_datasets_and_formats_mix(tool, tmp_path):
    make_dataset(tmp_path / "a", 1)
    make_dataset(tmp_path / "b", 1, suffix=".nrrd")
    words = ["--source", f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", "--map", "a:1->1", "b:2->2", tmp_path / "out"]
    assert tool("itk_combine", *words)[0] == 0
    label = read_volume(tmp_path / "a/label/case_0.mha").array
    np.testing.assert_array_equal(read_volume(tmp_path / "out/case_0.mha").array, np.where(label < 3, label, 0))


def test_types_hold_their_targets(tool, two):
    words = ["--source", f"a={two / 'a'}", "--map"]
    assert tool("itk_combine", *words, "a:1->300", two / "big")[0] == 0
    assert read_volume(two / "big/case_0.mha").array.dtype == np.uint16
    assert tool("itk_combine", *words, "a:1->-1", two / "negative")[0] == 0
    assert read_volume(two / "negative/case_0.mha").array.dtype == np.int16
    code, _, said = tool("itk_combine", *words, "a:1->300", "--dtype", "uint8", two / "small")
    assert code == 2
    assert "the type uint8 cannot hold the targets [0, 300]" in said


@pytest.mark.parametrize(
    "word, text",
    [
        ("c:1->2", "names the source 'c', which is not given"),
        ("organ:1->2", "names the source 'organ', which is not given. Did you mean organs?"),
        ("a:1", "is no rule; write NAME:a,b->t"),
        ("a:x->2", "'x' is neither a whole number, nor a range such as 3-7, nor *"),
        ("a:7-3->2", "the range '7-3' is empty"),
    ],
)
def test_rules_that_say_nothing(word, text):
    with pytest.raises(UsageError, match=text.replace("*", r"\*")):
        parse_rule(word, ["a", "organs"])


def test_rules_are_read():
    assert parse_rule("a:3-5,9->2", ["a"]) == Rule("a", (3, 4, 5, 9), 2)
    assert parse_rule("a:-1 -> 0", ["a"]) == Rule("a", (-1,), 0)
    assert parse_rule("a:*=7", ["a"]) == Rule("a", None, 7)


def test_words_that_make_no_sense(tool, two):
    assert tool("itk_combine", "--source", "a", "--map", "a:1=1", two / "o")[0] == 2
    code, _, said = tool("itk_combine", "--source", f"a={two / 'a'}", f"a={two / 'b'}", "--map", "a:1=1", two / "o")
    assert (code, "the source 'a' is given twice" in said) == (2, True)
    code, _, said = tool("itk_combine", "--source", f"a={two / 'a'}", "--map", "a:1=1", two / "a" / "inside")
    assert (code, "nothing is ever written into a source" in said) == (2, True)
    code, _, said = tool("itk_combine", "--source", f"a={two / 'a'}", "--map", "a:1=1")
    assert (code, "the last word must be the destination" in said) == (2, True)
