"""Bring the records of all processes together so that every case counts exactly once.

A distributed sampler repeats samples until every process has equally many, and one volume may arrive as slices that
different processes have seen. Here both are put right: records are known by ``(case, slice)``, never by position.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from mmengine.dist import all_gather_object

from itkit.errors import DataError


@dataclass(frozen=True)
class Record:
    """What one sample contributes to its case.

    Attributes:
        case_id: Name of the case; None if the sample has none: then its place in the data set names it.
        place: Number of the sample in the order in which the data set was gone through, over all processes.
        z_index: Number of the slice in its volume, None for a whole volume or image.
        counts: (K, 4) true positives, false positives, false negatives and true negatives.
        values: Surface measures of a whole volume, name -> (K,); None for a slice.
        maps: Packed labels of a slice for surface measures of its volume; None if none are wanted.
        spacing: Voxel spacing in mm, three numbers in order (Z, Y, X), None if the sample does not say.
    """

    case_id: str | None
    place: int
    z_index: int | None
    counts: np.ndarray
    values: dict[str, np.ndarray] | None
    maps: PackedLabels | None
    spacing: tuple[float, ...] | None


@dataclass(frozen=True)
class PackedLabels:
    """Truth and prediction of a slice, compressed: a volume's slices wait in memory until the last one is seen."""

    data: bytes
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def pack(cls, truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> PackedLabels:
        """Pack two label maps of one shape, labels below `num_classes` (in the truth also an ignored label)."""
        highest = max(num_classes - 1, int(truth.max(initial=0)))
        lowest = min(0, int(truth.min(initial=0)))
        dtype = np.promote_types(np.min_scalar_type(highest), np.min_scalar_type(lowest))
        both = np.stack([truth, prediction]).astype(dtype)
        return cls(zlib.compress(both.tobytes(), 1), both.shape, both.dtype.str)

    def unpack(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the truth and the prediction."""
        truth, prediction = np.frombuffer(zlib.decompress(self.data), self.dtype).reshape(self.shape)
        return truth, prediction


def gather_cases(records: list[Record], size: int) -> dict[str, list[Record]]:
    """Return the records of all processes by case, the cases and their slices in order of their names and numbers.

    Every process gets the same answer. Call it on all of them.

    Args:
        records: What this process has seen.
        size: Number of samples of the data set. A sample without a name whose place is `size` or more is a repetition that
            the sampler has put there to fill up.

    Raises:
        DataError: If one name (and slice) stands for two samples whose truths differ.
    """
    everything = sorted((record for part in all_gather_object(records) for record in part), key=lambda r: r.place)
    cases: dict[str, dict[int | None, Record]] = {}
    for record in everything:
        if record.case_id is None and record.place >= size:
            continue
        name = record.case_id if record.case_id is not None else f"sample_{record.place:04d}"
        slices = cases.setdefault(name, {})
        if record.z_index in slices:
            _check_repetition(name, slices[record.z_index], record)
        else:
            slices[record.z_index] = record
    for name, slices in cases.items():
        if None in slices and len(slices) > 1:
            raise DataError(f"case {name} arrived as a whole volume and as slices; give slices a z_index each.")
    return {
        name: [cases[name][z] for z in sorted(cases[name], key=lambda z: (z is not None, z))] for name in sorted(cases)
    }


def sum_counts(records: Iterable[Record]) -> np.ndarray:
    """Return the counts of a case, (K, 4): the sum over its slices."""
    return np.sum([record.counts for record in records], axis=0)


def stack_slices(name: str, records: list[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Return truth and prediction of a volume that arrived as slices, (Z, Y, X) each.

    Args:
        name: Of the case, for messages.
        records: Its slices, ordered by `z_index`.

    Raises:
        DataError: If slices are missing between the first and the last, or differ in size.
    """
    seen = [record.z_index for record in records]
    missing = sorted(set(range(seen[0], seen[-1] + 1)) - set(seen))
    if missing:
        raise DataError(
            f"case {name}: surface measures need all slices of the volume, slice {missing[0]} is missing "
            f"({len(missing)} in all); evaluate every slice, or ask for overlap measures only."
        )
    pairs = [record.maps.unpack() for record in records]
    shapes = {truth.shape for truth, _ in pairs}
    if len(shapes) > 1:
        raise DataError(f"case {name}: its slices have different sizes {sorted(shapes)}; they belong to one volume.")
    return np.stack([truth for truth, _ in pairs]), np.stack([prediction for _, prediction in pairs])


def _check_repetition(name: str, first: Record, second: Record) -> None:
    """A repeated sample has the truth of the first; its prediction may differ in the last bits of other batches."""
    if not np.array_equal(first.counts[:, [0, 2]].sum(1), second.counts[:, [0, 2]].sum(1)):
        where = "" if first.z_index is None else f", slice {first.z_index}"
        raise DataError(
            f"two different samples are called case {name}{where}; give each case its own case_id (slices of a volume: "
            "z_index)."
        )
