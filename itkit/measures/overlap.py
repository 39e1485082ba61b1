"""Overlap of two label maps: every class counted in one pass, and the measures that follow from the counts.

The rule for absent classes, stated here once and followed by every measure of this room:

* absent in the truth *and* in the prediction: undefined (NaN in arrays, ``None`` in tables), left out of every mean;
* absent in only one of them: the worst value, 0 for Dice, IoU, precision and recall.
"""

from __future__ import annotations

import numpy as np

from itkit.errors import DataError

_BLOCK = 1 << 15  # voxels handled at once: the combined labels of one block stay in the processor's cache


def confusion_matrix(
    truth: np.ndarray, prediction: np.ndarray, num_classes: int, *, ignore_index: int | None = None
) -> np.ndarray:
    """Count, for each pair of classes, the voxels that have the one in the truth and the other in the prediction.

    Args:
        truth: Integer or bool labels, any shape and integer type, values 0 to ``num_classes - 1``.
        prediction: The same, of the same shape. Neither array is modified.
        num_classes: Number of classes, background included.
        ignore_index: Label of the truth whose voxels are not counted, e.g. 255. ``None``: all voxels count.

    Returns:
        (num_classes, num_classes) int64, rows are the truth, columns the prediction. Matrices of parts of a volume add
        up to the matrix of the volume.

    Raises:
        DataError: If the shapes differ, an array does not hold integers, or a label is out of range.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape:
        raise DataError(
            f"truth has shape {truth.shape}, prediction has {prediction.shape}; bring both to one grid before "
            "comparing."
        )
    flat_truth = _checked_labels(truth, "truth", num_classes, ignore_index).ravel()
    flat_prediction = _checked_labels(prediction, "prediction", num_classes, None).ravel()
    if ignore_index is not None:
        kept = flat_truth != ignore_index
        if not kept.all():
            flat_truth, flat_prediction = flat_truth[kept], flat_prediction[kept]
    counts = np.zeros(num_classes * num_classes, np.int64)
    combined = np.empty(min(_BLOCK, flat_truth.size), np.intp)
    for start in range(0, flat_truth.size, _BLOCK):
        block = flat_truth[start : start + _BLOCK]
        pair = combined[: block.size]
        np.multiply(block, num_classes, out=pair, dtype=np.intp, casting="unsafe")
        np.add(pair, flat_prediction[start : start + _BLOCK], out=pair, dtype=np.intp, casting="unsafe")
        counts += np.bincount(pair, minlength=counts.size)
    return counts.reshape(num_classes, num_classes)


def class_counts(matrix: np.ndarray) -> np.ndarray:
    """Return true positives, false positives and false negatives of each class.

    Args:
        matrix: (K, K) confusion matrix, rows are the truth.

    Returns:
        (K, 3) int64, columns true positives, false positives, false negatives. Counts of several parts may be added.
    """
    hit = np.diagonal(matrix)
    return np.stack([hit, matrix.sum(0) - hit, matrix.sum(1) - hit], axis=1)


def dice(counts: np.ndarray) -> np.ndarray:
    """Return the Dice coefficient 2TP / (2TP + FP + FN) of each class, (K,) float64, NaN where undefined.

    Source: L. R. Dice, Measures of the amount of ecologic association between species, Ecology 26 (1945).

    Args:
        counts: (K, 3) as `class_counts` gives them.
    """
    hit, extra, missed = _columns(counts)
    return _ratio(2 * hit, 2 * hit + extra + missed, counts)


def iou(counts: np.ndarray) -> np.ndarray:
    """Return intersection over union TP / (TP + FP + FN) of each class, (K,) float64, NaN where undefined.

    Args:
        counts: (K, 3) as `class_counts` gives them.
    """
    hit, extra, missed = _columns(counts)
    return _ratio(hit, hit + extra + missed, counts)


def precision(counts: np.ndarray) -> np.ndarray:
    """Return TP / (TP + FP) of each class, (K,) float64: 0 where only the truth has the class, NaN where neither.

    Args:
        counts: (K, 3) as `class_counts` gives them.
    """
    hit, extra, _ = _columns(counts)
    return _ratio(hit, hit + extra, counts)


def recall(counts: np.ndarray) -> np.ndarray:
    """Return TP / (TP + FN) of each class, (K,) float64: 0 where only the prediction has the class, NaN where neither.

    Args:
        counts: (K, 3) as `class_counts` gives them.
    """
    hit, _, missed = _columns(counts)
    return _ratio(hit, hit + missed, counts)


OVERLAP_MEASURES = {"Dice": dice, "IoU": iou, "Precision": precision, "Recall": recall}
"""Measure name in configs and tables -> function of the (K, 3) counts."""


def _columns(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    counts = np.asarray(counts)
    return counts[:, 0], counts[:, 1], counts[:, 2]


def _ratio(numerator: np.ndarray, denominator: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Divide under the rule for absent classes: NaN where the class is nowhere, 0 for 0/0 elsewhere."""
    values = np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator != 0)
    values[np.asarray(counts).sum(1) == 0] = np.nan
    return values


def _checked_labels(labels: np.ndarray, name: str, num_classes: int, ignore_index: int | None) -> np.ndarray:
    if labels.dtype == bool:
        labels = labels.view(np.uint8)
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"{name} holds {labels.dtype}, labels must be integers; convert it if the values are whole numbers."
        )
    if labels.size == 0:
        return labels
    low, high = int(labels.min()), int(labels.max())
    if ignore_index is not None and (low == ignore_index or high == ignore_index):
        kept = labels[labels != ignore_index]
        low, high = (int(kept.min()), int(kept.max())) if kept.size else (0, 0)
    if low < 0 or high >= num_classes:
        found = low if low < 0 else high
        raise DataError(
            f"{name} holds label {found}, but there are {num_classes} classes, labels 0 to {num_classes - 1}; "
            "correct the label map or the number of classes."
        )
    return labels
