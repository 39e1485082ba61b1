"""Rules that clean a predicted label map, as plain data and in an order: what a user writes, what a model carries, what is done.

A rule is a dict with ``type``, and ``classes`` where it treats only some. As words: ``STEP[=VALUE][@CLASS[,CLASS...]]``.

| words | does |
|---|---|
| ``largest[@CLASSES]`` | each class keeps only its largest connected piece |
| ``small=MM3[@CLASSES]`` | connected pieces below so many mm^3 become background |
| ``holes[@CLASSES]`` | background that a class encloses in three dimensions becomes that class |
| ``box=Z:Z,Y:Y,X:X`` | nothing outside of a box of voxel indices (first:last, exclusive; an empty side is open) |
| ``body=LEVEL`` | nothing outside of the largest piece that is brighter than LEVEL, its holes filled (CT: -300) |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from itkit._support.suggestions import did_you_mean
from itkit.errors import UsageError
from itkit.measures.components import components, keep_largest, remove_small

STEPS = ("largest", "small", "holes", "box", "body")
PER_CLASS = ("largest", "small", "holes")
"""Steps that can be limited to some classes."""


def parse_steps(words: Sequence[str], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rules that `words` name, in their order.

    Args:
        words: As in the table above.
        classes: Names of all classes, background first; a class may be named or numbered.

    Raises:
        UsageError: If a step, a value or a class makes no sense; says what would.
    """
    return [_parse(word, classes) for word in words]


def as_words(steps: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[str]:
    """Return rules as `parse_steps` reads them."""
    words = []
    for step in steps:
        word = step["type"]
        if word == "small":
            word += f"={step['min_volume_mm3']:g}"
        elif word == "body":
            word += f"={step['level']:g}"
        elif word == "box":
            sides = [["" if end is None else str(end) for end in side] for side in step["box"]]
            word += "=" + ",".join(":".join(side) for side in sides)
        if step.get("classes") is not None:
            word += "@" + ",".join(classes[number] for number in step["classes"])
        words.append(word)
    return words


def check_steps(steps: Sequence[Mapping[str, Any]], num_classes: int) -> None:
    """Refuse rules that `postprocess` could not follow.

    Raises:
        UsageError: If a type, an argument or a class is none of those above.
    """
    arguments = {"small": {"min_volume_mm3"}, "box": {"box"}, "body": {"level"}}
    for step in steps:
        kind = step.get("type") if isinstance(step, Mapping) else None
        if kind not in STEPS:
            raise UsageError(f"post-processing has no step {kind!r}.{did_you_mean(str(kind), STEPS)} {_known()}")
        needed = arguments.get(kind, set())
        allowed = needed | ({"classes"} if kind in PER_CLASS else set()) | {"type"}
        if not needed <= step.keys() or not step.keys() <= allowed:
            raise UsageError(f"post-processing step {kind} takes {sorted(allowed - {'type'})}; found {dict(step)}.")
        wrong = [number for number in step.get("classes") or () if not 0 < number < num_classes]
        if wrong:
            raise UsageError(f"post-processing step {kind}: there is no class {wrong[0]} besides the background.")


def postprocess(
    labels: np.ndarray,
    steps: Sequence[Mapping[str, Any]],
    spacing_zyx: Sequence[float],
    *,
    image: np.ndarray | None = None,
) -> np.ndarray:
    """Return `labels` after all rules, one after the other.

    Args:
        labels: (Z, Y, X), integers. Not modified.
        steps: The rules.
        spacing_zyx: Voxel spacing in mm.
        image: (Z, Y, X), the image as it was read; only ``body`` looks at it.

    Returns:
        A label map of the same type; `labels` itself if there is no rule.

    Raises:
        UsageError: If a rule cannot be followed.
    """
    for step in steps:
        kind, classes = step["type"], step.get("classes")
        if kind == "largest":
            labels = keep_largest(labels, classes)
        elif kind == "small":
            labels = remove_small(labels, step["min_volume_mm3"], spacing_zyx, classes)
        elif kind == "holes":
            labels = fill_holes(labels, classes)
        elif kind == "box":
            labels = restrict_to_box(labels, step["box"])
        elif kind == "body":
            if image is None or image.shape != labels.shape:
                raise UsageError("post-processing step body needs the image, of one channel.")
            labels = np.where(body_mask(image, step["level"]), labels, labels.dtype.type(0))
        else:
            raise UsageError(f"post-processing has no step {kind!r}. {_known()}")
    return labels


def fill_holes(labels: np.ndarray, classes: Sequence[int] | None = None) -> np.ndarray:
    """Return a label map in which background that one class encloses is that class.

    Args:
        labels: Label map of any integer type. Not modified.
        classes: Classes to treat, in this order. None: all but 0, in ascending order. Voxels of other classes stay what they
            are, also inside.

    Returns:
        A new map of the same type.
    """
    result = labels.copy()
    places = ndimage.find_objects(labels.astype(np.int32, copy=False))
    for number in range(1, len(places) + 1) if classes is None else classes:
        place = places[number - 1] if 0 < number <= len(places) else None
        if place is None:
            continue
        inside = ndimage.binary_fill_holes(labels[place] == number)
        part = result[place]
        part[inside & (part == 0)] = number
    return result


def restrict_to_box(labels: np.ndarray, box: Sequence[Sequence[int | None]]) -> np.ndarray:
    """Return a label map that is 0 outside of `box`, (first, last exclusive) along (Z, Y, X); None leaves a side open."""
    result = np.zeros_like(labels)
    inside = tuple(slice(first, last) for first, last in box)
    result[inside] = labels[inside]
    return result


def body_mask(image: np.ndarray, level: float) -> np.ndarray:
    """Return the largest piece of an image that is brighter than `level`, its holes filled slice by slice and as a whole."""
    numbered, sizes = components(image > level, connectivity="face")
    if len(sizes) < 2:
        return np.zeros(image.shape, bool)
    body = numbered == 1 + int(np.argmax(sizes[1:]))
    for plane in body:
        ndimage.binary_fill_holes(plane, output=plane)
    return ndimage.binary_fill_holes(body)


def _parse(word: str, classes: Sequence[str]) -> dict[str, Any]:
    head, at, names = word.partition("@")
    kind, equals, value = head.partition("=")
    if kind not in STEPS:
        raise UsageError(f"--post {word}: there is no step {kind!r}.{did_you_mean(kind, STEPS)} {_known()}")
    step: dict[str, Any] = {"type": kind}
    if kind in ("small", "body"):
        number = _number(value)
        if number is None or (kind == "small" and number <= 0):
            raise UsageError(
                f"--post {word}: {kind} needs a number, e.g. {kind}={'50' if kind == 'small' else '-300'}."
            )
        step["min_volume_mm3" if kind == "small" else "level"] = number
    elif kind == "box":
        step["box"] = _box(word, value)
    elif equals:
        raise UsageError(f"--post {word}: {kind} takes no value.")
    if at:
        if kind not in PER_CLASS:
            raise UsageError(f"--post {word}: {kind} concerns all classes; only {', '.join(PER_CLASS)} can be limited.")
        step["classes"] = [_class_number(word, name, classes) for name in names.split(",")]
    return step


def _class_number(word: str, name: str, classes: Sequence[str]) -> int:
    number = classes.index(name) if name in classes else int(name) if name.isdigit() else -1
    if not 0 < number < len(classes):
        raise UsageError(
            f"--post {word}: there is no class {name!r}.{did_you_mean(name, classes[1:])} Classes are "
            f"{', '.join(f'{n} {text}' for n, text in enumerate(classes) if n)}."
        )
    return number


def _box(word: str, value: str) -> list[list[int | None]]:
    sides = [side.split(":") for side in value.split(",")]
    if len(sides) != 3 or any(len(side) != 2 or not all(end.isdigit() or not end for end in side) for side in sides):
        raise UsageError(f"--post {word}: a box is three ranges of voxels (Z, Y, X), e.g. box=10:90,:,30:220.")
    return [[int(end) if end else None for end in side] for side in sides]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _known() -> str:
    return f"The steps are {', '.join(STEPS)}: largest, small=MM3, holes, box=Z:Z,Y:Y,X:X, body=LEVEL; largest@CLASS."
