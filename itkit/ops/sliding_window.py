"""Apply a network to a volume that is larger than the network's patch, window by window, and blend the results.

The whole volume in, the whole result out; `itkit.ops.window_stream` gives the result away piece by piece instead. NumPy and torch
arrays alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from itkit.errors import ConfigError
from itkit.ops.array_library import float32, library_of, to_device
from itkit.ops.blending import BLENDINGS, SMALLEST_WEIGHT, gaussian_profile
from itkit.ops.largest_class import largest_class
from itkit.ops.window_lattice import WindowLattice
from itkit.ops.window_loop import checked_logits, run_windows
from itkit.ops.window_means import WindowMeans

__all__ = ["BLENDINGS", "SMALLEST_WEIGHT", "gaussian_profile", "largest_class", "sliding_window_inference"]


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
    on_memory_error: Callable[[str], None] | None = None,
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
        on_memory_error: As for `itkit.ops.window_stream.stream_windows`. None: a warning is given.

    Returns:
        Logits (N, K, *spatial), float32, or labels (N, 1, *spatial) in the smallest unsigned integer type (uint8 up to 256
        classes, else int32), on `accumulate_device`.

    Raises:
        ConfigError: If sizes, stride, blending or the shape that `forward` returns make no sense.
    """
    xp = library_of(inputs)
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

    def answer(batch: Any) -> Any:
        missing = max(fill_batch_to - batch.shape[0], 0)
        filled = xp.concatenate([batch, *[batch[-1:]] * missing]) if missing else batch
        logits = forward(to_device(filled, forward_device))
        return checked_logits(logits, filled.shape[0], tuple(batch.shape[2:]))[: batch.shape[0]]

    if patch_size is None:
        total = float32(to_device(answer(inputs), accumulate_device))
        if progress is not None:
            progress(1, 1)
        return total if argmax_batchsize is None else largest_class(total, argmax_batchsize)

    size = tuple(inputs.shape[2:])
    lattice = WindowLattice(size, patch_size, patch_stride)
    margins = [
        (max(p - n, 0) // 2, max(p - n, 0) - max(p - n, 0) // 2) for n, p in zip(size, lattice.patch, strict=True)
    ]
    padded = _pad(xp, inputs, margins, pad_value)

    def gather(batch: Sequence[tuple[int, tuple[int, ...]]]) -> Any:
        parts = []
        for volume, window in batch:
            starts = [start + before for start, (before, _) in zip(lattice.corner(window), margins, strict=True)]
            place = (slice(start, start + p) for start, p in zip(starts, lattice.patch, strict=True))
            parts.append(padded[(volume, slice(None), *place)])
        return xp.stack(parts)

    means = WindowMeans(lattice, blending=blending, sigma_scale=sigma_scale, device=accumulate_device)
    cells = run_windows(
        lattice,
        means,
        gather,
        answer,
        volumes=inputs.shape[0],
        forward_batch_windows=forward_batch_windows,
        progress=progress,
        on_memory_error=on_memory_error,
    )
    if argmax_batchsize is not None:
        return xp.concatenate([largest_class(scores[None], argmax_batchsize) for _, _, scores in cells])
    total = None
    for volume, _, scores in cells:
        if total is None and inputs.shape[0] == 1:
            return scores[None]
        if total is None:
            shape = (inputs.shape[0], *scores.shape)
            total = np.empty(shape, np.float32) if xp is np else scores.new_empty(shape)
        total[volume] = scores
    return total


def _device(xp: ModuleType, inputs: Any, device: Any) -> Any:
    if xp is np:
        return None
    return inputs.device if device is None else xp.device(device)


def _pad(xp: ModuleType, array: Any, margins: Sequence[tuple[int, int]], value: float) -> Any:
    if not any(map(any, margins)):
        return array
    if xp is np:
        return np.pad(array, [(0, 0), (0, 0), *margins], constant_values=value)
    flat = [width for pair in reversed(margins) for width in pair]
    return xp.nn.functional.pad(array, flat, value=value)
