"""From scores of classes to labels, without a second array as large as the scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from itkit.errors import ConfigError
from itkit.ops.array_library import library_of, on_cpu

_VOXELS_AT_ONCE = 1 << 14
"""Scores of one class of so many voxels, their maxima and their labels stay in the cache."""


def largest_class(logits: Any, classes_at_once: int = 16) -> Any:
    """Return the index of the largest score along axis 1.

    On the CPU classes are compared one after the other, a few thousand voxels at a time; on other devices
    `classes_at_once` classes are.

    Args:
        logits: (N, K, *spatial), K at least 2; torch or NumPy. Not modified. Not NaN.
        classes_at_once: Classes in one chunk, at least 1.

    Returns:
        (N, 1, *spatial), uint8 for up to 256 classes, else int32. A tie goes to the lower class.

    Raises:
        ConfigError: If there is only one channel, whose largest index says nothing.
    """
    classes = logits.shape[1]
    if classes < 2:
        raise ConfigError(
            "argmax_batchsize needs at least two classes, the network returned one channel; leave it None and "
            "put a threshold on the logits."
        )
    if (
        on_cpu(logits)
        and str(logits.dtype).endswith(("float16", "float32", "float64"))
        and "bfloat" not in str(logits.dtype)
    ):
        plain = logits if isinstance(logits, np.ndarray) else logits.detach().numpy()
        labels = np.zeros((len(plain), 1, *plain.shape[2:]), np.uint8 if classes <= 256 else np.int32)
        for scores, out in zip(plain, labels[:, 0], strict=True):
            _label(scores, out)
        return labels if isinstance(logits, np.ndarray) else library_of(logits).from_numpy(labels)
    return _largest_by_chunks(logits, classes_at_once)


def labels_of_scores(scores: Any) -> Any:
    """Return `largest_class` of the scores (K, *spatial) of one volume or slab, as (*spatial)."""
    return largest_class(scores[None])[0, 0]


def _label(scores: np.ndarray, out: np.ndarray) -> None:
    """Write the index of the largest of `scores` (K, *spatial) to `out` (*spatial), which holds zeros."""
    if out.size > _VOXELS_AT_ONCE and out.ndim > 1:
        # Pieces of the slowest axes: no copy, whatever the strides are.
        step = max(1, _VOXELS_AT_ONCE * len(out) // out.size)
        if step < len(out):
            for first in range(0, len(out), step):
                piece = slice(first, first + step)
                if step == 1:
                    _label(scores[:, first], out[first])
                else:
                    _compare(scores[:, piece], out[piece])
            return
    _compare(scores, out)


def _compare(scores: np.ndarray, out: np.ndarray) -> None:
    best = scores[0].copy()
    larger = np.empty(best.shape, bool)
    index = np.empty(best.shape, out.dtype)
    for k in range(1, len(scores)):
        np.greater(scores[k], best, out=larger)
        # Indices grow, so of those that ever won the largest counts; this is faster than writing under a mask.
        np.multiply(larger.view(np.uint8), out.dtype.type(k), out=index)
        np.maximum(out, index, out=out)
        np.maximum(best, scores[k], out=best)


def _largest_by_chunks(logits: Any, classes_at_once: int) -> Any:
    xp = library_of(logits)
    dtype = xp.uint8 if logits.shape[1] <= 256 else xp.int32
    best, labels = None, None
    for first in range(0, logits.shape[1], classes_at_once):
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
