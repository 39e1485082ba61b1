"""Words of a user become measures, labels and tolerances, or a message that says what there is."""

from __future__ import annotations

import json

import pytest

from itkit.errors import DataError, UsageError
from itkit.measures.case import MEASURES
from itkit.process.evaluation.classes import known_names, parse_classes, parse_measures, parse_tolerance

NAMES = {1: "liver", 3: "spleen"}


def test_measures_and_groups():
    assert parse_measures(None) == MEASURES
    assert parse_measures(["dice", "HD95", "DICE"]) == ("Dice", "HD95")
    assert parse_measures(["overlap", "NSD"]) == ("Dice", "IoU", "Precision", "Recall", "Specificity", "NSD")
    assert set(parse_measures(["surface", "overlap"])) == set(parse_measures(["all"])) == set(MEASURES)
    with pytest.raises(
        UsageError, match=r"unknown metric 'HD59'; there are Dice, .* all, overlap.* Did you mean HD95\?"
    ):
        parse_measures(["HD59"])


def test_classes_by_name_and_number():
    assert parse_classes(None, NAMES) is None
    assert parse_classes(["spleen", "1", "1"], NAMES) == (1, 3)
    assert parse_classes(["7", "300"], {}) == (7, 300)


@pytest.mark.parametrize(
    "word, names, text",
    [
        ("livre", NAMES, r"no class is called 'livre'; there are 1 liver, 3 spleen. Did you mean liver\?"),
        ("2", NAMES, "no class is called '2'"),
        ("0", NAMES, "0 is the background"),
        ("liver", {}, "'liver' is no label above 0, and no names are known. .* --names"),
        ("-1", {}, "'-1' is no label above 0"),
    ],
)
def test_unknown_classes_are_refused(word, names, text):
    with pytest.raises(UsageError, match=text):
        parse_classes([word], names)


def test_tolerances_for_all_and_for_one():
    assert parse_tolerance(None, NAMES) == (1.0, {})
    assert parse_tolerance(["2", "liver=2.5", "3=0"], NAMES) == (2.0, {1: 2.5, 3: 0.0})
    for word in ("x", "-1", "nan", "inf", "liver=", "liver=-2"):
        with pytest.raises(UsageError, match="is neither a number of mm .0 or more. nor CLASS=MM"):
            parse_tolerance([word], NAMES)
    with pytest.raises(UsageError, match="--tolerance: no class is called 'kidney'"):
        parse_tolerance(["kidney=1"], NAMES)


@pytest.mark.parametrize(
    "document",
    [
        {"classes": ["background", "liver", "tumour"]},
        {"labels": {"background": 0, "liver": 1, "tumour": 2}},
        {"labels": {"0": "background", "1": "liver", "2": "tumour"}, "name": "Liver"},
        {"1": "liver", "2": "tumour"},
        ["background", "liver", "tumour"],
    ],
)
def test_names_from_every_known_document(tmp_path, document):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(document))
    assert known_names([str(path)], tmp_path) == {1: "liver", 2: "tumour"}
    assert known_names([str(path), "2=lesion", "5=a = b"], tmp_path) == {1: "liver", 2: "lesion", 5: "a = b"}


def test_names_of_the_dataset_are_found_beside_its_labels(tmp_path):
    (tmp_path / "label").mkdir()
    assert known_names(None, tmp_path) == {}
    (tmp_path / "meta.json").write_text('{"name": "x", "classes": ["background", "liver"]}')
    assert known_names(None, tmp_path) == known_names(None, tmp_path / "label") == {1: "liver"}
    (tmp_path / "other").mkdir()
    assert known_names(None, tmp_path / "other") == {}
    (tmp_path / "meta.json").write_text('{"name": "x"}')
    assert known_names(None, tmp_path) == {}


def test_names_that_say_nothing_are_refused(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(DataError, match=r"x.json: cannot be read"):
        known_names([str(path)], tmp_path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"x.json: cannot be read"):
        known_names([str(path)], tmp_path)
    path.write_text('{"classes": 3}')
    with pytest.raises(DataError, match="holds no names of classes"):
        known_names([str(path)], tmp_path)
    with pytest.raises(UsageError, match="'liver' is neither LABEL=NAME .* nor a JSON file"):
        known_names(["liver"], tmp_path)
    with pytest.raises(UsageError, match="two classes are called 'liver'"):
        known_names(["1=liver", "2=liver"], tmp_path)
