"""Overlap of two label maps: every class counted in one pass, and the measures that follow from the counts.

The rule for absent classes, stated here once and followed by every measure of this room:

* absent in the truth *and* in the prediction: undefined (NaN in arrays, ``None`` in tables), left out of every mean;
* absent in only one of them: the worst value, 0 for Dice, IoU, precision and recall.

The specificity looks at what does *not* have the class, so a class that was only missed has specificity 1; it is undefined
where no voxel is without the class.
"""

from __future__ import annotations

import numpy as np

from itkit.errors import DataError
from itkit.measures.runs import joint_runs, require_same_shape

_TABLE = 1 << 17  # labels up to here are counted by a table, larger ones are numbered first


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
    require_same_shape(truth, prediction)
    _require_integers(truth, "truth")
    _require_integers(prediction, "prediction")
    counts = np.zeros(num_classes * num_classes)
    for _, lengths, row, column in joint_runs(truth, prediction):
        _require_classes(column, "prediction", num_classes)
        if ignore_index is not None:
            kept = row != ignore_index
            lengths, row, column = lengths[kept], row[kept], column[kept]
        _require_classes(row, "truth", num_classes)
        pair = row.astype(np.intp) * num_classes + column.astype(np.intp)
        counts += np.bincount(pair, weights=lengths, minlength=counts.size)
    return counts.astype(np.int64).reshape(num_classes, num_classes)


def label_counts(
    truth: np.ndarray, prediction: np.ndarray, *, ignore_label: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Count every label that occurs in either map, whatever its number is.

    Args:
        truth: Integer or bool labels, any shape, no negative values but `ignore_label`.
        prediction: The same, of the same shape. Neither array is modified.
        ignore_label: Label of the truth whose voxels are not counted. ``None``: all voxels count.

    Returns:
        Labels, (K,) int64 ascending, and their counts, (K, 4) int64 as `class_counts` gives them.

    Raises:
        DataError: If the shapes differ, an array does not hold integers, or a label is negative.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    require_same_shape(truth, prediction)
    _require_integers(truth, "truth")
    _require_integers(prediction, "prediction")
    pieces: list[tuple[np.ndarray, ...]] = []
    table = np.zeros((3, 256))  # voxels of the truth, of the prediction, of both
    for _, lengths, first, second in joint_runs(truth, prediction):
        if ignore_label is not None:
            kept = first != ignore_label
            lengths, first, second = lengths[kept], first[kept], second[kept]
        if not len(lengths):
            continue
        _require_labels(first, "truth")
        _require_labels(second, "prediction")
        highest = max(int(first.max()), int(second.max()))
        if highest >= _TABLE:
            pieces.append((lengths, first.astype(np.uint64), second.astype(np.uint64)))
            continue
        if highest >= table.shape[1]:
            table = np.pad(table, ((0, 0), (0, highest + 1 - table.shape[1])))
        _add_runs(table, lengths, first, second)
    values = np.arange(table.shape[1], dtype=np.uint64)
    if pieces:
        lengths, first, second = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        known, numbers = np.unique(np.concatenate([values, first, second]), return_inverse=True)
        table = np.pad(table, ((0, 0), (0, len(known) - len(values))))
        _add_runs(table, lengths, *np.split(numbers[len(values) :], 2))
        values = known
    found = table[:2].any(0)
    in_truth, in_prediction, hit = table[:, found].astype(np.int64)
    total = int(table[0].sum())
    counts = [hit, in_prediction - hit, in_truth - hit, total - in_truth - in_prediction + hit]
    return values[found].astype(np.int64), np.stack(counts, axis=1)


def class_counts(matrix: np.ndarray) -> np.ndarray:
    """Return true positives, false positives, false negatives and true negatives of each class.

    Args:
        matrix: (K, K) confusion matrix, rows are the truth.

    Returns:
        (K, 4) int64, columns true positives, false positives, false negatives, true negatives. Counts of several parts
        may be added.
    """
    hit, predicted, true = np.diagonal(matrix), matrix.sum(0), matrix.sum(1)
    return np.stack([hit, predicted - hit, true - hit, matrix.sum() - predicted - true + hit], axis=1)


def dice(counts: np.ndarray) -> np.ndarray:
    """Return the Dice coefficient 2TP / (2TP + FP + FN) of each class, (K,) float64, NaN where undefined.

    Source: L. R. Dice, Measures of the amount of ecologic association between species, Ecology 26 (1945).

    Args:
        counts: (K, 4) as `class_counts` gives them.
    """
    hit, extra, missed, _ = _columns(counts)
    return _ratio(2 * hit, 2 * hit + extra + missed, counts)


def iou(counts: np.ndarray) -> np.ndarray:
    """Return intersection over union TP / (TP + FP + FN) of each class, (K,) float64, NaN where undefined.

    Args:
        counts: (K, 4) as `class_counts` gives them.
    """
    hit, extra, missed, _ = _columns(counts)
    return _ratio(hit, hit + extra + missed, counts)


def precision(counts: np.ndarray) -> np.ndarray:
    """Return TP / (TP + FP) of each class, (K,) float64: 0 where only the truth has the class, NaN where neither.

    Args:
        counts: (K, 4) as `class_counts` gives them.
    """
    hit, extra, *_ = _columns(counts)
    return _ratio(hit, hit + extra, counts)


def recall(counts: np.ndarray) -> np.ndarray:
    """Return TP / (TP + FN) of each class, (K,) float64: 0 where only the prediction has the class, NaN where neither.

    Args:
        counts: (K, 4) as `class_counts` gives them.
    """
    hit, _, missed, _ = _columns(counts)
    return _ratio(hit, hit + missed, counts)


def specificity(counts: np.ndarray) -> np.ndarray:
    """Return TN / (TN + FP) of each class, (K,) float64: NaN where neither has the class, or no voxel is without it.

    Args:
        counts: (K, 4) as `class_counts` gives them.
    """
    _, extra, _, rest = _columns(counts)
    values = _ratio(rest, rest + extra, counts)
    values[rest + extra == 0] = np.nan
    return values


OVERLAP_MEASURES = {"Dice": dice, "IoU": iou, "Precision": precision, "Recall": recall, "Specificity": specificity}
"""Measure name in configs and tables -> function of the (K, 4) counts."""


def _columns(counts: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(counts).T)


def _ratio(numerator: np.ndarray, denominator: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Divide under the rule for absent classes: NaN where the class is nowhere, 0 for 0/0 elsewhere."""
    values = np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator != 0)
    values[np.asarray(counts)[:, :3].sum(1) == 0] = np.nan
    return values


def _add_runs(table: np.ndarray, lengths: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
    """Add runs to the (3, labels) table of voxels in the truth, in the prediction, in both."""
    first, second, size = first.astype(np.intp), second.astype(np.intp), table.shape[1]
    same = first == second
    table[0] += np.bincount(first, weights=lengths, minlength=size)
    table[1] += np.bincount(second, weights=lengths, minlength=size)
    table[2] += np.bincount(first[same], weights=lengths[same], minlength=size)


def _require_integers(labels: np.ndarray, name: str) -> None:
    if labels.dtype.kind not in "iub":
        raise DataError(
            f"{name} holds {labels.dtype}, labels must be integers; convert it if the values are whole numbers."
        )


def _require_labels(labels: np.ndarray, name: str) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > np.iinfo(np.int64).max:
        raise DataError(
            f"{name} holds label {low if low < 0 else high}; labels are 0 (background) and up. Correct the label map, or "
            "name the label as the one to ignore."
        )


def _require_classes(labels: np.ndarray, name: str, num_classes: int) -> None:
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high >= num_classes:
        found = low if low < 0 else high
        raise DataError(
            f"{name} holds label {found}, but there are {num_classes} classes, labels 0 to {num_classes - 1}; "
            "correct the label map or the number of classes."
        )
