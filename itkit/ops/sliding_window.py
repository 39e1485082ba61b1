"""Apply a network to a volume that is larger than the network's patch, window by window, and blend the results.

The code keeps to operations that NumPy and torch share, so arrays of both kinds go through it.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from itkit.errors import ConfigError
from itkit.io.windows import axis_triple, window_starts

BLENDINGS = ("constant", "gaussian")
SMALLEST_WEIGHT = 1e-4
"""Floor of the Gaussian profile of one axis, relative to its peak; the product over three axes stays far above zero."""


def sliding_window_inference(
    inputs: Any,
    forward: Callable[[Any], Any],
    *,
    patch_size: int | Sequence[int] | None = None,
    patch_stride: int | Sequence[int] | None = None,
    accumulate_device: Any = None,
    forward_device: Any = None,
    forward_batch_windows: int = 2,
    fill_batch_to: int | None = None,
    argmax_batchsize: int | None = None,
    blending: str = "constant",
    sigma_scale: float = 0.125,
    pad_value: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Return the logits (or labels) of whole volumes from a network that sees one patch at a time.

    Windows start every `patch_stride` voxels; the last one of an axis is shifted inside. Where windows overlap, the
    logits are averaged with the weights of `blending`. An axis shorter than the patch is padded on both sides (the odd
    voxel at the end) with `pad_value`, and the result is cropped back.

    The windows of one call go through `forward` in batches of nearly equal size, at most `forward_batch_windows`: nine
    windows with a limit of four run as 3 + 3 + 3. Only `fill_batch_to` makes a batch larger than the windows in it.

    Args:
        inputs: (N, C, *spatial) with two or three spatial axes; torch tensor or NumPy array. Not modified.
        forward: Maps windows (B, C, *patch) to logits (B, K, *patch). Gradients are the caller's business: wrap the call
            in ``torch.no_grad()`` or ``torch.inference_mode()``.
        patch_size: Voxels of a window, one number or one per axis. ``None``: no windows, one `forward` of all inputs.
        patch_stride: Voxels between windows, at most the patch. ``None``: half the patch, rounded up.
        accumulate_device: Where the sum over windows is kept, e.g. ``"cpu"`` when K volumes do not fit on the GPU.
            ``None``: the device of `inputs`. Torch only.
        forward_device: Where the windows are sent for `forward`. ``None``: the device of `inputs`. Torch only.
        forward_batch_windows: Most windows in one `forward`.
        fill_batch_to: A batch of fewer windows is filled by repeating its last window, and the answers to the copies are
            dropped. ``None``: 2 where torch runs on the CPU, because one single 3D window takes a slow convolution path there
            (4 times the time of two, measured with a UNet on one thread); 1, that is no filling, everywhere else.
        argmax_batchsize: ``None``: return logits. A number: return labels, the index of the largest logit, found in
            chunks of that many classes; beside the sum over windows only one chunk's maxima exist at a time, where
            a softmax or a full-size ``argmax`` would hold more. A tie goes to the lower class.
        blending: ``"constant"``: plain mean. ``"gaussian"``: windows count most in their centre.
        sigma_scale: Standard deviation of the Gaussian as a part of the patch.
        pad_value: Intensity of padded voxels.
        progress: Called with (windows done, windows in all) after each batch.

    Returns:
        Logits (N, K, *spatial), float32, or labels (N, 1, *spatial) in the smallest unsigned integer type (uint8 up to 256
        classes, else int32), on `accumulate_device`.

    Raises:
        ConfigError: If sizes, stride, blending or the shape that `forward` returns make no sense.
    """
    xp = _namespace(inputs)
    axes = inputs.ndim - 2
    if axes not in (2, 3):
        raise ConfigError(
            f"sliding window needs inputs (N, C, Y, X) or (N, C, Z, Y, X); found shape {tuple(inputs.shape)}."
        )
    if blending not in BLENDINGS:
        raise ConfigError(f"blending {blending!r} is unknown; choose one of {', '.join(BLENDINGS)}.")
    if forward_batch_windows < 1:
        raise ConfigError(f"forward_batch_windows must be at least 1; found {forward_batch_windows}.")
    if fill_batch_to is not None and fill_batch_to < 1:
        raise ConfigError(f"fill_batch_to must be at least 1 or None; found {fill_batch_to}.")
    if argmax_batchsize is not None and argmax_batchsize < 1:
        raise ConfigError(f"argmax_batchsize must be at least 1 class or None; found {argmax_batchsize}.")
    forward_device = _device(xp, inputs, forward_device)
    accumulate_device = _device(xp, inputs, accumulate_device)
    if fill_batch_to is None:
        fill_batch_to = 2 if forward_device is not None and forward_device.type == "cpu" else 1

    def answer(batch: Any, size: tuple[int, ...]) -> Any:
        missing = max(fill_batch_to - batch.shape[0], 0)
        filled = xp.concatenate([batch, *[batch[-1:]] * missing]) if missing else batch
        return _checked(forward(_to(filled, forward_device)), filled.shape[0], size)[: batch.shape[0]]

    if patch_size is None:
        total = _float32(_to(answer(inputs, tuple(inputs.shape[2:])), accumulate_device))
        if progress is not None:
            progress(1, 1)
        return total if argmax_batchsize is None else largest_class(total, argmax_batchsize)

    patch = axis_triple("patch_size", patch_size, axes)
    stride = (
        tuple(-(-p // 2) for p in patch) if patch_stride is None else axis_triple("patch_stride", patch_stride, axes)
    )
    margins = [
        (max(p - s, 0) // 2, max(p - s, 0) - max(p - s, 0) // 2) for s, p in zip(inputs.shape[2:], patch, strict=True)
    ]
    padded = _pad(xp, inputs, margins, pad_value)
    spatial = tuple(padded.shape[2:])
    starts = [window_starts(*numbers) for numbers in zip(spatial, patch, stride, strict=True)]
    profiles = [_profile(p, blending, sigma_scale) for p in patch]
    weight = None if blending == "constant" else _to(_outer(xp, profiles), accumulate_device)

    windows = [
        (n, tuple(slice(start, start + p) for start, p in zip(corner, patch, strict=True)))
        for n in range(inputs.shape[0])
        for corner in itertools.product(*starts)
    ]
    total, done = None, 0
    for batch in _even_batches(windows, forward_batch_windows):
        stacked = xp.stack([padded[(n, slice(None), *box)] for n, box in batch])
        logits = answer(stacked, patch)
        if total is None:
            total = _zeros(xp, (inputs.shape[0], logits.shape[1], *spatial), accumulate_device)
        for (n, box), window in zip(batch, _to(logits, accumulate_device), strict=True):
            _add(total[(n, slice(None), *box)], window, weight)
        done += len(batch)
        if progress is not None:
            progress(done, len(windows))

    inside = tuple(slice(before, before + size) for (before, _), size in zip(margins, inputs.shape[2:], strict=True))
    total = total[(slice(None), slice(None), *inside)]
    if argmax_batchsize is not None:
        return largest_class(total, argmax_batchsize)  # dividing by a positive weight moves no maximum
    if weight is not None or any(
        len(s) > 1 and s[1] - s[0] < p or len(s) > 2 for s, p in zip(starts, patch, strict=True)
    ):
        # The windows form a lattice, so the sum of their weights is a product of one profile per axis.
        sums = [
            _summed(profile, s, size)[box]
            for profile, s, size, box in zip(profiles, starts, spatial, inside, strict=True)
        ]
        total /= _to(_outer(xp, sums), accumulate_device)
    return total


def largest_class(logits: Any, classes_at_once: int) -> Any:
    """Return the index of the largest logit along axis 1, comparing `classes_at_once` classes at a time.

    Args:
        logits: (N, K, *spatial), K at least 2; torch or NumPy. Not modified.
        classes_at_once: Classes in one chunk, at least 1.

    Returns:
        (N, 1, *spatial), uint8 for up to 256 classes, else int32. A tie goes to the lower class.

    Raises:
        ConfigError: If there is only one channel, whose largest index says nothing.
    """
    xp = _namespace(logits)
    classes = logits.shape[1]
    if classes < 2:
        raise ConfigError(
            "argmax_batchsize needs at least two classes, the network returned one channel; leave it None and "
            "put a threshold on the logits."
        )
    dtype = xp.uint8 if classes <= 256 else xp.int32
    best, labels = None, None
    for first in range(0, classes, classes_at_once):
        chunk = logits[:, first : first + classes_at_once]
        if xp is np:
            index = np.argmax(chunk, axis=1, keepdims=True)
            value = np.take_along_axis(chunk, index, axis=1)
        else:
            value, index = chunk.max(dim=1, keepdim=True)
        index = (index + first).astype(dtype) if xp is np else (index + first).to(dtype)
        if best is None:
            best, labels = value, index
        else:
            better = value > best
            best, labels = xp.where(better, value, best), xp.where(better, index, labels)
    return labels


def gaussian_profile(patch: int, sigma_scale: float = 0.125) -> np.ndarray:
    """Return the blending weights of one axis: a Gaussian about the centre with peak 1, never below `SMALLEST_WEIGHT`.

    Args:
        patch: Voxels of the window.
        sigma_scale: Standard deviation as a part of `patch`.

    Returns:
        (patch,), float64. The weights of a window are the product of one profile per axis.

    Raises:
        ConfigError: If `sigma_scale` is not positive.
    """
    if not sigma_scale > 0:
        raise ConfigError(f"sigma_scale must be positive; found {sigma_scale}.")
    distance = (np.arange(patch) - (patch - 1) / 2) / (sigma_scale * patch)
    return np.maximum(np.exp(-0.5 * distance**2), SMALLEST_WEIGHT)


def _profile(patch: int, blending: str, sigma_scale: float) -> np.ndarray:
    return np.ones(patch) if blending == "constant" else gaussian_profile(patch, sigma_scale)


def _summed(profile: np.ndarray, starts: Sequence[int], size: int) -> np.ndarray:
    """Return the sum of the profiles of all windows along one axis of `size` voxels."""
    total = np.zeros(size)
    for start in starts:
        total[start : start + len(profile)] += profile
    return total


def _outer(xp: ModuleType, profiles: Sequence[np.ndarray]) -> Any:
    """Return the product of one profile per axis, float32, in the library of `xp`."""
    product = np.ones(())
    for profile in profiles:
        product = product[..., None] * profile
    product = product.astype(np.float32)
    return product if xp is np else xp.from_numpy(product)


def _even_batches(items: Sequence[Any], most: int) -> list[Sequence[Any]]:
    """Cut `items` into as few runs as `most` allows, whose lengths differ by one at most."""
    count = math.ceil(len(items) / most)
    edges = [round(i * len(items) / count) for i in range(count + 1)]
    return [items[a:b] for a, b in itertools.pairwise(edges)]


def _checked(logits: Any, batch: int, patch: tuple[int, ...]) -> Any:
    """Return `logits` if they are (batch, K, *patch)."""
    shape = getattr(logits, "shape", None)
    if shape is None:
        raise ConfigError(
            f"the network returned a {type(logits).__name__} for a window; a sliding window needs one array of "
            "logits. With deep supervision, pass a forward that returns the full-resolution output."
        )
    if len(shape) != len(patch) + 2 or shape[0] != batch or tuple(shape[2:]) != tuple(patch):
        raise ConfigError(
            f"the network returned shape {tuple(shape)} for windows of shape {(batch, 'C', *patch)}; it must be "
            f"{(batch, 'K', *patch)}, the same size as its input."
        )
    return logits


def _namespace(array: Any) -> ModuleType:
    return np if isinstance(array, np.ndarray) else importlib.import_module("torch")


def _device(xp: ModuleType, inputs: Any, device: Any) -> Any:
    if xp is np:
        return None
    return inputs.device if device is None else xp.device(device)


def _to(array: Any, device: Any) -> Any:
    return array if device is None else array.to(device)


def _float32(array: Any) -> Any:
    return array.astype(np.float32, copy=False) if isinstance(array, np.ndarray) else array.float()


def _add(total: Any, window: Any, weight: Any) -> None:
    """Add ``window * weight`` to `total` in place, in float32; torch does it in one pass."""
    if weight is None:
        total += window
    elif isinstance(total, np.ndarray):
        total += window * weight
    else:
        total.addcmul_(window.float(), weight)


def _zeros(xp: ModuleType, shape: tuple[int, ...], device: Any) -> Any:
    return np.zeros(shape, np.float32) if xp is np else xp.zeros(shape, dtype=xp.float32, device=device)


def _pad(xp: ModuleType, array: Any, margins: Sequence[tuple[int, int]], value: float) -> Any:
    if not any(map(any, margins)):
        return array
    if xp is np:
        return np.pad(array, [(0, 0), (0, 0), *margins], constant_values=value)
    flat = [width for pair in reversed(margins) for width in pair]
    return xp.nn.functional.pad(array, flat, value=value)
