"""Train on several datasets as if they were one."""

from __future__ import annotations

import bisect
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch.utils.data

from itkit.dataset.stream import StreamIndex
from itkit.errors import ConfigError
from itkit.registry import DATASETS


@DATASETS.register_module()
class ITKITConcatDataset(torch.utils.data.Dataset):
    """Several datasets with the same classes, one after the other.

    Args:
        datasets: Datasets, or their configs.
        weights: How often samples of each dataset are to appear, relative to each other; the same for each sample of one
            dataset. None: each sample once. With weights, each sample appears at least once and the datasets are repeated
            (evenly, in their order) until their shares are right; so any sampler respects them.
        lazy_init: Accepted for MMEngine; the datasets decide themselves when they look at their folders.

    Raises:
        ConfigError: If there is no dataset, the classes differ, or the weights are not one positive number a dataset.
    """

    def __init__(self, datasets: Sequence[Any], weights: Sequence[float] | None = None, *, lazy_init: bool = False):
        if not datasets:
            raise ConfigError("ITKITConcatDataset needs at least one dataset.")
        self.datasets = [DATASETS.build(entry) if isinstance(entry, dict) else entry for entry in datasets]
        if weights is not None and (
            len(weights) != len(self.datasets) or not all(math.isfinite(w) and w > 0 for w in weights)
        ):
            raise ConfigError(
                f"ITKITConcatDataset: weights are one positive number for each of the {len(self.datasets)} datasets; got "
                f"{weights!r}."
            )
        self.weights = weights
        self._ends: list[int] = []
        if not lazy_init:
            self.full_init()

    def full_init(self) -> None:
        """Let all datasets look at their folders, compare their classes and count the samples."""
        if self._ends:
            return
        for dataset in self.datasets:
            dataset.full_init()
        first = self.datasets[0].metainfo.get("classes")
        for number, dataset in enumerate(self.datasets):
            classes = dataset.metainfo.get("classes")
            if classes != first:
                raise ConfigError(
                    f"ITKITConcatDataset: dataset {number} has the classes {classes}, dataset 0 has {first}. Map the "
                    "labels to common classes first."
                )
        counts = [len(dataset) for dataset in self.datasets]
        if self.weights is not None:
            scale = max(count / weight for count, weight in zip(counts, self.weights, strict=True))
            counts = [max(count, round(scale * weight)) for count, weight in zip(counts, self.weights, strict=True)]
        self._ends = [sum(counts[: k + 1]) for k in range(len(counts))]

    @property
    def metainfo(self) -> dict:
        """That of the first dataset."""
        self.full_init()
        return self.datasets[0].metainfo

    @property
    def case_ids(self) -> list[str]:
        """Cases of all datasets, in order."""
        return [case_id for dataset in self.datasets for case_id in dataset.case_ids]

    def fingerprint(self) -> str:
        """Return the SHA-256 over the datasets' fingerprints."""
        return self.fingerprints()[0]

    def fingerprints(self) -> tuple[str, dict[str, str]]:
        """Return `fingerprint`, and a short one of each case by its id, the number of its dataset in front."""
        parts = [dataset.fingerprints() for dataset in self.datasets]
        whole = hashlib.sha256("\n".join(print_ for print_, _ in parts).encode()).hexdigest()
        return whole, {f"{k}/{case}": one for k, (_, cases) in enumerate(parts) for case, one in cases.items()}

    def get_data_info(self, idx: int) -> dict:
        """Return the description of sample `idx`."""
        dataset, local = self._find(int(idx))
        return dataset.get_data_info(local)

    def __len__(self) -> int:
        """Number of samples, with repetitions."""
        self.full_init()
        return self._ends[-1]

    def __getitem__(self, idx: int) -> Any:
        """Return sample `idx`; a `StreamIndex` keeps its seed and position."""
        dataset, local = self._find(int(idx))
        return dataset[StreamIndex(local, idx.seed, idx.position) if isinstance(idx, StreamIndex) else local]

    def _find(self, index: int) -> tuple[Any, int]:
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"sample {index} of {count}")
        index %= count
        number = bisect.bisect_right(self._ends, index)
        dataset = self.datasets[number]
        return dataset, (index - (self._ends[number - 1] if number else 0)) % len(dataset)
