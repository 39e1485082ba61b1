"""Divide the cases of a dataset into train, val and test, the same way every time, and never a patient in two parts."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError, DataError
from itkit.process.splits import PARTS, SPLIT_NAME, Split, check_split, read_split

DEFAULT_RATIO = (0.8, 0.1, 0.1)

PatientRule = str | Callable[[str], str] | None


def patient_of(case_id: str, patient: PatientRule) -> str:
    """Return whose case `case_id` is.

    Args:
        case_id: The case.
        patient: A regular expression, searched in the case id (its first group, or the whole match, is the patient); a
            function of the case id; or None: each case is a patient of its own.

    Raises:
        DataError: If the expression does not match.
    """
    if patient is None:
        return case_id
    if callable(patient):
        return str(patient(case_id))
    match = re.search(patient, case_id)
    if match is None:
        raise DataError(f"case {case_id!r} does not match the patient rule {patient!r}; change the rule or the name.")
    return match.group(1) if match.re.groups else match.group(0)


def split_by_ratio(
    cases: Iterable[str],
    ratio: Sequence[float] | Mapping[str, float] = DEFAULT_RATIO,
    *,
    seed: int = 0,
    patient: PatientRule = None,
) -> Split:
    """Divide cases by shares; all cases of a patient go to one part.

    The order of `cases` does not matter. Each share that is not 0 gets at least one patient if there are enough.

    Args:
        cases: Case ids.
        ratio: Shares of train, val, test (a sequence, or by name), relative to their sum.
        seed: Another seed gives another division.
        patient: See `patient_of`.

    Returns:
        Part -> sorted case ids. Parts with share 0 are empty.

    Raises:
        ConfigError: If the shares are not one to three numbers, none negative, with a positive sum.
        DataError: If there are fewer patients than parts.
    """
    shares = list(ratio.items()) if isinstance(ratio, Mapping) else list(zip(PARTS, ratio, strict=False))
    valid = len(shares) == len(ratio) > 0 and all(name in PARTS for name, _ in shares)
    if not valid or any(not math.isfinite(share) or share < 0 for _, share in shares) or not sum(s for _, s in shares):
        raise ConfigError(f"ratio gives the shares of {', '.join(PARTS)}, e.g. (0.8, 0.1, 0.1); got {ratio!r}.")
    groups = _shuffled_groups(cases, seed, patient)
    asked = [(name, share / sum(share for _, share in shares)) for name, share in shares if share > 0]
    if len(groups) < len(asked):
        raise DataError(f"{len(groups)} patients cannot be divided into the {len(asked)} parts of ratio {ratio!r}.")
    counts = _apportion(len(groups), [share for _, share in asked])
    split: Split = {name: [] for name in PARTS}
    begin = 0
    for (name, _), count in zip(asked, counts, strict=True):
        split[name] = sorted(case for group in groups[begin : begin + count] for case in group)
        begin += count
    return split


def k_fold(cases: Iterable[str], num_folds: int, fold: int, *, seed: int = 0, patient: PatientRule = None) -> Split:
    """Return train and val of one fold; over all folds each case is in val exactly once.

    Args:
        cases: Case ids, in any order.
        num_folds: Number of folds, at least 2.
        fold: Which of them is val, from 0.
        seed: Another seed gives other folds.
        patient: See `patient_of`: all cases of a patient are in one fold.

    Raises:
        ConfigError: If `fold` is not within ``0 ... num_folds - 1``, or there are fewer than two folds.
        DataError: If there are fewer patients than folds.
    """
    if num_folds < 2 or not 0 <= fold < num_folds:
        raise ConfigError(f"fold must be 0 ... num_folds - 1 with at least 2 folds; got fold {fold} of {num_folds}.")
    groups = _shuffled_groups(cases, seed, patient)
    if len(groups) < num_folds:
        raise DataError(f"{len(groups)} patients cannot be divided into {num_folds} folds.")
    folds: list[list[str]] = [[] for _ in range(num_folds)]
    for group in sorted(groups, key=len, reverse=True):
        min(folds, key=len).extend(group)
    rest = [case for number, part in enumerate(folds) for case in part if number != fold]
    return {"train": sorted(rest), "val": sorted(folds[fold]), "test": []}


def require_no_leakage(split: Mapping[str, Iterable[str]], patient: PatientRule = None) -> None:
    """Refuse a split in which a case, or a patient, is in two parts.

    Raises:
        DataError: Names the first such case or patient and its parts.
    """
    seen: dict[str, tuple[str, str]] = {}
    for part, cases in split.items():
        for case in cases:
            person = patient_of(case, patient)
            other_part, other_case = seen.setdefault(person, (part, case))
            if other_part != part:
                who = f"case {case!r}" if case == other_case else f"patient {person!r}"
                how = "" if case == other_case else f" (cases {other_case!r} and {case!r})"
                raise DataError(f"{who} is in {other_part} and in {part}{how}: remove it from one of the two.")


def choose_split(
    cases: Iterable[str],
    *,
    root: str | os.PathLike | None = None,
    splits: Mapping[str, Sequence[str]] | str | os.PathLike | None = None,
    ratio: Sequence[float] | Mapping[str, float] | None = None,
    fold: int | None = None,
    num_folds: int = 5,
    seed: int = 0,
    patient: PatientRule = None,
) -> Split:
    """Divide the cases of a dataset by the first rule that applies, and check it for leakage.

    1. `splits`, if given; 2. ``<root>/split.json``, if it is there; 3. `ratio` (or `fold` alone). With `fold`, the train
    and val cases of rule 1 or 2 (or the cases that `ratio` does not give to test; without a ratio, all) are divided again
    into `num_folds` folds; test stays as it is.

    Args:
        cases: All case ids of the dataset.
        root: The dataset's folder.
        splits: Part -> case ids, or a JSON file of that form (relative to `root`).
        ratio: Shares for `split_by_ratio`; None: `DEFAULT_RATIO`.
        fold: Number of the fold whose cases are val; None: no folds.
        num_folds: Number of folds.
        seed: Seed of `ratio` and folds.
        patient: See `patient_of`.

    Raises:
        ConfigError: If an argument makes no sense.
        DataError: If a case of the split is not in the dataset, a patient is in two parts, or a file is damaged.
    """
    cases = sorted(set(cases))
    source: str | os.PathLike | None = None
    if isinstance(splits, (str, os.PathLike)):
        source = Path(root or ".") / splits
        split = read_split(source)
    elif splits is not None:
        split = check_split(splits, None)
    elif root is not None and (Path(root) / SPLIT_NAME).is_file():
        source = Path(root) / SPLIT_NAME
        split = read_split(source)
    elif fold is not None and ratio is None:
        split = {"train": cases, "val": [], "test": []}
    else:
        split = split_by_ratio(cases, ratio or DEFAULT_RATIO, seed=seed, patient=patient)
    known = set(cases)
    for part, names in split.items():
        missing = [name for name in names if name not in known]
        if missing:
            raise DataError(
                f"{part} names {len(missing)} case(s) that the dataset has not, first {missing[0]!r}."
                + did_you_mean(missing[0], cases),
                source or root,
            )
    if fold is not None:
        split = k_fold(split["train"] + split["val"], num_folds, fold, seed=seed, patient=patient) | {
            "test": split["test"]
        }
    try:
        require_no_leakage(split, patient)
    except DataError as error:
        raise DataError(error.message, source or root) from error
    return split


def _shuffled_groups(cases: Iterable[str], seed: int, patient: PatientRule) -> list[list[str]]:
    """Cases grouped by patient, in an order that depends on names and seed alone."""
    groups: dict[str, list[str]] = {}
    for case in sorted(set(cases)):
        groups.setdefault(patient_of(case, patient), []).append(case)

    def place(person: str) -> str:
        return hashlib.sha256(f"{seed}\0{person}".encode()).hexdigest()

    return [groups[person] for person in sorted(groups, key=place)]


def _apportion(total: int, shares: list[float]) -> list[int]:
    """Whole numbers near ``total * share`` that sum to `total`, none zero (largest remainders first)."""
    counts = [max(1, math.floor(total * share + 1e-9)) for share in shares]
    while sum(counts) > total:
        counts[counts.index(max(counts))] -= 1
    order = sorted(range(len(shares)), key=lambda k: total * shares[k] - counts[k], reverse=True)
    for k in range(total - sum(counts)):
        counts[order[k % len(order)]] += 1
    return counts
