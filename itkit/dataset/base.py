"""What all segmentation datasets share: choosing cases, one sample's randomness, and errors that name the case."""

from __future__ import annotations

import gc
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from itkit._support.environment import data_path
from itkit._support.suggestions import did_you_mean
from itkit.dataset.cache import VolumeCache
from itkit.dataset.splits import PARTS, PatientRule, choose_split
from itkit.dataset.stream import StreamIndex, sample_generator
from itkit.errors import ConfigError, DataError
from itkit.process.cases import Case, CaseFolder, find_cases
from itkit.process.documents import META_NAME
from itkit.process.manifest import case_geometry, fingerprints, read_manifest
from itkit.registry import DATASETS
from itkit.transforms.compose import Compose

UNLABELLED = ("error", "skip", "include")
CACHES = ("none", "memory")


@DATASETS.register_module()
class ITKITBaseSegDataset(BaseDataset):
    """Samples of a segmentation dataset in one folder; a subclass says which files make a sample.

    A sample goes through the pipeline as a dict with ``case_id``, ``img_path``, ``seg_map_path`` (None without a label),
    ``seg_fields``, ``num_classes``, ``classes``, ``sample_idx``, ``rng`` (its generator, see `itkit.dataset.stream`) and,
    with ``cache="memory"``, ``cache``. The dataset is indexed with plain ints or `StreamIndex`.

    Args:
        data_root: The dataset's folder; a relative path is looked for under ``$ITKIT_DATA``. None only for datasets that
            know their place.
        split: ``"train"``, ``"val"``, ``"test"``, or ``"all"`` for every case.
        classes: Class names with the background first: name k belongs to label value k. None: those of
            ``<data_root>/meta.json``, which converters write.
        pipeline: Transforms, see `itkit.transforms.compose.Compose`.
        splits: Part -> case ids, or a JSON file of that form (relative to the folder); None: ``split.json`` of the folder
            if it is there, else `ratio` or `fold`. The rules are those of `itkit.dataset.splits.choose_split`.
        ratio: Shares of train, val and test; None: 0.8, 0.1, 0.1.
        fold: Which of `num_folds` folds is val, from 0; None: no folds.
        num_folds: Number of folds.
        seed: Seed of ratio and folds.
        patient: Regular expression or function that finds the patient in a case id; None: a case is a patient.
        cases: Use only these case ids (of the split).
        limit: Use only the first `limit` cases in the order of their names; None: all.
        min_size: Leave out images with fewer voxels along an axis, (Z, Y, X); -1 for an axis without limit; None: no limit.
        min_spacing: Leave out images with a finer spacing in mm, (Z, Y, X); -1 and None as for `min_size`.
        unlabelled: A case without label is an ``"error"``, ``"skip"`` leaves it out, ``"include"`` uses it.
        cache: ``"memory"`` keeps what the loading transform reads, per worker process; ``"none"`` reads each time.
        cache_limit_mb: Size of that memory in MiB, per process.
        metainfo: Further entries of ``metainfo``.
        test_mode: Only kept as an attribute, as in MMEngine.
        lazy_init: Look at the folder at the first use instead of now.
        indices: As in MMEngine: use only the first `indices` samples, or those listed.
        serialize_data: As in MMEngine: keep the list of samples as bytes that forked workers share.

    Raises:
        ConfigError: If an argument makes no sense.
        DataError: If the folder, a label, or a case of the split is missing, or nothing is left.
    """

    def __init__(
        self,
        data_root: str | os.PathLike | None = None,
        split: str = "train",
        classes: Sequence[str] | None = None,
        pipeline: Sequence[dict | Callable] = (),
        *,
        splits: Mapping[str, Sequence[str]] | str | None = None,
        ratio: Sequence[float] | Mapping[str, float] | None = None,
        fold: int | None = None,
        num_folds: int = 5,
        seed: int = 0,
        patient: PatientRule = None,
        cases: Sequence[str] | None = None,
        limit: int | None = None,
        min_size: Sequence[int] | None = None,
        min_spacing: Sequence[float] | None = None,
        unlabelled: str = "error",
        cache: str = "none",
        cache_limit_mb: float = 2048,
        metainfo: Mapping[str, Any] | None = None,
        test_mode: bool = False,
        lazy_init: bool = False,
        indices: int | Sequence[int] | None = None,
        serialize_data: bool = True,
    ):
        name = type(self).__name__
        _require_one_of(f"{name}: split", split, (*PARTS, "all"))
        _require_one_of(f"{name}: unlabelled", unlabelled, UNLABELLED)
        _require_one_of(f"{name}: cache", cache, CACHES)
        if limit is not None and limit < 1:
            raise ConfigError(f"{name}: limit is a number of cases, at least 1, or None; got {limit!r}.")
        for argument, value in (("min_size", min_size), ("min_spacing", min_spacing)):
            if value is not None and len(value) != 3:
                raise ConfigError(f"{name}: {argument} has three numbers, (Z, Y, X); got {value!r}.")
        self.min_size, self.min_spacing = min_size, min_spacing
        self.split, self.splits, self.ratio, self.fold, self.num_folds = split, splits, ratio, fold, num_folds
        self.seed, self.patient, self.cases, self.limit, self.unlabelled = seed, patient, cases, limit, unlabelled
        self.cache = VolumeCache(cache_limit_mb) if cache == "memory" else None
        metainfo = dict(metainfo or {})
        if classes is not None:
            metainfo["classes"] = _class_names(classes, name)
        super().__init__(
            metainfo=metainfo,
            data_root=None if data_root is None else os.fspath(data_root),
            indices=indices,
            serialize_data=serialize_data,
            test_mode=test_mode,
            lazy_init=True,
        )
        self.pipeline = Compose(pipeline)
        self._manifest: dict[str, dict] | None = None
        if not lazy_init:
            self.full_init()

    @property
    def root(self) -> Path:
        """The dataset's folder.

        Raises:
            ConfigError: If `data_root` is None, or relative and ``ITKIT_DATA`` is not set.
        """
        if self.data_root is None:
            raise ConfigError(f"{type(self).__name__} needs data_root, the folder with image/ and label/.")
        return data_path(self.data_root)

    def _serialize_data(self):
        """As in MMEngine, whose garbage collection takes 0.3 s once torch is there; without walking over all of that."""
        gc.freeze()
        try:
            return super()._serialize_data()
        finally:
            gc.unfreeze()

    def find_samples(self) -> dict[str, list[dict]]:
        """Return case id -> the samples of that case, for every case in the folder.

        Each sample has at least ``case_id``, ``img_path`` and ``seg_map_path`` (None without a label).
        """
        raise NotImplementedError

    def find_files(self) -> CaseFolder:
        """Return the images of the folder with their labels; warn of labels without image.

        Raises:
            DataError: If the folder is empty, or holds a name in several formats.
        """
        folder = find_cases(self.root)
        if folder.duplicates:
            name, files = next(iter(folder.duplicates.items()))
            raise DataError(
                f"{name!r} is there in several formats: {', '.join(path.name for path in files)}. Keep one.",
                folder.root,
            )
        if folder.orphans:
            names = ", ".join(path.name for path in list(folder.orphans.values())[:5])
            print_log(
                f"{folder.root}: {len(folder.orphans)} label(s) without an image are not used: {names}",
                "current",
                logging.WARNING,
            )
        return folder

    def load_data_list(self) -> list[dict]:
        """Find the cases, choose those of the split, and check them (called by MMEngine)."""
        found = self.find_samples()
        if "classes" not in self._metainfo:
            self._metainfo["classes"] = _class_names(self._classes_of_folder(), type(self).__name__)
        chosen = self._chosen(found)
        without_label = [case_id for case_id in chosen if any(s["seg_map_path"] is None for s in found[case_id])]
        if without_label and self.unlabelled == "error":
            raise DataError(
                f"case {without_label[0]!r} has no label ({len(without_label)} of {len(chosen)} cases of "
                f"split {self.split!r}). Add it, or set unlabelled='skip' or 'include'.",
                found[without_label[0]][0]["img_path"],
            )
        if self.unlabelled == "skip":
            chosen = [case_id for case_id in chosen if case_id not in set(without_label)]
        samples = {case_id: self._large_enough(found[case_id]) for case_id in chosen}
        kept = [case_id for case_id in chosen if samples[case_id]]
        if len(kept) < len(chosen):
            print_log(f"{self.root}: {len(chosen) - len(kept)} of {len(chosen)} cases are filtered out.", "current")
        if not kept:
            raise DataError(
                f"no case is left in split {self.split!r}: of {len(found)} cases, {len(chosen)} belong to it with the "
                "labels asked for, and min_size and min_spacing keep none of them.",
                self.root,
            )
        classes = self._metainfo["classes"]
        shared = {"classes": classes, "num_classes": len(classes)}
        return [{**sample, "seg_fields": [], **shared} for case_id in kept[: self.limit] for sample in samples[case_id]]

    def _large_enough(self, samples: list[dict]) -> list[dict]:
        """The samples whose image passes `min_size` and `min_spacing`."""
        if self.min_size is None and self.min_spacing is None:
            return samples
        if self._manifest is None:
            self._manifest = read_manifest(self.root)
        kept = []
        for sample in samples:
            geometry = case_geometry(Case(sample["case_id"], Path(sample["img_path"])), self._manifest)
            if _reaches(geometry["size"], self.min_size) and _reaches(geometry["spacing"], self.min_spacing):
                kept.append(sample)
        return kept

    def _chosen(self, found: dict[str, list[dict]]) -> list[str]:
        """Case ids of the split, sorted."""
        chosen = sorted(found)
        if self.split != "all":
            chosen = sorted(
                choose_split(
                    found,
                    root=self.root,
                    splits=self.splits,
                    ratio=self.ratio,
                    fold=self.fold,
                    num_folds=self.num_folds,
                    seed=self.seed,
                    patient=self.patient,
                )[self.split]
            )
            if not chosen:
                raise DataError(f"split {self.split!r} has no case.", self.root)
        if self.cases is not None:
            missing = [case_id for case_id in self.cases if case_id not in chosen]
            if missing:
                raise DataError(
                    f"case {missing[0]!r} is not in split {self.split!r}.{did_you_mean(missing[0], chosen)}", self.root
                )
            chosen = [case_id for case_id in chosen if case_id in set(self.cases)]
        return chosen

    def _classes_of_folder(self) -> Sequence[str]:
        path = self.root / META_NAME
        try:
            return json.loads(path.read_text(encoding="utf-8"))["classes"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{type(self).__name__} needs classes=(...) with the background first: {path} does not tell them."
            ) from error

    @property
    def case_ids(self) -> list[str]:
        """The cases in use, each once, in order."""
        if not self._fully_initialized:
            self.full_init()
        infos = (self.get_data_info(index) for index in range(len(self)))
        return list(dict.fromkeys(info.get("parent_case", info["case_id"]) for info in infos))

    def fingerprint(self) -> str:
        """Return the SHA-256 over names and contents of the files in use, see `itkit.process.manifest.fingerprint`."""
        return self.fingerprints()[0]

    def fingerprints(self) -> tuple[str, dict[str, str]]:
        """Return `fingerprint`, and a short one of each case by its id."""
        if not self._fully_initialized:
            self.full_init()
        infos = (self.get_data_info(index) for index in range(len(self)))
        return fingerprints(
            Case(info["case_id"], Path(info["img_path"]), info["seg_map_path"] and Path(info["seg_map_path"]))
            for info in infos
        )

    def prepare_data(self, idx: int) -> Any:
        """Return what the pipeline makes of sample `idx` (int or `StreamIndex`).

        Raises:
            DataError: If a transform fails or gives nothing; names case and file.
        """
        results = self.get_data_info(int(idx))
        results["rng"] = sample_generator(idx)
        if self.cache is not None:
            results["cache"] = self.cache
        case_id, path = results["case_id"], results["img_path"]
        try:
            sample = self.pipeline(results)
        except DataError as error:
            if error.path is not None and case_id in error.path:
                raise
            raise type(error)(f"case {case_id}: {error}", path) from error
        except Exception as error:  # the border of one case: whatever a transform raises must name the case
            raise DataError(f"case {case_id}: {type(error).__name__} in the pipeline: {error}", path) from error
        if sample is None or (isinstance(sample, list) and not sample):
            raise DataError(f"case {case_id}: the pipeline gave no sample; a transform returned None.", path)
        return sample

    def __getitem__(self, idx: int) -> Any:
        """Return sample `idx`; a failure is raised, never replaced by another sample."""
        if not self._fully_initialized:
            self.full_init()
        return self.prepare_data(idx if isinstance(idx, StreamIndex) else int(idx))


def _require_one_of(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{what} is one of {', '.join(allowed)}; got {value!r}.{did_you_mean(str(value), allowed)}")


def _class_names(classes: Sequence[str], owner: str) -> tuple[str, ...]:
    valid = not isinstance(classes, str) and all(isinstance(name, str) for name in classes)
    if not valid or len(classes) < 2 or len(set(classes)) < len(classes):
        raise ConfigError(
            f"{owner}: classes are the names of label values 0, 1, ..., the background first, all different; got "
            f"{classes!r}."
        )
    return tuple(classes)


def _reaches(values: Sequence[float], least: Sequence[float] | None) -> bool:
    """Whether every value is at least its limit, within a rounding error (spacings are often stored as float32)."""
    return least is None or all(value >= limit * (1 - 1e-6) for value, limit in zip(values, least, strict=True))
