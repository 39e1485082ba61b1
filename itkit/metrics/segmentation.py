"""The metric of segmentation experiments: overlap and surface measures per class and per case, exact on any process count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

from itkit.errors import ConfigError, DataError, UsageError
from itkit.measures.case import OVERLAP_MEASURES, SURFACE_MEASURES, check_measures, overlap_values, surface_values
from itkit.measures.overlap import class_counts, confusion_matrix
from itkit.measures.statistics import summarise
from itkit.metrics.collect import PackedLabels, Record, gather_cases, stack_slices, sum_counts
from itkit.registry import METRICS


@METRICS.register_module()
class SegmentationMetric(BaseMetric):
    """Compare predicted with true label maps, case by case.

    In a config: ``val_evaluator = dict(type=SegmentationMetric)`` for Dice alone, and for a test
    ``dict(type=SegmentationMetric, measures=("Dice", "IoU", "Precision", "Recall", "HD95", "NSD"), nsd_tolerance_mm=1.0)``.

    Definitions, sources and the rule for absent classes: `itkit.measures.overlap` and `itkit.measures.surface`. In short: a
    class that neither truth nor prediction has is undefined for the case and left out of the mean; one that only one of them
    has gets 0, and as a distance the diagonal of the image. The mean is that over cases of each class, then over classes
    (`itkit.measures.statistics`).

    Every case counts exactly once on any number of processes: records are gathered by ``case_id`` and what a sampler has
    repeated to fill up is dropped. Samples with a ``z_index`` are slices of a volume: their counts are added up, so a 2D
    experiment gets the Dice of volumes; for surface measures the slices are put together first, and all of them from the
    first to the last seen must be there. A sample without ``case_id`` is called ``sample_<number in the data set>`` (the
    engine's samplers deal samples out in turn; without that order give names). Samples without a truth are skipped and
    counted.

    After `evaluate`, the same on every process:

    * `case_rows`: one mapping a case, ``{"case_id": ..., "Dice/<class>": number or None, ...}``, sorted by name;
    * `summary`: ``{"Dice": {"mean": ..., "per_class": {...}, "ci95": [low, high]}, ...}``, None where undefined;
    * `unlabelled`: number of samples that were skipped because they have no truth.

    Args:
        measures: Names out of Dice, IoU, Precision, Recall, Specificity (fractions), HD95, HD, ASSD (mm), NSD (fraction).
        nsd_tolerance_mm: Distance in mm that the normalised surface Dice still takes for agreement.
        classes: Names of all classes, background first. ``None``: those of the data set's metainfo.
        ignore_background: Leave class 0 out of rows and means. Surface measures never include it.
        ignore_index: Label of the truth whose voxels are not looked at. ``None``: there is none.
        seed: Of the bootstrap that gives the confidence intervals.
        prefix: Put in front of the names in what `evaluate` returns, with a slash.
        collect_device: Accepted for MMEngine's sake; records are small and gathered as objects.

    Raises:
        UsageError: If a measure has an unknown name, or the tolerance is negative.
    """

    default_prefix = ""

    def __init__(
        self,
        measures: Sequence[str] = ("Dice",),
        *,
        nsd_tolerance_mm: float = 1.0,
        classes: Sequence[str] | None = None,
        ignore_background: bool = True,
        ignore_index: int | None = None,
        seed: int = 0,
        prefix: str | None = None,
        collect_device: str = "cpu",
    ):
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.measures = check_measures(measures)
        if not nsd_tolerance_mm >= 0:
            raise UsageError(f"nsd_tolerance_mm must be 0 or more; found {nsd_tolerance_mm}.")
        self.nsd_tolerance_mm = float(nsd_tolerance_mm)
        self.classes = None if classes is None else tuple(classes)
        self.ignore_background = ignore_background
        self.ignore_index = ignore_index
        self.seed = seed
        self.case_rows: list[dict[str, Any]] = []
        self.summary: dict[str, dict[str, Any]] = {}
        self.unlabelled = 0
        self._seen = 0
        self._unlabelled_here: set[str | int] = set()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes, background first.

        Raises:
            ConfigError: If neither the metric nor the data set knows them.
        """
        names = self.classes or (self.dataset_meta or {}).get("classes")
        if not names:
            raise ConfigError(
                f"{type(self).__name__} does not know the classes: give classes=('background', ...) to the metric or put "
                "them into the data set's metainfo."
            )
        return tuple(names)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Measure the samples of one batch.

        Args:
            data_batch: Not looked at.
            data_samples: Each with ``pred_sem_seg`` and ``gt_sem_seg`` (``{"data": (1, Z, Y, X) or (1, Y, X) integers}``;
                no truth: skipped), and where known ``case_id``, ``z_index`` and ``spacing_zyx`` in mm.

        Raises:
            DataError: If a label is out of range, the shapes differ, or surface measures are asked for without a spacing;
                the case is named.
        """
        for sample in data_samples:
            place = self._seen * get_world_size() + get_rank()
            self._seen += 1
            truth = sample.get("gt_sem_seg")
            if truth is None:
                self._unlabelled_here.add(sample.get("case_id") or place)
                continue
            self.results.append(self._record(sample, _labels(truth), _labels(sample["pred_sem_seg"]), place))

    def evaluate(self, size: int) -> dict[str, float]:
        """Return ``{"Dice": mean, "Dice/<class>": mean over cases, ...}`` over the cases of all processes, NaN if undefined.

        Args:
            size: Number of samples of the data set.

        Raises:
            DataError: If two different samples have one name, or a volume is incomplete (see `collect.gather_cases`).
        """
        records, self.results = self.results, []
        skipped, self._unlabelled_here, self._seen = self._unlabelled_here, set(), 0
        everywhere = set().union(*all_gather_object(skipped))
        self.unlabelled = sum(isinstance(name, str) or name < size for name in everywhere)
        if self.unlabelled:
            MMLogger.get_current_instance().warning(
                f"{self.unlabelled} of {size} samples have no truth and are not evaluated."
            )
        flat = self.compute_metrics(list(gather_cases(records, size).items()))
        return {f"{self.prefix}/{name}": value for name, value in flat.items()} if self.prefix else flat

    def compute_metrics(self, results: list[tuple[str, list[Record]]]) -> dict[str, float]:
        """Fill `case_rows` and `summary` from the records of each case, and return the flat means.

        Args:
            results: ``(case name, its records)``, every case once.
        """
        names = self.class_names
        first = 1 if self.ignore_background else 0
        self.case_rows = []
        for case, records in results:
            values = self._case_values(case, records)
            row: dict[str, Any] = {"case_id": case}
            for measure in self.measures:
                for label in range(first, len(names)):
                    value = float(values[measure][label])
                    row[f"{measure}/{names[label]}"] = None if math.isnan(value) else value
            self.case_rows.append(row)
        flat: dict[str, float] = {}
        self.summary = {}
        for measure in self.measures:
            self.summary[measure] = told = summarise(self.case_rows, measure, names[first:], seed=self.seed)
            flat[measure] = _or_nan(told["mean"])
            flat.update({f"{measure}/{name}": _or_nan(value) for name, value in told["per_class"].items()})
        return flat

    def _record(self, sample: dict, truth: np.ndarray, prediction: np.ndarray, place: int) -> Record:
        case_id = sample.get("case_id")
        name = case_id if case_id is not None else f"sample_{place:04d}"
        z_index = sample.get("z_index")
        spacing = sample.get("spacing_zyx")
        num_classes = len(self.class_names)
        values = maps = None
        try:
            matrix = confusion_matrix(truth, prediction, num_classes, ignore_index=self.ignore_index)
            if any(measure in SURFACE_MEASURES for measure in self.measures):
                if spacing is None:
                    raise DataError(
                        "surface measures are in mm and the sample has no spacing_zyx; pack it as metainfo."
                    )
                if z_index is None:
                    values = self._surface(truth, prediction, spacing)
                else:
                    maps = PackedLabels.pack(truth, prediction, num_classes)
        except DataError as error:
            raise type(error)(f"case {name}: {error.message}", error.path) from error
        return Record(
            case_id=case_id,
            place=place,
            z_index=None if z_index is None else int(z_index),
            counts=class_counts(matrix),
            values=values,
            maps=maps,
            spacing=None if spacing is None else tuple(float(step) for step in spacing),
        )

    def _case_values(self, case: str, records: list[Record]) -> dict[str, np.ndarray]:
        values = overlap_values(sum_counts(records), [name for name in self.measures if name in OVERLAP_MEASURES])
        if records[0].values is not None:
            values |= records[0].values
        elif records[0].maps is not None:
            values |= self._surface(*stack_slices(case, records), records[0].spacing)
        return values

    def _surface(
        self, truth: np.ndarray, prediction: np.ndarray, spacing_zyx: Sequence[float]
    ) -> dict[str, np.ndarray]:
        return surface_values(
            truth,
            prediction,
            len(self.class_names),
            self.measures,
            tuple(spacing_zyx)[-truth.ndim :],
            nsd_tolerance_mm=self.nsd_tolerance_mm,
            ignore_index=self.ignore_index,
        )


def _labels(field: Any) -> np.ndarray:
    """Return the label map of a field as an array without the channel axis."""
    data = field["data"] if isinstance(field, dict) else getattr(field, "data", field)
    array = data.detach().cpu().numpy() if isinstance(data, torch.Tensor) else np.asarray(data)
    return array[0] if array.ndim > 2 and array.shape[0] == 1 else array


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
