"""From an image as it was read to what a network takes: each step once, for the transforms of training and for prediction.

A step is data, ``{"type": <name of the transform>, **arguments}``, so that it can travel with a model; `STEPS` says what each
name does.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError, DataError, UsageError
from itkit.io import intensity
from itkit.io.geometry import Geometry
from itkit.io.orientation import Turning, reoriented_geometry, require_code, turning
from itkit.io.resampling import resample_to_spacing
from itkit.io.volumes import Volume

MASKS = ("all", "nonzero", "positive")
"""Which voxels the statistics of a channel are taken from."""
NONFINITE = ("error", "zero")
"""What becomes of NaN and infinite intensities."""
PAD_MODES = ("constant", "edge", "reflect")
PAD_POSITIONS = ("centre", "start")
WITHOUT_EFFECT = ("MapLabels", "BinariseLabel", "PackSeg3DInputs", "PackSeg2DInputs")
"""Transforms that leave the image alone, or only pack it as float32, which is done in any case."""


@dataclass(frozen=True)
class Prepared:
    """An image on the way to a network, and how its grid lies to the one it was read on.

    Attributes:
        image: (C, Z, Y, X).
        geometry: The image's grid now; size, spacing and direction are kept up, the origin is that of the first voxel.
        native_size_zyx: Voxels of the grid as read, along the axes of `image`.
        turning: How the axes of the grid as read became those of `image`.
        scale_zyx: Voxel i of the grid as read (along the axes of `image`) lies at ``shift + scale * i`` of `image`.
        shift_zyx: See `scale_zyx`.
    """

    image: np.ndarray
    geometry: Geometry
    native_size_zyx: tuple[int, int, int]
    turning: Turning = Turning()
    scale_zyx: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shift_zyx: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def size_zyx(self) -> tuple[int, int, int]:
        """Voxels of `image`."""
        return tuple(self.image.shape[1:])

    @property
    def is_on_native_grid(self) -> bool:
        """Whether each voxel of `image` is one of the grid as read, but for the order of the axes."""
        return self.size_zyx == self.native_size_zyx and set(self.scale_zyx) == {1.0} and set(self.shift_zyx) == {0.0}

    def native_positions(self) -> list[np.ndarray]:
        """Return, for each axis of `image`, where the voxels of the grid as read lie, in voxels of `image`."""
        return [
            shift + scale * np.arange(size)
            for size, scale, shift in zip(self.native_size_zyx, self.scale_zyx, self.shift_zyx, strict=True)
        ]


def prepare(volume: Volume, steps: Sequence[Mapping[str, Any]], *, name: str | None = None) -> Prepared:
    """Do `steps` with an image.

    Args:
        volume: (Z, Y, X) or (C, Z, Y, X). Not modified.
        steps: What `steps_of_pipeline` returns, or the like.
        name: File or case to name in a message.

    Returns:
        The image, float32, C-contiguous; its array may be the volume's own where there is nothing to do.

    Raises:
        ConfigError: If a step is unknown or has wrong arguments.
        DataError: If an intensity is not finite (unless a step ``LoadVolume`` says ``nonfinite="zero"``).
    """
    check_steps(steps)
    image = volume.array if volume.array.ndim == 4 else volume.array[None]
    state = Prepared(image, volume.geometry, volume.size_zyx)
    if not steps or steps[0]["type"] != "LoadVolume":
        state = STEPS["LoadVolume"](state, path=name)
    for step in steps:
        arguments = {key: value for key, value in step.items() if key != "type"}
        if step["type"] == "LoadVolume":
            arguments["path"] = name
        state = STEPS[step["type"]](state, **arguments)
    return dataclasses.replace(state, image=packed(state.image))


def check_steps(steps: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a step that is unknown, or whose arguments it does not take.

    Raises:
        ConfigError: If so; the steps that can be done are named.
    """
    for step in steps:
        kind = step.get("type") if isinstance(step, Mapping) else None
        if kind not in STEPS:
            raise ConfigError(
                f"preprocessing has no step {kind!r}.{did_you_mean(str(kind), STEPS)} It can do {', '.join(STEPS)}."
            )
        allowed = [key for key in inspect.signature(STEPS[kind]).parameters if key not in ("state", "path")]
        for key in step:
            if key != "type" and key not in allowed:
                raise ConfigError(f"preprocessing step {kind} takes no {key!r}; it takes {', '.join(allowed)}.")


def steps_of_pipeline(pipeline: Sequence[Any]) -> tuple[list[dict[str, Any]], int | None]:
    """Return the steps that a test pipeline does with an image.

    Args:
        pipeline: Config dicts with ``type`` (a class or a name) and arguments, as a dataset takes them.

    Returns:
        The steps as plain data, and how many neighbouring slices come along as channels where the pipeline ends by taking
        slices (``ExtractSlices``); None where it gives whole volumes.

    Raises:
        ConfigError: If a transform cannot be done without the training code, is random, or its arguments are not plain.
    """
    steps: list[dict[str, Any]] = []
    neighbours: int | None = None
    for entry in pipeline:
        kind = entry.get("type") if isinstance(entry, Mapping) else entry
        name = _name_of(kind)
        short = name.removeprefix("itkit.")
        if short in WITHOUT_EFFECT:
            continue
        arguments = {key: entry[key] for key in entry if key != "type"} if isinstance(entry, Mapping) else {}
        if neighbours is not None:
            raise ConfigError(
                f"the test pipeline does {name} after it has taken slices; prediction does all steps with the volume. Put "
                "ExtractSlices last, before the packing."
            )
        if short == "ExtractSlices":
            if arguments.get("axis", 0) != 0 or arguments.get("step", 1) != 1:
                raise ConfigError("the test pipeline takes slices along another axis than Z, or leaves some out.")
            neighbours = int(arguments.get("neighbours", 0))
            continue
        for key in {"LoadVolume": ("with_label", "check_labels"), "TypeConvert": ("label",)}.get(short, ()):
            arguments.pop(key, None)
        if short == "PadToSize":
            arguments.pop("label_value", None)
        if short not in STEPS:
            raise ConfigError(
                f"the test pipeline holds {name}, which cannot be done outside of it.{did_you_mean(short, STEPS)} A model "
                f"can be used where its test pipeline is made of {', '.join(STEPS)}, and of transforms of labels."
            )
        steps.append({"type": short, **{key: _plain(value, name, key) for key, value in arguments.items()}})
    check_steps(steps)
    return steps, neighbours


# ---- the formulas; arrays (C, *spatial) of two or three spatial axes ----


def finite(image: np.ndarray, nonfinite: str = "error", path: Any = None) -> np.ndarray:
    """Return `image` if it holds no NaN and nothing infinite, or a copy with 0 in their places.

    Args:
        image: Any shape and type.
        nonfinite: ``"error"`` refuses them, ``"zero"`` replaces them.
        path: File to name in the message.

    Raises:
        DataError: If there are some and they are refused; says how many.
    """
    if image.dtype.kind != "f":
        return image
    with np.errstate(over="ignore", invalid="ignore"):  # one pass tells in nearly all cases
        if np.isfinite(image.sum(dtype=np.float64)):
            return image
    wrong = ~np.isfinite(image)
    count = int(np.count_nonzero(wrong))
    if count and nonfinite == "error":
        raise DataError(
            f"{count} voxels are NaN or infinite. Repair the file, or read it with LoadVolume(nonfinite='zero').", path
        )
    return np.where(wrong, image.dtype.type(0), image)


def statistics_mask(channel: np.ndarray, name: str) -> np.ndarray | None:
    """Return the boolean mask of one channel that one of `MASKS` means, or None where all voxels count."""
    if name == "all":
        return None
    return channel != 0 if name == "nonzero" else channel > 0


def zscore_channels(image: np.ndarray, mask: str = "all") -> np.ndarray:
    """Return each channel with mean 0 and standard deviation 1, float32 (`itkit.io.intensity.zscore`)."""
    return np.stack([intensity.zscore(channel, statistics_mask(channel, mask)) for channel in image])


def scale_channels(
    image: np.ndarray, lower: float = 0.5, upper: float = 99.5, mask: str = "all", clip: bool = True
) -> np.ndarray:
    """Return each channel with two of its percentiles at 0 and 1, float32 (`itkit.io.intensity.percentile_scale`)."""
    return np.stack(
        [
            intensity.percentile_scale(channel, lower, upper, mask=statistics_mask(channel, mask), clip=clip)
            for channel in image
        ]
    )


def clip_channels(image: np.ndarray, lower: float = 0.5, upper: float = 99.5, mask: str = "all") -> np.ndarray:
    """Return each channel cut to the range between two of its percentiles (`itkit.io.intensity.clip_percentiles`)."""
    return np.stack(
        [intensity.clip_percentiles(channel, lower, upper, mask=statistics_mask(channel, mask)) for channel in image]
    )


def resample_channels(
    image: np.ndarray, old_zyx: Sequence[float], new_zyx: Sequence[float | None]
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Return an image (C, Z, Y, X) at another spacing in mm (`itkit.io.resampling.resample_to_spacing`), and that spacing."""
    channels = [resample_to_spacing(Volume(channel, tuple(old_zyx)), new_zyx, kind="image") for channel in image]
    return np.stack([channel.array for channel in channels]), tuple(channels[0].spacing_zyx)


def pad_margins(
    shape: Sequence[int], size: Sequence[int] | None, divisor: int | None, position: str
) -> list[tuple[int, int]]:
    """Return the voxels to add before and behind each axis.

    Args:
        shape: Voxels that are there.
        size: Voxels that there must be at least; None: any number.
        divisor: What the number must be a multiple of; None: 1.
        position: ``"centre"``: half on each side, the odd voxel behind; ``"start"``: all behind.
    """
    step = divisor or 1
    target = [-(-max(t, n) // step) * step for t, n in zip(shape if size is None else size, shape, strict=True)]
    before = [(t - n) // 2 if position == "centre" else 0 for t, n in zip(target, shape, strict=True)]
    return [(b, t - n - b) for b, t, n in zip(before, target, shape, strict=True)]


def pad(array: np.ndarray, margins: Sequence[tuple[int, int]], mode: str, value: float) -> np.ndarray:
    """Return `array` with `margins` around it: `value` in them, or its ``"edge"`` continued, or mirrored (``"reflect"``)."""
    if mode != "constant":
        return np.pad(array, margins, mode=mode if mode == "edge" else "symmetric")
    shape = [n + a + b for n, (a, b) in zip(array.shape, margins, strict=True)]
    padded = np.full(shape, value, array.dtype)
    padded[tuple(slice(a, a + n) for n, (a, _) in zip(array.shape, margins, strict=True))] = array
    return padded


def packed(image: np.ndarray) -> np.ndarray:
    """Return `image` as a network takes it: float32, contiguous."""
    return np.ascontiguousarray(image, dtype=np.float32)


# ---- the same as steps ----


def _load(state: Prepared, nonfinite: str = "error", path: Any = None) -> Prepared:
    if nonfinite not in NONFINITE:
        raise ConfigError(f"LoadVolume: nonfinite must be one of {', '.join(NONFINITE)}; found {nonfinite!r}.")
    return dataclasses.replace(state, image=finite(state.image, nonfinite, path))


def _orient(state: Prepared, orientation: str) -> Prepared:
    try:
        require_code(orientation)
    except UsageError as error:
        raise ConfigError(f"Orient: {error}") from error
    turn = turning(state.geometry, orientation)
    size, native = state.size_zyx, state.native_size_zyx
    shift = [
        (n - 1) - b - a * (m - 1) if flipped else b
        for n, m, a, b, flipped in (
            (size[axis], native[axis], state.scale_zyx[axis], state.shift_zyx[axis], flipped)
            for axis, flipped in zip(turn.axes_zyx, turn.flipped_zyx, strict=True)
        )
    ]
    return Prepared(
        turn.turned(state.image),
        reoriented_geometry(state.geometry, orientation),
        tuple(native[axis] for axis in turn.axes_zyx),
        state.turning.followed_by(turn),
        tuple(state.scale_zyx[axis] for axis in turn.axes_zyx),
        tuple(float(value) for value in shift),
    )


def _resample(state: Prepared, spacing_zyx: Sequence[float | None]) -> Prepared:
    old = state.geometry
    image, spacing = resample_channels(state.image, old.spacing_zyx, spacing_zyx)
    ratio = [was / now for was, now in zip(old.spacing_zyx, spacing, strict=True)]
    return dataclasses.replace(
        state,
        image=image,
        geometry=Geometry(tuple(image.shape[1:]), spacing, old.origin_xyz, old.direction_xyz),
        scale_zyx=tuple(a * r for a, r in zip(state.scale_zyx, ratio, strict=True)),
        shift_zyx=tuple(b * r for b, r in zip(state.shift_zyx, ratio, strict=True)),
    )


def _pad(
    state: Prepared,
    size: int | Sequence[int | None] | None = None,
    divisor: int | None = None,
    mode: str = "constant",
    value: float | str = 0.0,
    position: str = "centre",
) -> Prepared:
    if mode not in PAD_MODES or position not in PAD_POSITIONS:
        raise ConfigError(f"PadToSize: mode {mode!r} or position {position!r} is unknown.")
    shape = state.size_zyx
    wanted = (size,) * 3 if size is None or isinstance(size, int) else tuple(size)
    margins = pad_margins(shape, [n if w is None else w for w, n in zip(wanted, shape, strict=True)], divisor, position)
    if not any(map(any, margins)):
        return state
    fill = state.image.min() if value == "min" else value
    image = pad(state.image, [(0, 0), *margins], mode, fill)
    old = state.geometry
    step_xyz = [-before * spacing for (before, _), spacing in zip(margins, old.spacing_zyx, strict=True)][::-1]
    origin = np.asarray(old.origin_xyz) + np.reshape(old.direction_xyz, (3, 3)) @ step_xyz
    return dataclasses.replace(
        state,
        image=image,
        geometry=Geometry(tuple(image.shape[1:]), old.spacing_zyx, tuple(origin.tolist()), old.direction_xyz),
        shift_zyx=tuple(b + before for b, (before, _) in zip(state.shift_zyx, margins, strict=True)),
    )


def _window(state: Prepared, level: float, width: float) -> Prepared:
    return dataclasses.replace(state, image=intensity.window(state.image, level, width))


def _zscore(state: Prepared, mask: str = "all") -> Prepared:
    return dataclasses.replace(state, image=zscore_channels(state.image, _checked_mask(mask)))


def _scale(state: Prepared, lower: float = 0.5, upper: float = 99.5, mask: str = "all", clip: bool = True) -> Prepared:
    return dataclasses.replace(state, image=scale_channels(state.image, lower, upper, _checked_mask(mask), clip))


def _clip(state: Prepared, lower: float = 0.5, upper: float = 99.5, mask: str = "all") -> Prepared:
    return dataclasses.replace(state, image=clip_channels(state.image, lower, upper, _checked_mask(mask)))


def _convert(state: Prepared, image: str | None = "float32") -> Prepared:
    return state if image is None else dataclasses.replace(state, image=state.image.astype(image, copy=False))


def _checked_mask(mask: str) -> str:
    if mask not in MASKS:
        raise ConfigError(f"mask must be one of {', '.join(MASKS)}; found {mask!r}.")
    return mask


STEPS: dict[str, Callable[..., Prepared]] = {
    "LoadVolume": _load,
    "Orient": _orient,
    "ResampleToSpacing": _resample,
    "PadToSize": _pad,
    "TypeConvert": _convert,
    "Window": _window,
    "ZScore": _zscore,
    "PercentileScale": _scale,
    "ClipPercentiles": _clip,
}
"""Name of a transform -> what it does with an image."""


def _name_of(kind: Any) -> str:
    if isinstance(kind, str):
        return kind
    module = getattr(kind, "__module__", None) or type(kind).__module__
    name = getattr(kind, "__name__", None) or type(kind).__name__
    return name if module.partition(".")[0] == "itkit" else f"{module.partition('.')[0]}.{name}"


def _plain(value: Any, name: str, key: str) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item, name, key) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    raise ConfigError(f"the test pipeline gives {name} a {key} of type {type(value).__name__}, which is no plain data.")
