"""How sure a model is, from its probabilities alone: the inverse of their normalised entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_VOXELS_AT_ONCE = 1 << 14
"""Probabilities of one class of so many voxels stay in the cache."""


def inverse_entropy(probabilities: np.ndarray) -> np.ndarray:
    """Return 1 minus the entropy of each voxel's probabilities over its largest possible value, the logarithm of their number.

    1: all probability is on one class. 0: all classes are equally likely.

    Args:
        probabilities: (K, *spatial), summing to 1 along the first axis; K = 1 is the probability of the foreground, whose
            rest is the background's. Not modified.

    Returns:
        (*spatial), float32, within [0, 1].
    """
    classes, spatial = len(probabilities), probabilities.shape[1:]
    flat = probabilities.reshape(classes, -1)
    confidence = np.empty(flat.shape[1], np.float32)
    tiny = np.finfo(np.float32).tiny
    scale = np.float32(1 / np.log(max(classes, 2)))
    for start in range(0, len(confidence), _VOXELS_AT_ONCE):
        part = flat[:, start : start + _VOXELS_AT_ONCE]
        entropy = np.zeros(part.shape[1], np.float32)
        rows = part if classes > 1 else (part[0], 1 - part[0])
        for row in rows:
            share = np.maximum(row, tiny, dtype=np.float32)
            entropy -= share * np.log(share)
        confidence[start : start + _VOXELS_AT_ONCE] = 1 - scale * entropy
    return np.clip(confidence, 0, 1, out=confidence).reshape(spatial)


@dataclass(frozen=True)
class CaseConfidence:
    """What the voxels of one case come to.

    Attributes:
        case: Mean over all voxels that were predicted as foreground (any class but the first); None if there is none.
        classes: For each class, the mean over the voxels predicted as it; None if there is none.
        voxels: For each class, the number of these voxels.
    """

    case: float | None
    classes: tuple[float | None, ...]
    voxels: tuple[int, ...]


class ConfidenceSums:
    """Adds up confidence by predicted class, part by part of a volume.

    Args:
        num_classes: Classes with the background.
    """

    def __init__(self, num_classes: int):
        self._sums = np.zeros(num_classes, np.float64)
        self._voxels = np.zeros(num_classes, np.int64)

    def add(self, labels: np.ndarray, confidence: np.ndarray) -> None:
        """Take notice of some voxels.

        Args:
            labels: Predicted classes, any shape.
            confidence: Same shape.
        """
        flat, count = labels.ravel(), len(self._sums)
        self._sums += np.bincount(flat, weights=confidence.ravel(), minlength=count)
        self._voxels += np.bincount(flat, minlength=count)

    def result(self) -> CaseConfidence:
        """Return the means over all voxels so far."""
        means = [_mean(total, count) for total, count in zip(self._sums, self._voxels, strict=True)]
        return CaseConfidence(
            _mean(self._sums[1:].sum(), self._voxels[1:].sum()), tuple(means), tuple(self._voxels.tolist())
        )


def _mean(total: float, count: int) -> float | None:
    return float(total / count) if count else None


def mean_confidence(values: Sequence[float | None]) -> float | None:
    """Return the mean of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
