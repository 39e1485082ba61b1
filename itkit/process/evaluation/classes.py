"""Which classes are measured, what they are called, and how near their surfaces must be: words of a user made numbers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from itkit._support.suggestions import did_you_mean
from itkit.errors import DataError, UsageError
from itkit.measures.case import MEASURES, SURFACE_MEASURES
from itkit.measures.overlap import OVERLAP_MEASURES
from itkit.process.documents import META_NAME

GROUPS = {"all": MEASURES, "overlap": tuple(OVERLAP_MEASURES), "surface": tuple(SURFACE_MEASURES)}
"""Word in place of several measures -> their names."""


def parse_measures(words: Sequence[str] | None) -> tuple[str, ...]:
    """Return the measures that `words` name, each once; None: all. Letter case does not matter.

    Raises:
        UsageError: If a word is neither a measure nor one of `GROUPS`.
    """
    by_lower = {name.lower(): (name,) for name in MEASURES} | GROUPS
    found: dict[str, None] = {}
    for word in words or ("all",):
        if word.lower() not in by_lower:
            raise UsageError(
                f"unknown metric {word!r}; there are {', '.join(MEASURES)}, and for several {', '.join(GROUPS)}."
                f"{did_you_mean(word, (*MEASURES, *GROUPS))}"
            )
        found |= dict.fromkeys(by_lower[word.lower()])
    return tuple(found)


def known_names(words: Sequence[str] | None, truth: str | os.PathLike) -> dict[int, str]:
    """Return label -> name of the classes above 0, as far as they are known.

    Args:
        words: ``"1=liver"``, or paths of JSON files (``meta.json`` of a dataset, ``dataset.json`` of nnU-Net or of the
            Decathlon, or ``{"1": "liver"}``). None: ``meta.json`` in the truth's folder or beside it, if there is one.
        truth: Folder of the truths.

    Raises:
        UsageError: If a word is neither, or two classes have one name.
        DataError: If a file cannot be read or holds no names.
    """
    names: dict[int, str] = {}
    if words is None:
        folder = Path(truth)
        places = (folder / META_NAME, folder.absolute().parent / META_NAME)
        place = next((place for place in places[: 2 if folder.name == "label" else 1] if place.is_file()), None)
        names = {} if place is None else _names_of_file(place, required=False)
    for word in words or ():
        label, separator, name = word.partition("=")
        if separator and label.strip().isdecimal() and name.strip():
            names[int(label)] = name.strip()
        elif word.lower().endswith(".json"):
            names |= _names_of_file(Path(word))
        else:
            raise UsageError(f"--names {word!r} is neither LABEL=NAME (e.g. 1=liver) nor a JSON file.")
    names = {label: name for label, name in sorted(names.items()) if label > 0}
    twice = [name for name in names.values() if list(names.values()).count(name) > 1]
    if twice:
        raise UsageError(f"two classes are called {twice[0]!r}; give each a name of its own.")
    return names


def parse_classes(words: Sequence[str] | None, names: Mapping[int, str]) -> tuple[int, ...] | None:
    """Return the labels that `words` (numbers or names) stand for, ascending; None: all.

    Raises:
        UsageError: If a word is no class.
    """
    return None if words is None else tuple(sorted({_label(word, names, "--classes") for word in words}))


def parse_tolerance(words: Sequence[str] | None, names: Mapping[int, str]) -> tuple[float, dict[int, float]]:
    """Return the tolerance of the normalised surface Dice in mm, and those of single classes, from ``2`` or ``liver=2.5``.

    Raises:
        UsageError: If a word is neither a number of 0 or more, nor a class with one.
    """
    general, single = 1.0, {}
    for word in words or ():
        name, separator, number = word.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise UsageError(f"--tolerance {word!r} is neither a number of mm (0 or more) nor CLASS=MM.")
        if separator:
            single[_label(name, names, "--tolerance")] = value
        else:
            general = value
    return general, single


def _label(word: str, names: Mapping[int, str], flag: str) -> int:
    for label, name in names.items():
        if word == name:
            return label
    if word.isdecimal() and int(word) > 0 and (not names or int(word) in names):
        return int(word)
    if word.isdecimal() and int(word) == 0:
        raise UsageError(f"{flag}: 0 is the background, which is no class that can be measured.")
    if not names:
        raise UsageError(
            f"{flag}: {word!r} is no label above 0, and no names are known. Give the label's number, or names with --names."
        )
    known = ", ".join(f"{label} {name}" for label, name in names.items())
    raise UsageError(f"{flag}: no class is called {word!r}; there are {known}.{did_you_mean(word, names.values())}")


def _names_of_file(path: Path, *, required: bool = True) -> dict[int, str]:
    """Return label -> name from any of the known documents."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error}).", path) from error
    found = document
    if isinstance(document, dict):
        found = document.get("classes", document.get("labels", document if required else {}))
    if isinstance(found, list):
        found = dict(enumerate(found))
    names: dict[int, str] = {}
    if isinstance(found, dict):
        for key, value in found.items():
            if str(key).isdecimal() and isinstance(value, str):
                names[int(key)] = value
            elif isinstance(value, int) and not isinstance(value, bool):
                names[value] = str(key)
    if required and not names:
        raise DataError('holds no names of classes, e.g. {"1": "liver"}.', path)
    return names
