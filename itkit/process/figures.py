"""Pictures of one case: image, truth, prediction and where they disagree, in three planes through the foreground."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from itkit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

MAX_PNG_BYTES = 80_000
"""A report holds many pictures in one file, so each must stay small."""

CLASS_COLOURS = ("#E69F00", "#56B4E9", "#00B87C", "#F0E442", "#CC79A7", "#D55E00", "#3C8DD0", "#B6E880")
"""Class 1, 2, ... after Okabe and Ito's palette for colour-blind readers, lightened to stand out on dark images."""

MISSED, EXTRA, SWAPPED = "#4DA3FF", "#FF8F1F", "#FFFFFF"
"""Disagreement: truth without prediction, prediction without truth, one class taken for another."""

_DENSE_CLASSES = 512  # up to here a table of all pairs of classes is small
_MOST_VOXELS = 3_000_000  # of the foreground, when slices are chosen
_BACKGROUND, _INK, _FAINT = (16, 18, 22), (232, 234, 238), (150, 156, 166)
_PLANES = ("axial", "coronal", "sagittal")


def class_colour(index: int) -> tuple[int, int, int]:
    """Return the colour (R, G, B; 0 to 255) of class `index` (1 is the first foreground class), the same in every picture."""
    if 1 <= index <= len(CLASS_COLOURS):
        return _rgb(CLASS_COLOURS[index - 1])
    hue = (index * 0.61803398875) % 1.0
    lightness = (0.55, 0.68, 0.8)[index % 3]
    return tuple(round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.75))


@dataclass(frozen=True)
class PlaneCut:
    """One slice of a volume, ready to be drawn.

    Attributes:
        name: ``"axial"``, ``"coronal"`` or ``"sagittal"``; ``""`` for an image that has one plane only.
        index: Number of the slice along its axis, from 0.
        grey: Windowed image, (H, W), uint8.
        truth: Labels (H, W), or None.
        prediction: Labels (H, W), or None.
        size_mm: Physical height and width.
        letters: Anatomical direction of the upper and the left edge (``"A"``, ``"S"``, ``"R"``); empty if unknown.
    """

    name: str
    index: int
    grey: np.ndarray
    truth: np.ndarray | None
    prediction: np.ndarray | None
    size_mm: tuple[float, float]
    letters: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class CaseCuts:
    """What a picture of a case needs, without its volumes: a few slices and numbers, kept until the picture is drawn.

    Attributes:
        planes: One to three slices.
        classes: Names, background first.
        shown: Foreground classes that occur in truth or prediction, ascending.
        dice: Dice of each class of `shown` over the whole volume; empty without truth or prediction.
        disagreement_ml: Volumes of ``missed``, ``extra`` and ``swapped`` in ml (cm³); empty without truth or prediction.
    """

    planes: tuple[PlaneCut, ...]
    classes: tuple[str, ...]
    shown: tuple[int, ...]
    dice: Mapping[int, float] = field(default_factory=dict)
    disagreement_ml: Mapping[str, float] = field(default_factory=dict)

    @property
    def mean_dice(self) -> float | None:
        """Mean Dice over the foreground classes that occur; None if it is not defined."""
        return sum(self.dice.values()) / len(self.dice) if self.dice else None


def cut_case(
    image: np.ndarray,
    truth: np.ndarray | None = None,
    prediction: np.ndarray | None = None,
    *,
    classes: Sequence[str] = (),
    spacing_zyx: Sequence[float] | None = None,
    direction_xyz: Sequence[float] | None = None,
) -> CaseCuts:
    """Cut the slices that show the most foreground, and measure the agreement over the whole volume.

    Each class counts the same when the slice is chosen, so that a small structure is not lost beside a large one. The
    slices are cropped to the foreground with a margin; without any foreground the middle slices are taken whole.

    Args:
        image: (Z, Y, X) or (Y, X), any real type; a channel axis in front is allowed, the first channel is taken. Not modified.
        truth: Integer labels of the image's size, or None. Values outside ``range(len(classes))`` are ignored.
        prediction: Likewise.
        classes: Class names, background first. Empty: every value above 0 is a class.
        spacing_zyx: Voxel spacing in mm, order (Z, Y, X). None, or a number that is not positive, counts as 1 mm.
        direction_xyz: Nine direction cosines as SimpleITK gives them (LPS). The volume is then turned, in steps of 90
            degrees, so that the slices are the anatomical planes, and carry letters. None: the axes are taken as they are.

    Raises:
        UsageError: If the sizes do not match, or the image is neither 2D nor 3D.
    """
    import numpy as np

    labels = {
        name: _labels(array) for name, array in (("truth", truth), ("prediction", prediction)) if array is not None
    }
    image = np.asarray(image)
    ndim = next((array.ndim for array in labels.values()), 3 if image.ndim > 2 else 2)
    while image.ndim > ndim:
        image = image[0]
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise UsageError(
            f"a picture needs an image of 2 or 3 axes that is not empty; found shape {tuple(image.shape)}."
        )
    for name, array in labels.items():
        if array.shape != image.shape:
            raise UsageError(
                f"the {name} has shape {tuple(array.shape)}, the image {tuple(image.shape)}; they must be equal."
            )
    spacing = _spacing(spacing_zyx)
    if image.ndim == 2:
        image = image[None]
        labels = {name: array[None] for name, array in labels.items()}
    anatomical = _anatomical(direction_xyz) if ndim == 3 else None
    flipped = (False, False, False)
    if anatomical is not None:
        order, flipped = anatomical
        turn = tuple(slice(None, None, -1 if flip else 1) for flip in flipped)
        image = image.transpose(order)[turn]
        labels = {name: array.transpose(order)[turn] for name, array in labels.items()}
        spacing = tuple(spacing[axis] for axis in order)
    count = len(classes) or 1 + max((int(array.max()) for array in labels.values()), default=0)
    clean = _in_range(labels, count)
    shown, dice, disagreement = _agreement(clean, count, voxel_ml=float(np.prod(spacing)) / 1000)
    box, at = _view(clean, shown, image.shape, spacing)
    inside, limits = image[box], _limits(image[box])
    planes = []
    for axis, name in enumerate(_PLANES):
        rows, columns = [other for other in range(3) if other != axis]
        if axis > 0 and 1 in (image.shape[rows], image.shape[columns]):
            continue
        cut = [slice(None)] * 3
        cut[axis] = at[axis] - box[axis].start
        cut = tuple(cut)
        flip = slice(None, None, -1 if axis > 0 else 1)  # Z grows upwards in the body, rows downwards on the screen
        part = {key: np.ascontiguousarray(array[box][cut][flip]) for key, array in clean.items()}
        panel = _window(inside[cut][flip], limits)
        size_mm = (panel.shape[0] * spacing[rows], panel.shape[1] * spacing[columns])
        index = image.shape[axis] - 1 - at[axis] if flipped[axis] else at[axis]
        letters = ("", "") if anatomical is None else (("A", "R"), ("S", "R"), ("S", "A"))[axis]
        planes.append(PlaneCut(name, index, panel, part.get("truth"), part.get("prediction"), size_mm, letters))
    if image.shape[0] == 1:
        planes = [replace(plane, name="") for plane in planes]
    names = tuple(classes) or ("background", *(f"class {index}" for index in range(1, count)))
    return CaseCuts(tuple(planes), names, shown, dice, disagreement)


def mean_foreground_dice(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> float | None:
    """Return the mean Dice over the foreground classes that occur, the number by which the worst cases are chosen.

    Args:
        truth: Integer labels of any shape; values outside ``range(num_classes)`` are not looked at.
        prediction: Likewise, same shape.
        num_classes: Number of classes, background included.

    Returns:
        0 to 1, None if neither has any foreground.
    """
    import numpy as np

    from itkit.measures.overlap import class_counts, confusion_matrix, dice

    known = (truth >= 0) & (truth < num_classes) & (prediction >= 0) & (prediction < num_classes)
    if not known.all():
        truth, prediction = truth[known], prediction[known]
    scores = dice(class_counts(confusion_matrix(truth, prediction, num_classes)))[1:]
    return None if np.isnan(scores).all() else float(np.nanmean(scores))


def draw_case(cuts: CaseCuts, title: str = "", *, panel_px: int = 232) -> np.ndarray:
    """Draw the slices as one picture: a row for each plane, columns for truth, prediction and disagreement.

    Args:
        cuts: From `cut_case`.
        title: First line, normally the name of the case. Cut if it is too long.
        panel_px: Width of the widest panel in pixels.

    Returns:
        (H, W, 3), uint8, RGB.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    has_truth = any(plane.truth is not None for plane in cuts.planes)
    has_prediction = any(plane.prediction is not None for plane in cuts.planes)
    columns = [name for name, there in (("Truth", has_truth), ("Prediction", has_prediction)) if there]
    columns = [*columns, "Disagreement"] if len(columns) == 2 else ["Image", *columns]
    gap, edge, head, sub = 6, 12, 30, 22
    scale = _scale(cuts.planes, panel_px)
    sizes = [_panel_size(plane, scale, panel_px) for plane in cuts.planes]
    cell = max(width for _, width in sizes)
    cell = max(cell, 150)
    width = 2 * edge + len(columns) * cell + (len(columns) - 1) * gap
    legend = _legend(cuts, width - 2 * edge)
    height = head + sub + sum(size[0] + gap for size in sizes) + len(legend) * 20 + 10
    canvas = Image.new("RGB", (width, height), _BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    bold, small, outline = _font(15), _font(12), {"stroke_width": 2, "stroke_fill": (0, 0, 0)}
    score = "" if cuts.mean_dice is None else f"Dice {cuts.mean_dice:.3f}"
    score_width = pen.textlength(score, font=bold)
    pen.text((edge, 9), _fit(pen, title, bold, width - 2 * edge - score_width - 12), font=bold, fill=_INK)
    pen.text((width - edge - score_width, 9), score, font=bold, fill=_INK)
    for number, name in enumerate(columns):
        pen.text((edge + number * (cell + gap), head + 3), name, font=small, fill=_FAINT)
    top = head + sub
    for plane, size in zip(cuts.planes, sizes, strict=True):
        grey, truth, prediction = _enlarge(plane, size)
        for number, name in enumerate(columns):
            panel = _panel(name, grey, truth, prediction)
            left = edge + number * (cell + gap)
            pen.rectangle((left, top, left + cell - 1, top + size[0] - 1), fill=(0, 0, 0))
            canvas.paste(Image.fromarray(panel), (left + (cell - size[1]) // 2, top))
            if number == 0:
                caption = f"{plane.name} {plane.index}" if plane.name else ""
                pen.text((left + 5, top + 3), caption, font=small, fill=_INK, **outline)
                at = left + (cell - size[1]) // 2
                pen.text((at + size[1] // 2, top + 2), plane.letters[0], font=small, fill=_INK, anchor="mt", **outline)
                pen.text((at + 4, top + size[0] // 2), plane.letters[1], font=small, fill=_INK, anchor="lm", **outline)
        if plane is cuts.planes[0]:
            _scale_bar(pen, edge + (cell - size[1]) // 2, top + size[0], size[1], scale, small)
        top += size[0] + gap
    for line in legend:
        for offset, colour, text in line:
            if colour is not None:
                pen.rounded_rectangle((edge + offset, top + 5, edge + offset + 10, top + 15), 2, fill=colour)
            pen.text((edge + offset + (15 if colour is not None else 0), top + 2), text, font=small, fill=_INK)
        top += 20
    return np.asarray(canvas)


def encode_png(picture: np.ndarray, *, max_bytes: int = MAX_PNG_BYTES) -> bytes:
    """Return `picture` as a PNG file of at most `max_bytes`: first with fewer colours, then with fewer pixels.

    Args:
        picture: (H, W, 3), uint8, RGB.
        max_bytes: Upper limit, in bytes. Not kept for pictures that are still larger at a quarter of their size.
    """
    from PIL import Image

    image = Image.fromarray(picture)
    for shrink in (1.0, 0.85, 0.7, 0.5, 0.25):
        size = (max(1, round(image.width * shrink)), max(1, round(image.height * shrink)))
        scaled = image if shrink == 1.0 else image.resize(size, Image.Resampling.LANCZOS)
        if scaled.getcolors(256) is None:  # steps of 4 are not seen, and choosing a palette gets a hundred times faster
            scaled = scaled.point([round((value >> 2) * 255 / 63) for value in range(256)] * 3)
        for colours in (208, 96, 48):
            stream = io.BytesIO()
            palette = scaled.quantize(colours, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            palette.save(stream, "PNG")
            if stream.tell() <= max_bytes:
                return stream.getvalue()
            if stream.tell() > 2 * max_bytes:
                break
    return stream.getvalue()


def overlay_figure(
    image: np.ndarray,
    truth: np.ndarray | None,
    prediction: np.ndarray | None,
    classes: Sequence[str],
    spacing_zyx: Sequence[float] | None = None,
    title: str = "",
    *,
    direction_xyz: Sequence[float] | None = None,
) -> bytes:
    """Return a small PNG that shows one case in three planes; see `cut_case` for the arguments and `draw_case` for the look."""
    cuts = cut_case(image, truth, prediction, classes=classes, spacing_zyx=spacing_zyx, direction_xyz=direction_xyz)
    return encode_png(draw_case(cuts, title))


def _rgb(code: str) -> tuple[int, int, int]:
    return tuple(int(code[start : start + 2], 16) for start in (1, 3, 5))


def _labels(array: np.ndarray) -> np.ndarray:
    import numpy as np

    array = np.asarray(array)
    return array.astype(np.uint8) if array.dtype == bool else array


def _spacing(spacing_zyx: Sequence[float] | None) -> tuple[float, float, float]:
    given = [float(value) for value in spacing_zyx] if spacing_zyx is not None else []
    padded = [1.0] * (3 - len(given)) + given[-3:]
    return tuple(value if 0 < value < float("inf") else 1.0 for value in padded)


def _anatomical(direction_xyz: Sequence[float] | None) -> tuple[tuple[int, ...], tuple[bool, ...]] | None:
    """Return the array axes that run (superior, posterior, left) and whether each must be flipped; None if it is unclear."""
    import numpy as np

    if direction_xyz is None or len(direction_xyz) != 9:
        return None
    matrix = np.asarray(direction_xyz, dtype=float).reshape(3, 3)
    if not np.isfinite(matrix).all():
        return None
    world = [int(np.argmax(np.abs(matrix[:, 2 - axis]))) for axis in range(3)]
    if sorted(world) != [0, 1, 2]:
        return None
    order = tuple(world.index(direction) for direction in (2, 1, 0))
    return order, tuple(bool(matrix[world[axis], 2 - axis] < 0) for axis in order)


def _in_range(labels: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Return the labels with 0 where the truth is no class (ignored voxels) and where a label is out of range."""
    import numpy as np

    def outside(array: np.ndarray) -> np.ndarray | None:
        if array.size and (array.min() < 0 or array.max() >= count):
            return (array < 0) | (array >= count)
        return None

    ignored = outside(labels["truth"]) if "truth" in labels else None
    clean = {}
    for name, array in labels.items():
        bad = outside(array)
        bad = ignored if bad is None else bad if ignored is None else bad | ignored
        clean[name] = array if bad is None else np.where(bad, 0, array)
    return clean


def _agreement(
    labels: Mapping[str, np.ndarray], count: int, voxel_ml: float
) -> tuple[tuple[int, ...], dict[int, float], dict[str, float]]:
    """Return the classes that occur, Dice of each, and the volumes in ml that are missed, extra, or of the wrong class."""
    import numpy as np

    from itkit.measures.overlap import class_counts, confusion_matrix, dice

    if not labels:
        return (), {}, {}
    codes = np.arange(count)
    pair = [labels.get("truth"), labels.get("prediction")]
    pair = [array for array in pair if array is not None]
    if count > _DENSE_CLASSES:  # few of very many possible values occur: number those that do
        codes = np.unique(np.concatenate([np.zeros(1, np.intp), *(np.unique(array) for array in pair)]))
        pair = [np.searchsorted(codes, array) for array in pair]
    matrix = confusion_matrix(pair[0], pair[-1], len(codes))
    there = [place for place in range(1, len(codes)) if matrix[place].any() or matrix[:, place].any()]
    shown = tuple(int(codes[place]) for place in there)
    if len(pair) < 2:
        return shown, {}, {}
    scores = dice(class_counts(matrix))
    inner = matrix[1:, 1:]
    wrong = {"missed": matrix[1:, 0].sum(), "extra": matrix[0, 1:].sum(), "swapped": inner.sum() - np.trace(inner)}
    return (
        shown,
        {index: float(scores[place]) for index, place in zip(shown, there, strict=True)},
        {name: float(voxels) * voxel_ml for name, voxels in wrong.items()},
    )


def _view(
    labels: Mapping[str, np.ndarray], shown: Sequence[int], shape: Sequence[int], spacing: Sequence[float]
) -> tuple[tuple[slice, ...], list[int]]:
    """Return the box around the foreground and, for each axis, the slice that shows the most of it."""
    import numpy as np

    if not shown:
        return tuple(slice(0, size) for size in shape), [size // 2 for size in shape]
    foreground = np.logical_or.reduce([array > 0 for array in labels.values()])
    ranges = []
    for axis in range(3):
        there = np.flatnonzero(foreground.any(axis=tuple(other for other in range(3) if other != axis)))
        ranges.append((int(there[0]), int(there[-1]) + 1))
    extent = max((stop - start) * mm for (start, stop), mm in zip(ranges, spacing, strict=True))
    box = []
    for (start, stop), mm, size in zip(ranges, spacing, shape, strict=True):
        margin = max(3, round(0.22 * extent / mm))
        box.append(slice(max(0, start - margin), min(size, stop + margin)))
    score = [np.zeros(part.stop - part.start) for part in box]
    for array in labels.values():
        inside = array[tuple(box)]
        places = np.flatnonzero(inside > 0)
        places = places[:: 1 + len(places) // _MOST_VOXELS]
        where = np.unravel_index(places, inside.shape)
        number = np.searchsorted(shown, inside[where])
        for axis, size in enumerate(inside.shape):
            found = np.bincount(number * size + where[axis], minlength=len(shown) * size).reshape(len(shown), size)
            score[axis] += (found / np.maximum(1, found.max(axis=1, keepdims=True))).sum(axis=0)
    at = []
    for part, values in zip(box, score, strict=True):
        best = np.flatnonzero(values >= values.max() - 1e-9)
        at.append(part.start + int(best[len(best) // 2]))
    return tuple(box), at


def _limits(image: np.ndarray) -> tuple[float, float] | None:
    """Return robust percentiles of an image, its extremes if those are equal, None if no value is finite."""
    import numpy as np

    step = max(1, round((image.size / 300_000) ** (1 / 3)))
    sample = image[::step, ::step, ::step].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return None
    low, high = np.percentile(sample, [0.5, 99.5])
    return (float(low), float(high)) if high > low else (float(sample.min()), float(sample.max()))


def _window(image: np.ndarray, limits: tuple[float, float] | None) -> np.ndarray:
    """Map a slice to 0..235 between limits, a constant one to grey; values that are not finite become black."""
    import numpy as np

    values = np.asarray(image, dtype=np.float64)
    finite = np.isfinite(values)
    if limits is None:
        return np.zeros(values.shape, np.uint8)
    low, high = limits
    if high <= low:
        return np.where(finite, 110, 0).astype(np.uint8)
    scaled = np.clip((np.where(finite, values, low) - low) / (high - low), 0, 1)
    return np.where(finite, np.round(scaled * 235), 0).astype(np.uint8)


def _scale(planes: Sequence[PlaneCut], panel_px: int) -> float:
    """Pixels per mm: the widest panel gets `panel_px`, none gets higher than 1.25 times that."""
    widest = max(plane.size_mm[1] for plane in planes)
    highest = max(plane.size_mm[0] for plane in planes)
    return min(panel_px / widest, 1.25 * panel_px / highest)


def _panel_size(plane: PlaneCut, scale: float, panel_px: int) -> tuple[int, int]:
    height, width = (max(24, round(size * scale)) for size in plane.size_mm)
    return min(height, 2 * panel_px), min(width, 2 * panel_px)


def _enlarge(plane: PlaneCut, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    import numpy as np
    from PIL import Image

    height, width = size
    grey = np.asarray(Image.fromarray(plane.grey).resize((width, height), Image.Resampling.BICUBIC))
    rows = (np.arange(height) * plane.grey.shape[0]) // height
    columns = (np.arange(width) * plane.grey.shape[1]) // width
    labels = [
        None if part is None else part[rows][:, columns].astype(np.int64) for part in (plane.truth, plane.prediction)
    ]
    return grey, labels[0], labels[1]


def _border(labels: np.ndarray, thickness: int = 2) -> np.ndarray:
    """Return True on the inner rim of every region."""
    import numpy as np

    rim = np.zeros(labels.shape, bool)
    for step in range(1, thickness + 1):
        for axis in (0, 1):
            if labels.shape[axis] <= step:
                continue
            ahead = [slice(None)] * 2
            behind = [slice(None)] * 2
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            differs = labels[tuple(ahead)] != labels[tuple(behind)]
            rim[tuple(ahead)] |= differs
            rim[tuple(behind)] |= differs
    return rim & (labels > 0)


def _panel(name: str, grey: np.ndarray, truth: np.ndarray | None, prediction: np.ndarray | None) -> np.ndarray:
    """Return one panel, (H, W, 3) uint8."""
    import numpy as np

    picture = np.repeat(grey[..., None], 3, axis=2).astype(np.float32)
    if name in ("Truth", "Prediction"):
        labels = truth if name == "Truth" else prediction
        colours = np.zeros((int(labels.max()) + 1, 3), np.float32)
        for index in np.unique(labels):
            colours[index] = class_colour(int(index)) if index else 0
        paint = colours[labels]
        alpha = np.where(labels > 0, 0.30, 0.0)
        alpha[_border(labels)] = 1.0
        picture += alpha[..., None] * (paint - picture)
    elif name == "Disagreement":
        picture *= 0.62
        wrong = truth != prediction
        for where, colour in (
            (wrong & (prediction == 0), MISSED),
            (wrong & (truth == 0), EXTRA),
            (wrong & (truth > 0) & (prediction > 0), SWAPPED),
        ):
            picture[where] += 0.85 * (np.array(_rgb(colour), np.float32) - picture[where])
        rim = _border(truth, 1) & ~wrong
        picture[rim] += 0.55 * (np.array(_INK, np.float32) - picture[rim])
    return np.clip(picture, 0, 255).astype(np.uint8)


def _font(size: int):
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _fit(pen, text: str, font, width: float) -> str:
    """Return `text` on one line, shortened in its middle to at most `width` pixels."""
    text = " ".join(text.split())
    if len(text) > 200:
        text = text[:100] + text[-100:]
    if pen.textlength(text, font=font) <= width:
        return text
    keeps, most = 1, len(text) // 2
    while keeps < most:  # characters kept at each end, by bisection
        middle = (keeps + most + 1) // 2
        if pen.textlength(f"{text[:middle]}...{text[-middle:]}", font=font) <= width:
            keeps = middle
        else:
            most = middle - 1
    return f"{text[:keeps]}...{text[-keeps:]}"


def _legend(
    cuts: CaseCuts, width: float, *, most: int = 14
) -> list[list[tuple[float, tuple[int, int, int] | None, str]]]:
    """Return the lines of the legend: entries of (offset in px, colour or None, text)."""
    from PIL import Image, ImageDraw

    pen, font = ImageDraw.Draw(Image.new("RGB", (1, 1))), _font(12)
    entries: list[tuple[tuple[int, int, int] | None, str]] = []
    for index in cuts.shown[:most]:
        score = f"  {cuts.dice[index]:.3f}" if index in cuts.dice else ""
        entries.append((class_colour(index), cuts.classes[index] + score))
    if len(cuts.shown) > most:
        entries.append((None, f"and {len(cuts.shown) - most} more"))
    if not cuts.shown and any(plane.truth is not None or plane.prediction is not None for plane in cuts.planes):
        entries.append((None, "no foreground"))
    lines = _wrap(entries, pen, font, width)
    if cuts.disagreement_ml:
        names = (("missed", MISSED), ("extra", EXTRA), ("swapped", SWAPPED))
        total = sum(cuts.disagreement_ml.values())
        words = {"swapped": "wrong class"}
        errors = [
            (_rgb(colour), f"{words.get(key, key)} {_volume(cuts.disagreement_ml[key])}") for key, colour in names
        ]
        lines += _wrap(errors if total else [(None, "truth and prediction are identical")], pen, font, width)
    return lines


def _wrap(entries, pen, font, width: float) -> list[list[tuple[float, tuple[int, int, int] | None, str]]]:
    lines, line, offset = [], [], 0.0
    for colour, text in entries:
        text = _fit(pen, text, font, min(width - 20, 230))
        length = pen.textlength(text, font=font) + (15 if colour is not None else 0)
        if line and offset + length > width:
            lines.append(line)
            line, offset = [], 0.0
        line.append((offset, colour, text))
        offset += length + 18
    return [*lines, line] if line else lines


def _volume(millilitres: float) -> str:
    digits = 3 if 0 < millilitres < 0.1 else 2 if millilitres < 10 else 0
    return f"{millilitres:.{digits}f} ml"


def _scale_bar(pen, left: int, bottom: int, width: int, scale: float, font) -> None:
    """Draw a bar of a round length in mm, about a quarter of the panel wide."""
    room = width / scale / 3.5
    length = max((step for step in (1, 2, 5, 10, 20, 50, 100, 200) if step <= room), default=None)
    if length is None:
        return
    pixels = round(length * scale)
    pen.rectangle((left + 7, bottom - 9, left + 9 + pixels, bottom - 6), fill=(0, 0, 0))
    pen.rectangle((left + 8, bottom - 8, left + 8 + pixels, bottom - 7), fill=_INK)
    pen.text((left + 8, bottom - 25), f"{length} mm", font=font, fill=_INK, stroke_width=2, stroke_fill=(0, 0, 0))
