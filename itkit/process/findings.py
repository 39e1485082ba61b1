"""What can be wrong with a case: rules over its volumes, each with a name, a severity and a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from itkit.errors import DataError
from itkit.io.geometry import SPACING_RTOL_EQUAL, Match, compare_geometries
from itkit.io.labels import require_whole
from itkit.io.volumes import Volume

PROBLEM, NOTE = "problem", "note"


@dataclass(frozen=True)
class Finding:
    """One thing that a user should know of a case.

    Attributes:
        rule: Short name of the rule, e.g. ``"spacing"``.
        severity: ``"problem"``: the case is not fit for use. ``"note"``: worth a look.
        text: What was found and what was expected.
    """

    rule: str
    severity: str
    text: str


@dataclass(frozen=True)
class Limits:
    """What a case must fulfil besides being readable; triplets are (Z, Y, X), None for an axis without a limit.

    Attributes:
        min_size: Fewest voxels.
        max_size: Most voxels.
        min_spacing: Smallest distance of voxels in mm.
        max_spacing: Largest distance of voxels in mm.
        same_size: Axes (0 to 2 for Z, Y, X) that must have the same number of voxels.
        same_spacing: Axes that must have the same spacing, within a relative difference of `SPACING_RTOL_EQUAL`.
        num_classes: Label values must be below it; None where the classes are not known.
        require_foreground: A label map without foreground is a problem; otherwise it is a note.
    """

    min_size: tuple[float | None, ...] = (None, None, None)
    max_size: tuple[float | None, ...] = (None, None, None)
    min_spacing: tuple[float | None, ...] = (None, None, None)
    max_spacing: tuple[float | None, ...] = (None, None, None)
    same_size: tuple[int, ...] = ()
    same_spacing: tuple[int, ...] = ()
    num_classes: int | None = None
    require_foreground: bool = False


def examine_image(volume: Volume, low: float | None, high: float | None, nonfinite: int) -> Iterator[Finding]:
    """Yield what is wrong with the voxels of an image, whose finite extremes and number of other voxels are given."""
    if nonfinite:
        yield Finding("finite", PROBLEM, f"{nonfinite:,} of {volume.array.size:,} voxels are NaN or infinite")
    elif low == high:
        yield Finding("constant", NOTE, f"every voxel of the image is {low:g}")


def examine_grid(volume: Volume, limits: Limits) -> Iterator[Finding]:
    """Yield where size and spacing break the limits."""
    rows = (
        ("size", volume.size_zyx, limits.min_size, limits.max_size, "voxels"),
        ("spacing", volume.spacing_zyx, limits.min_spacing, limits.max_spacing, "mm"),
    )
    for what, found, least, most, unit in rows:
        for axis, value, low, high in zip("ZYX", found, least, most, strict=True):
            if low is not None and value < low:
                yield Finding(what, PROBLEM, f"{what} along {axis} is {value:g} {unit}, at least {low:g} are asked for")
            if high is not None and value > high:
                yield Finding(what, PROBLEM, f"{what} along {axis} is {value:g} {unit}, at most {high:g} are allowed")
    for what, found, axes, tolerance in (
        ("size", volume.size_zyx, limits.same_size, 0.0),
        ("spacing", volume.spacing_zyx, limits.same_spacing, SPACING_RTOL_EQUAL),
    ):
        values = [found[axis] for axis in axes]
        if values and max(values) - min(values) > tolerance * max(values):
            named = ", ".join(f"{'ZYX'[axis]} {found[axis]:g}" for axis in axes)
            yield Finding(f"same-{what}", PROBLEM, f"{what} differs: {named}")


def examine_label(volume: Volume, values: Sequence[float], limits: Limits) -> Iterator[Finding]:
    """Yield what is wrong with a label map whose `values` (sorted) are given."""
    if volume.array.ndim != 3:
        yield Finding("label", PROBLEM, f"the label has {volume.array.shape[0]} channels; a label map has none")
    if volume.array.dtype.kind == "f":
        try:
            require_whole(volume.array)
        except DataError as error:
            yield Finding("label", PROBLEM, error.message.rstrip("."))
            return
        yield Finding("label", NOTE, f"the label is stored as {volume.array.dtype}, though its values are whole")
    if limits.num_classes is not None:
        wrong = [value for value in values if not 0 <= value < limits.num_classes]
        if wrong:
            shown = ", ".join(f"{value:g}" for value in wrong[:6]) + ", ..." * (len(wrong) > 6)
            yield Finding("classes", PROBLEM, f"label values {shown} are not in 0 .. {limits.num_classes - 1}")
    elif values and values[0] < 0:
        yield Finding("classes", NOTE, f"the label holds the negative value {values[0]:g}")
    if not any(value != 0 for value in values):
        severity = PROBLEM if limits.require_foreground else NOTE
        yield Finding("foreground", severity, "the label holds no foreground")


def examine_pair(image: Volume, label: Volume) -> Iterator[Finding]:
    """Yield how the grid of a label differs from that of its image."""
    match, difference = compare_geometries(image.geometry, label.geometry)
    if match is not Match.EQUAL:
        yield Finding("pair", PROBLEM if match is Match.ERROR else NOTE, f"label has {difference}")


def findings_of(entry: Mapping) -> list[list[str]]:
    """Return the findings of a ledger entry, [rule, severity, text] each; what kept the case from being examined is one too."""
    found = (entry.get("record") or {}).get("findings") or []
    problems = "; ".join(text for _, severity, text in found if severity == PROBLEM)
    if entry.get("state") == "failed" and entry["reason"] != problems:
        return [*found, ["unexamined", PROBLEM, entry["reason"]]]
    return found
