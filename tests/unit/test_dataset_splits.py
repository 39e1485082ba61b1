"""Splits are stable, complete and without leakage; rules come in the stated order."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itkit.dataset.splits import choose_split, k_fold, patient_of, require_no_leakage, split_by_ratio
from itkit.errors import ConfigError, DataError

CASES = [f"p{person:02d}_{visit}" for person in range(12) for visit in range(1 + person % 3)]
PATIENT = r"^(p\d+)_"

case_lists = st.lists(st.integers(0, 400).map(lambda k: f"p{k // 4}_{k % 4}"), min_size=30, max_size=60, unique=True)


@settings(max_examples=40, deadline=None)
@given(case_lists, st.integers(0, 5), st.sampled_from([None, PATIENT]))
def test_ratio_covers_each_case_once_whatever_the_order(cases, seed, patient):
    split = split_by_ratio(cases, (0.6, 0.2, 0.2), seed=seed, patient=patient)
    assert sorted(split["train"] + split["val"] + split["test"]) == sorted(cases)
    assert all(split.values())
    shuffled = random.Random(seed).sample(cases, len(cases))
    assert split_by_ratio(shuffled, {"train": 3, "val": 1, "test": 1}, seed=seed, patient=patient) == split
    require_no_leakage(split, patient)


@settings(max_examples=40, deadline=None)
@given(case_lists, st.integers(2, 5), st.integers(0, 3), st.sampled_from([None, PATIENT]))
def test_folds_validate_each_case_once(cases, num_folds, seed, patient):
    folds = [k_fold(cases, num_folds, fold, seed=seed, patient=patient) for fold in range(num_folds)]
    assert sorted(case for fold in folds for case in fold["val"]) == sorted(cases)
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(cases)
        require_no_leakage(fold, patient)
    if patient is None:
        sizes = [len(fold["val"]) for fold in folds]
        assert max(sizes) - min(sizes) <= 1


def test_ratio_counts_and_seed():
    cases = [f"c{k:03d}" for k in range(100)]
    split = split_by_ratio(cases)
    assert {part: len(names) for part, names in split.items()} == {"train": 80, "val": 10, "test": 10}
    assert split_by_ratio(cases, seed=1) != split
    assert split_by_ratio(cases, (0.9, 0.1))["test"] == []
    assert split_by_ratio(cases[:3], (0.98, 0.01, 0.01))["val"], "no part is left empty"


def test_golden_split():
    # Another result means that published splits of users change.
    assert split_by_ratio(["a", "b", "c", "d", "e", "f"], (4, 1, 1), seed=0) == {
        "train": ["c", "d", "e", "f"], "val": ["a"], "test": ["b"],
    }  # fmt: skip


def test_leakage_is_named():
    with pytest.raises(DataError, match="case 'a' is in train and in test: remove it"):
        require_no_leakage({"train": ["a", "b"], "test": ["a"]})
    with pytest.raises(DataError, match=r"patient 'p01' is in train and in val \(cases 'p01_0' and 'p01_1'\)"):
        require_no_leakage({"train": ["p01_0"], "val": ["p01_1"]}, PATIENT)
    with pytest.raises(DataError, match="patient 'p01' is in train and in val"):
        choose_split(CASES, splits={"train": ["p01_0"], "val": ["p01_1"]}, patient=lambda case: case.split("_")[0])


def test_rules_in_order(tmp_path):
    explicit = {"train": ["p00_0"], "val": ["p01_0"]}
    written = {"train": ["p02_0", "p02_1", "p03_0"], "val": ["p04_0"], "test": ["p05_0"]}
    assert choose_split(CASES, root=tmp_path)["train"] == split_by_ratio(CASES)["train"]
    (tmp_path / "split.json").write_text(json.dumps(written))
    assert choose_split(CASES, root=tmp_path) == written
    assert choose_split(CASES, root=tmp_path, ratio=(0.5, 0.5)) == written
    assert choose_split(CASES, root=tmp_path, splits=explicit) == explicit | {"test": []}
    (tmp_path / "mine.json").write_text(json.dumps(explicit))
    assert choose_split(CASES, root=tmp_path, splits="mine.json") == explicit | {"test": []}
    folds = [choose_split(CASES, root=tmp_path, fold=k, num_folds=2) for k in range(2)]
    assert sorted(folds[0]["val"] + folds[1]["val"]) == ["p02_0", "p02_1", "p03_0", "p04_0"]
    assert folds[0]["test"] == folds[1]["test"] == ["p05_0"], "the test part is never trained on"
    alone = choose_split(CASES, fold=0)
    assert (sorted(alone["train"] + alone["val"]), alone["test"]) == (sorted(CASES), [])
    held = choose_split(CASES, fold=0, ratio=(0.5, 0.25, 0.25))
    assert held["test"] == split_by_ratio(CASES, (0.5, 0.25, 0.25))["test"]


@pytest.mark.parametrize("text,message", [
    ("{", "split.json: is not JSON"),
    ("[]", "split.json: a split has the parts train, val, test; found list"),
    ('{"training": []}', "found .'training'."),
    ('{"train": "p00_0"}', "part 'train' of a split must be a list"),
    ('{"train": [1]}', "part 'train' of a split must be a list"),
    ('{"train": ["p00_0", "p00_0"]}', "names the case 'p00_0' more than once"),
    ('{"train": ["p00_9"]}', "train names 1 case.s. that the dataset has not, first 'p00_9'. Did you mean p00_0"),
    ('{"train": ["p00_0"], "val": ["p00_0"]}', "split.json: case 'p00_0' is in train and in val"),
])  # fmt: skip
def test_damaged_split_files_are_named(tmp_path, text, message):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(DataError, match=message):
        choose_split(CASES, root=tmp_path)


def test_senseless_arguments_are_refused(tmp_path):
    for ratio in ((), (0, 0), (1, -1), (1, 1, 1, 1), {"training": 1}, (float("nan"), 1)):
        with pytest.raises(ConfigError, match="ratio gives the shares"):
            split_by_ratio(CASES, ratio)
    with pytest.raises(DataError, match="2 patients cannot be divided into the 3 parts"):
        split_by_ratio(["a", "b"])
    for fold, count in ((5, 5), (-1, 5), (0, 1)):
        with pytest.raises(ConfigError, match=f"got fold {fold} of {count}"):
            k_fold(CASES, count, fold)
    with pytest.raises(DataError, match="2 patients cannot be divided into 3 folds"):
        k_fold(["a", "b"], 3, 0)
    with pytest.raises(DataError, match="no.json: cannot be read"):
        choose_split(CASES, root=tmp_path, splits="no.json")
    with pytest.raises(DataError, match="case 'x' does not match the patient rule"):
        patient_of("x", PATIENT)
    assert patient_of("p01_2", r"p\d+") == "p01"
