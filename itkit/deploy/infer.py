"""`itk_infer`: label maps of files, folders and DICOM series by a trained model, each on its image's own grid."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import multiprocessing
import os
import re
import threading
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from itkit import __version__
from itkit._support.files import write_text
from itkit._support.optional import require
from itkit._support.resources import usable_cores
from itkit._support.threads import asked_threads
from itkit.deploy.model_choice import ModelChoice
from itkit.errors import DataError, UsageError
from itkit.io.headers import volume_suffix
from itkit.io.volumes import Volume, write_volume
from itkit.process.convert.dicom import DAMAGED, SeriesTask, make_name, name_series
from itkit.process.ledger import LEDGER_NAME
from itkit.process.operation import Ask, Operation, Product, Stage, Task, require_apart
from itkit.process.reading import Reader
from itkit.process.sources import find_files, group_cases

if TYPE_CHECKING:
    from itkit.deploy.predictor import Prediction, Predictor
    from itkit.io.dicom import DicomSeries

FORMATS = ("mha", "nii.gz", "nrrd", "mhd", "nii", "dicom-seg")
CONFIDENCE_NAME, RECIPE_NAME = "confidence.csv", "recipe.json"
CONFIDENCE_FOLDER, LOGITS_FOLDER = "confidence", "logits"
COLUMNS = ("case", "class", "label", "voxels", "volume_ml", "confidence")
_DIGITS = 6
_loading, _network = threading.Lock(), threading.Lock()


@dataclass(frozen=True)
class Infer(Operation):
    """Predict the label map of every case; the model is loaded once in each process.

    While the network works on one case, the next one is read and the one before is written.

    Args:
        source: A volume, a folder of volumes (of a dataset its ``image/``), or a folder of DICOM series.
        destination: Folder for the label maps.
        backend: See `ModelChoice`, as all fields up to `trust_checkpoint`.
        window_level: Centre of the intensity window instead of the model's own.
        window_width: Its width.
        patch_size: Voxels of a window (Z, Y, X) instead of the model's own.
        patch_stride: Voxels between windows.
        batch_windows: Most windows in one call of the network.
        orientation: Orientation of the training data, where the model's test pipeline does not turn images to it.
        gpus: Use so many GPUs, a process on each; 0 the CPU; None: one GPU where there is one.
        threads: Threads of each process on the CPU; None: all cores, shared by the processes.
        fp16: Compute in half precision on a GPU.
        save_logits: Write the logits too, as zarr.
        save_conf: Write the confidence of each voxel too.
        tta: Average over mirror images along all axes.
        post: Words of post-processing instead of the model's own; ``["none"]``: none.
        format: One of `FORMATS`; None: that of the input, mha for DICOM.
        segment_codes: JSON file with the codes of the classes, for ``dicom-seg``.
        recursive: Look into subfolders.
        fix_geometry: Repair directions that are not orthonormal, and record it.

    Raises:
        UsageError: If the words do not fit together.
    """

    name: ClassVar[str] = "itk_infer"
    places: ClassVar[tuple[str, ...]] = (
        "source", "destination", "backend", "experiment", "model", "config", "checkpoint", "onnx", "last", "config_root",
        "work_dir_root", "trust_checkpoint", "gpus", "threads", "batch_windows",
    )  # fmt: skip
    overlapped: ClassVar[int] = 3
    source: str
    destination: str
    backend: str | None = None
    experiment: str | None = None
    model: tuple[str, ...] | None = None
    config: str | None = None
    checkpoint: tuple[str, ...] | None = None
    onnx: tuple[str, ...] | None = None
    last: bool = False
    config_root: str | None = None
    work_dir_root: str | None = None
    trust_checkpoint: bool = False
    window_level: float | None = None
    window_width: float | None = None
    patch_size: tuple[int, ...] | None = None
    patch_stride: tuple[int, ...] | None = None
    batch_windows: int | None = None
    orientation: str | None = None
    gpus: int | None = None
    threads: int | None = None
    fp16: bool = False
    save_logits: bool = False
    save_conf: bool = False
    tta: bool = False
    post: tuple[str, ...] | None = None
    format: str | None = None
    segment_codes: str | None = None
    recursive: bool = False
    fix_geometry: bool = False

    def __post_init__(self):
        require_apart(self.source, self.destination)
        self.choice  # noqa: B018 (refuses what does not fit together)
        if self.format is not None and self.format.lstrip(".") not in FORMATS:
            raise UsageError(f"--format is one of {', '.join(FORMATS)}, not {self.format!r}.")
        if self.segment_codes is not None and self.format != "dicom-seg":
            raise UsageError("--segment-codes is for --format dicom-seg.")

    def __getstate__(self) -> dict[str, Any]:
        """The fields, and where and what the model is as this process knows it: another may have another environment.

        What was loaded stays in its process.
        """
        state = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.experiment is not None:
            roots = self.choice.roots()
            state.update(config_root=str(roots.configs), work_dir_root=str(roots.work))
        if "_identity" in self.__dict__:  # checksums of all weights
            state["_identity"] = self._identity
        return state

    @cached_property
    def choice(self) -> ModelChoice:
        """The model, as words."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(ModelChoice)}
        return ModelChoice(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    @property
    def processes(self) -> int | None:
        """One for each GPU."""
        return max(self.gpus or 1, 1)

    def parameters(self) -> dict[str, Any]:
        return {**super().parameters(), "model_identity": self._identity}

    @cached_property
    def _identity(self) -> list[Any]:
        return self.choice.identity()

    # ------------------------------------------------------------------- cases

    def tasks(self) -> Sequence[Task]:
        table = Path(self.destination) / CONFIDENCE_NAME
        if table.exists() and not table.with_name(LEDGER_NAME).exists():
            raise UsageError(f"{table}: exists and was not written by this tool; choose another destination.")
        source = Path(self.source)
        files = []
        if source.is_file() and not volume_suffix(source) and _is_dicom(source):
            raise DataError("is one file of a DICOM series; give its folder.", source)
        if source.is_file() or not source.is_dir():
            files = find_files(source)
        else:
            try:
                files = find_files(source, recursive=self.recursive)
            except DataError as no_volumes:
                tasks = self._series_tasks()
                if not tasks:
                    raise DataError(
                        f"{no_volumes.message.rstrip('.')}, and no DICOM series either.", no_volumes.path
                    ) from no_volumes
                return tasks
        beside = sum(path.suffix.lower() == ".dcm" for path in source.iterdir()) if source.is_dir() else 0
        if beside:
            warnings.warn(
                f"{source}: {beside} DICOM files lie beside the volumes and are not predicted; give their folder alone.",
                stacklevel=2,
            )
        if self.format == "dicom-seg":
            raise UsageError("--format dicom-seg describes DICOM series; the source holds volumes.")
        tasks = []
        for case in group_cases(file for file in files if file.role != "label"):
            file = case.files[0]
            suffix = f".{self.format.lstrip('.')}" if self.format else volume_suffix(file.path)
            tasks.append(Task(case.case_id, (file.path,), self._outputs(case.case_id, suffix)))
        if not tasks:
            raise DataError("holds no image.", source)
        return tasks

    def _outputs(self, case_id: str, suffix: str) -> tuple[Path, ...]:
        base, name = Path(self.destination), case_id
        found = volume_suffix(Path(name))  # a case whose name carries its suffix, because there are two of that name
        name = f"{name[: -len(found)]}_{found.lstrip('.').replace('.', '_')}" if found else name
        outputs = [base / f"{name}{suffix}"]
        if self.save_conf:
            outputs.append(base / CONFIDENCE_FOLDER / f"{name}{'.mha' if suffix == '.dcm' else suffix}")
        return tuple(outputs)

    def _series_tasks(self) -> list[Task]:
        from itkit.io.dicom import find_series

        damaged: list[tuple[Path, str]] = []
        series = find_series(self.source, damaged=damaged)
        names = name_series([(_series_name(one), one.uid) for one in series])
        suffix = ".dcm" if self.format == "dicom-seg" else f".{(self.format or 'mha').lstrip('.')}"
        tasks: list[Task] = [
            SeriesTask(name, one.paths, self._outputs(name, suffix), series=one)
            for name, one in zip(names, series, strict=True)
        ]
        for path, reason in damaged:
            below = Path(os.path.relpath(path, self.source)).as_posix()
            tasks.append(SeriesTask(f"{DAMAGED}/{below}", (), damage=(path, reason)))
        return sorted(tasks, key=lambda task: task.case_id)

    # ----------------------------------------------------------------- the model

    def begin(self, *, here: bool) -> None:
        if self.save_logits:
            require("zarr", extra="zarr", purpose="storing logits")
        if self.format == "dicom-seg":
            require("highdicom", extra="dicomseg", purpose="writing DICOM-SEG")
        predictor = self._load(alone=True) if here else self._load(alone=True, device="cpu")
        if self.format == "dicom-seg":
            self._codes(predictor)
        self.__dict__["_recipe"] = predictor.recipe
        if here:
            self.__dict__["_predictor"] = predictor

    @cached_property
    def _predictor(self) -> Predictor:
        return self._load(alone=multiprocessing.parent_process() is None)

    def _load(self, *, alone: bool, device: str | None = None) -> Predictor:
        threads = self.threads or asked_threads() or (usable_cores() if alone else 1)
        predictor = self.choice.predictor(
            device=device or self._device(), half=self.fp16 and device is None, threads=threads
        )
        return predictor.changed(
            patch_size_zyx=self.patch_size,
            patch_stride_zyx=self.patch_stride,
            window_level=self.window_level,
            window_width=self.window_width,
            mirror=self.tta,
            orientation=self.orientation,
            post=self.post,
            batch_windows=self.batch_windows,
        )

    def _device(self) -> str | None:
        """The device of this process: of several workers each takes the next GPU."""
        if self.gpus is None:
            return None
        if self.gpus == 0:
            return "cpu"
        number = re.search(r"(\d+)$", multiprocessing.current_process().name)
        return f"cuda:{(int(number[1]) - 1) % self.gpus if number else 0}"

    def _codes(self, predictor: Predictor) -> Any:
        from itkit.io.dicom_seg import read_segment_codes

        return None if self.segment_codes is None else read_segment_codes(self.segment_codes, predictor.recipe.classes)

    # ------------------------------------------------------------------ one case

    def process(self, task: Task, stage: Stage) -> Product:
        if isinstance(task, SeriesTask) and task.damage:
            path, reason = task.damage
            raise DataError(f"{reason} It may belong to any series. Copy it again, or take it away.", path)
        with _loading:
            predictor = self._predictor
        reader = Reader(self.fix_geometry)
        name = os.fspath(task.inputs[0])
        started = time.perf_counter()
        volume = self._volume(task, reader)
        read_s = time.perf_counter() - started
        case = predictor.prepare(volume, name=name)
        case.seconds["read"] += read_s
        logits = None
        if self.save_logits:
            base, stem = Path(self.destination), task.outputs[0]
            below = stem.relative_to(base)
            logits = (
                base / LOGITS_FOLDER / below.parent / f"{below.name.removesuffix(volume_suffix(below) or '.dcm')}.zarr"
            )
        with _network:
            stage.require_wanted()
            predictor.segment(
                case,
                confidence_map=self.save_conf,
                logits_path=None if logits is None else stage.path(logits / "zarr.json").parent,
                progress=lambda done, total: stage.require_wanted(),
            )
        prediction = predictor.finish(case)
        started = time.perf_counter()
        notes = [*reader.notes(), *prediction.notes, *self._write(task, stage, prediction, predictor)]
        if prediction.confidence_map is not None:
            write_volume(stage.path(task.outputs[1]), prediction.confidence_map)
        prediction.seconds["write"] += time.perf_counter() - started
        return Product(reader.record(_record(prediction, predictor.recipe.classes)), tuple(notes))

    def _volume(self, task: Task, reader: Reader) -> Volume:
        if isinstance(task, SeriesTask):
            from itkit.io.dicom import read_series

            volume = read_series(task.series)
            return dataclasses.replace(volume, notes=task.series.notes)
        return reader.volume(task.inputs[0])

    def _write(self, task: Task, stage: Stage, prediction: Prediction, predictor: Predictor) -> Sequence[str]:
        path = stage.path(task.outputs[0])
        if self.format != "dicom-seg":
            write_volume(path, prediction.labels)
            return ()
        from itkit.io.dicom_seg import write_dicom_seg

        facts = predictor.recipe.provenance
        algorithm = "/".join(str(facts[key]) for key in ("experiment", "model") if facts.get(key)) or "itkit"
        return write_dicom_seg(
            path,
            prediction.labels,
            task.series,
            predictor.recipe.classes,
            codes=self._codes(predictor),
            algorithm=algorithm,
            algorithm_version=str(facts.get("checkpoint_sha256") or __version__)[:16],
        )

    # ------------------------------------------------------------------ the whole

    def finish(self, entries: Mapping[str, dict], ask: Ask) -> Iterable[Path]:
        folder = Path(self.destination)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for case_id in sorted(entries):
            record = entries[case_id]["record"] or {}
            if entries[case_id]["state"] == "done" and "classes" in record:
                writer.writerows(_rows(case_id, record))
        write_text(folder / CONFIDENCE_NAME, text.getvalue())
        documents = [folder / CONFIDENCE_NAME]
        recipe = self.__dict__.get("_recipe")
        if recipe is not None:
            write_text(folder / RECIPE_NAME, recipe.to_json() + "\n")
        if (folder / RECIPE_NAME).is_file():
            documents.append(folder / RECIPE_NAME)
        return documents

    def describe(self, entries: Mapping[str, dict]) -> str | None:
        records = [entry["record"] for entry in entries.values() if entry["state"] == "done" and entry["record"]]
        if not records:
            return None
        stages: dict[str, float] = {}
        for record in records:
            for stage, seconds in record["seconds"].items():
                stages[stage] = stages.get(stage, 0.0) + seconds
        total = sum(stages.values()) or 1.0
        shares = ", ".join(f"{stage} {100 * spent / total:.1f} %" for stage, spent in stages.items() if spent > 0)
        sure = [record["confidence"] for record in records if record["confidence"] is not None]
        lines = [f"time      {total / len(records):.2f} s a case: {shares}"]
        if sure:
            lowest = min(
                (entry["record"]["confidence"], case)
                for case, entry in entries.items()
                if entry["state"] == "done" and entry["record"] and entry["record"]["confidence"] is not None
            )
            lines.append(f"confident {sum(sure) / len(sure):.3f} on average, least {lowest[0]:.3f} ({lowest[1]})")
        return "\n".join(lines)

    def memory_bytes(self, task: Task) -> int:
        if isinstance(task, SeriesTask):
            grid = None if task.series is None else task.series.geometry
            return 0 if grid is None else 12 * math.prod(grid.size_zyx)
        return super().memory_bytes(task)


def _record(prediction: Prediction, classes: Sequence[str]) -> dict[str, Any]:
    """The facts of a case for the ledger and the table."""
    import numpy as np

    labels, sure = prediction.labels, prediction.confidence
    counts = np.bincount(labels.array.ravel(), minlength=len(classes)).tolist()
    voxel_ml = math.prod(labels.spacing_zyx) / 1000
    return {
        "confidence": None if sure.case is None else round(sure.case, _DIGITS),
        "classes": {
            name: {
                "label": number,
                "voxels": counts[number],
                "volume_ml": round(counts[number] * voxel_ml, _DIGITS),
                "confidence": None if sure.classes[number] is None else round(sure.classes[number], _DIGITS),
            }
            for number, name in enumerate(classes)
        },
        "seconds": {stage: round(seconds, 4) for stage, seconds in prediction.seconds.items()},
        "size_zyx": list(labels.size_zyx),
    }


def _rows(case_id: str, record: Mapping[str, Any]) -> Iterable[tuple]:
    foreground = [facts for facts in record["classes"].values() if facts["label"]]
    yield (
        case_id, "foreground", "", sum(facts["voxels"] for facts in foreground),
        round(sum(facts["volume_ml"] for facts in foreground), _DIGITS), _text(record["confidence"]),
    )  # fmt: skip
    for name, facts in record["classes"].items():
        yield case_id, name, facts["label"], facts["voxels"], facts["volume_ml"], _text(facts["confidence"])


def _text(value: float | None) -> float | str:
    return "" if value is None else value


def _series_name(series: DicomSeries) -> str:
    number = "" if series.number is None else str(series.number)
    return make_name((series.patient, number, series.description)) or make_name((series.uid,)) or "series"


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(132)[128:] == b"DICM"
