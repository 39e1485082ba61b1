"""One trained model, ready to be asked: a volume in, labels on exactly its grid out, in bounded memory."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from itkit.deploy.backends import Backend
from itkit.deploy.recipe import Recipe
from itkit.errors import DataError, UsageError
from itkit.io.orientation import require_code
from itkit.io.preprocessing import Prepared, check_steps, prepare
from itkit.io.volumes import Volume, from_image, read_volume
from itkit.measures.confidence import CaseConfidence, ConfidenceSums, inverse_entropy
from itkit.measures.postprocessing import parse_steps, postprocess
from itkit.ops.largest_class import labels_of_scores
from itkit.ops.slab_resampling import resample_slabs
from itkit.ops.window_means import activated
from itkit.ops.window_stream import Slab, stream_windows

if TYPE_CHECKING:
    from itkit.experiment.names import Roots

STAGES = ("read", "preprocess", "network", "windows", "resample", "labels", "postprocess", "write")
"""Where the time of a prediction goes, in its order. ``windows``: cutting them out and adding the answers up."""


@dataclass(frozen=True)
class Prediction:
    """What a model says about one volume; all of it on the volume's own grid.

    Attributes:
        labels: The class of each voxel, (Z, Y, X): uint8 up to 255 classes, int16 up to 32767, else int32. Origin, spacing and
            direction are the volume's to the bit.
        confidence: Inverse normalised entropy (`itkit.measures.confidence`), by case and by class, of the network's own answer
            before post-processing; None if it was not asked for.
        seconds: Stage -> seconds, see `STAGES`.
        probabilities: (K, Z, Y, X) float32, or (1, Z, Y, X) of the foreground with a sigmoid; None if not asked for.
        confidence_map: The confidence of each voxel, float32; None if not asked for.
        notes: What a user should know, e.g. that memory was short and what was done about it.
    """

    labels: Volume
    confidence: CaseConfidence | None
    seconds: dict[str, float]
    probabilities: np.ndarray | None = None
    confidence_map: Volume | None = None
    notes: tuple[str, ...] = ()


@dataclass
class Case:
    """A volume on its way through the stages.

    Attributes:
        volume: As it was read.
        prepared: As the network takes it.
        seconds: Stage -> seconds so far.
        notes: Collected so far.
        labels: (Z, Y, X) on the volume's grid, once the network was asked.
        confidence: See `Prediction`.
        probabilities: See `Prediction`.
        confidence_map: The array of it.
    """

    volume: Volume
    prepared: Prepared | None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    notes: list[str] = field(default_factory=list)
    labels: np.ndarray | None = None
    confidence: CaseConfidence | None = None
    probabilities: np.ndarray | None = None
    confidence_map: np.ndarray | None = None


class Predictor:
    """Asks a network as its recipe says.

    A call does three stages one after the other, `prepare`, `segment` and `finish`; who has many volumes can overlap those of
    consecutive ones.

    Args:
        backend: The network.
        recipe: What must be done before and after; None: the backend's own. Only what does not change the network may differ.
        clock: Tells the time in seconds.

    Attributes:
        backend: The network.
        recipe: The recipe in use.

    Raises:
        ConfigError: If the recipe asks for preprocessing that does not exist.
    """

    def __init__(
        self, backend: Backend, *, recipe: Recipe | None = None, clock: Callable[[], float] = time.perf_counter
    ):
        self.backend = backend
        self.recipe = backend.recipe if recipe is None else recipe
        self._clock = clock
        check_steps(self.recipe.preprocessing)

    @classmethod
    def from_experiment(
        cls,
        name: str,
        model: str | None = None,
        *,
        last: bool = False,
        roots: Roots | None = None,
        device: str | None = None,
        half: bool = False,
        trust_checkpoint: bool = False,
    ) -> Predictor:
        """Return the predictor of a trained model of an experiment, with its best checkpoint.

        Args:
            name: The experiment as `mmrun` takes it, e.g. ``"1.0"``.
            model: Name of the model, e.g. ``"unet"``; None where the experiment has only one.
            last: Take the last checkpoint instead of the best.
            roots: Folders of configs and runs; None: those of the environment, as for `mmrun`.
            device: ``"cpu"``, ``"cuda:0"``, ...; None: a GPU where there is one.
            half: Compute in float16 on a GPU.
            trust_checkpoint: Load a checkpoint with Python objects, which could run code of whoever wrote it.

        Raises:
            ItkitError: What is wrong with the experiment, its config, or the checkpoint.
        """
        from itkit.deploy.trained import of_experiment

        return cls._of(of_experiment(name, model, roots=roots, last=last), device, half, trust_checkpoint)

    @classmethod
    def from_config(
        cls,
        config: Any,
        checkpoint: str | os.PathLike,
        *,
        device: str | None = None,
        half: bool = False,
        trust_checkpoint: bool = False,
    ) -> Predictor:
        """Return the predictor of a config (a file or a loaded one) and a checkpoint. Arguments as for `from_experiment`."""
        from itkit.deploy.trained import of_config

        return cls._of(of_config(config, checkpoint), device, half, trust_checkpoint)

    @classmethod
    def from_onnx(cls, path: str | os.PathLike, *, device: str | None = None) -> Predictor:
        """Return the predictor of an ONNX file that itkit has exported. Needs no torch.

        Args:
            path: The file.
            device: ``"cpu"``, ``"cuda:0"``, ...; None: a GPU where ONNX Runtime can use one.

        Raises:
            CheckpointError: If the file is damaged or carries no recipe.
            MissingDependency: If ONNX Runtime is not installed.
        """
        from itkit.deploy.onnx_backend import OnnxBackend

        return cls(OnnxBackend(path, device=device))

    @classmethod
    def _of(cls, trained: Any, device: str | None, half: bool, trust: bool) -> Predictor:
        from itkit.deploy.torch_backend import TorchBackend
        from itkit.deploy.trained import build_model, derive_recipe

        model = build_model(trained, trust=trust)
        return cls(TorchBackend(model, derive_recipe(trained, model), device=device, half=half))

    def changed(
        self,
        *,
        patch_size_zyx: Sequence[int] | None = None,
        patch_stride_zyx: Sequence[int] | None = None,
        window_level: float | None = None,
        window_width: float | None = None,
        mirror: bool = False,
        orientation: str | None = None,
        post: Sequence[str] | None = None,
        batch_windows: int | None = None,
    ) -> Predictor:
        """Return a predictor of the same network with some of its recipe changed; what is None stays.

        Args:
            patch_size_zyx: Voxels of a window.
            patch_stride_zyx: Voxels between windows.
            window_level: Centre of the intensity window, instead of that of the preprocessing's step ``Window``.
            window_width: Its width.
            mirror: Average over mirror images along all axes, unless the recipe mirrors already.
            orientation: Turn images to this orientation first: that of the training data, where the test pipeline does not.
            post: Words of post-processing (`itkit.measures.postprocessing`), instead of the recipe's; ``["none"]``: none.
            batch_windows: Most windows in one call of the network.

        Raises:
            UsageError: If a change makes no sense for this recipe.
            ConfigError: If its values do not fit together.
        """
        recipe, changes = self.recipe, {}
        if patch_size_zyx is not None:
            changes["patch_size_zyx"] = tuple(patch_size_zyx)
            if patch_stride_zyx is None:
                changes["patch_stride_zyx"] = None
        if patch_stride_zyx is not None:
            changes["patch_stride_zyx"] = tuple(patch_stride_zyx)
        if batch_windows is not None:
            changes["forward_batch_windows"] = batch_windows
        if mirror and not recipe.flip_axes:
            changes["flip_axes"] = (0, 1, 2) if recipe.slice_neighbours is None else (1, 2)
        steps = list(recipe.preprocessing)
        if window_level is not None or window_width is not None:
            steps = _with_window(steps, window_level, window_width)
        if orientation is not None:
            require_code(orientation)
            steps = [step for step in steps if step["type"] != "Orient"]
            first = 1 if steps and steps[0]["type"] == "LoadVolume" else 0
            steps.insert(first, {"type": "Orient", "orientation": orientation})
            changes["orientation"] = orientation
        if post is not None:
            words = [] if list(post) == ["none"] else list(post)
            changes["postprocessing"] = parse_steps(words, recipe.classes)
        return Predictor(self.backend, recipe=recipe.replaced(preprocessing=steps, **changes), clock=self._clock)

    def __call__(
        self,
        volume: Any,
        *,
        confidence: bool = True,
        confidence_map: bool = False,
        probabilities: bool = False,
        logits_path: str | os.PathLike | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Prediction:
        """Segment one volume.

        Args:
            volume: Path of a volume file or of a folder with one DICOM series, a `Volume`, or a SimpleITK image. Any
                orientation and spacing.
            confidence: Measure the confidence by case and by class.
            confidence_map: Return the confidence of each voxel too.
            probabilities: Return the probabilities of all classes too; that is K times the size of the volume.
            logits_path: Write the logits to this folder as zarr.
            progress: Called with (windows done, windows in all).

        Raises:
            DataError: If the volume is damaged, has another number of channels than the network, or holds NaN.
            MissingDependency: If a package for what was asked is not installed.
        """
        case = self.prepare(volume)
        self.segment(
            case,
            confidence=confidence,
            confidence_map=confidence_map,
            probabilities=probabilities,
            logits_path=logits_path,
            progress=progress,
        )
        return self.finish(case)

    # ------------------------------------------------------------------ stages

    def prepare(self, volume: Any, *, name: str | None = None) -> Case:
        """Read a volume and preprocess it. Arguments and errors as for a call; messages call it `name`."""
        started = self._clock()
        volume, path = _read(volume)
        name = name or path
        case = Case(volume, None, notes=[note.rstrip(".") for note in volume.notes])
        case.seconds["read"] += self._clock() - started
        with self._timed(case, "preprocess"):
            found = volume.array.shape[0] if volume.array.ndim == 4 else 1
            if found != self.recipe.channels:
                raise DataError(
                    f"has {found} channel{'s' * (found > 1)}, the model takes {self.recipe.channels}.",
                    name or "the volume",
                )
            case.prepared = prepare(volume, self.recipe.preprocessing, name=name)
        return case

    def segment(
        self,
        case: Case,
        *,
        confidence: bool = True,
        confidence_map: bool = False,
        probabilities: bool = False,
        logits_path: str | os.PathLike | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Ask the network, and put labels (and what else was asked for) into `case`; its prepared image is released."""
        recipe, prepared, size = self.recipe, case.prepared, case.volume.size_zyx
        wants_confidence = confidence or confidence_map
        case.labels = np.empty(size, label_dtype(len(recipe.classes)))
        if confidence_map:
            case.confidence_map = np.empty(size, np.float32)
        if probabilities:
            case.probabilities = np.empty((recipe.num_logits, *size), np.float32)
        logits = None
        if logits_path is not None:
            from itkit.deploy.logits_file import LogitsFile

            names = recipe.classes[-1:] if recipe.activation == "sigmoid" else recipe.classes
            logits = LogitsFile(logits_path, names, case.volume.geometry)
        sums = ConfidenceSums(len(recipe.classes)) if confidence else None
        turn = prepared.turning
        targets = [
            None if array is None else turn.turned(array)
            for array in (case.labels, case.confidence_map, case.probabilities)
        ]
        for box, scores in self._scores(case, progress):
            with self._timed(case, "labels"):
                labels = self._labels(scores)
                targets[0][box] = labels
                if wants_confidence or probabilities:
                    shares = scores if recipe.average == "probabilities" else activated(scores, recipe.activation)
                    if probabilities:
                        targets[2][(slice(None), *box)] = shares
                    if wants_confidence:
                        sure = inverse_entropy(shares)
                        if confidence_map:
                            targets[1][box] = sure
                        if confidence:
                            sums.add(labels, sure)
            if logits is not None:
                with self._timed(case, "write"):
                    logits.write(_box_before(box, prepared), turn.back(self._as_logits(scores)))
        case.confidence = None if sums is None else sums.result()
        case.prepared = None

    def finish(self, case: Case) -> Prediction:
        """Post-process the labels of `case` and give them their place in space."""
        volume = case.volume
        with self._timed(case, "postprocess"):
            labels = case.labels
            if self.recipe.postprocessing:
                image = volume.array if volume.array.ndim == 3 else volume.array[0] if len(volume.array) == 1 else None
                labels = postprocess(labels, self.recipe.postprocessing, volume.spacing_zyx, image=image)
        return Prediction(
            _on_grid(labels, volume),
            case.confidence,
            case.seconds,
            case.probabilities,
            None if case.confidence_map is None else _on_grid(case.confidence_map, volume),
            tuple(dict.fromkeys(case.notes)),
        )

    # ------------------------------------------------------------------ parts

    def _scores(
        self, case: Case, progress: Callable[[int, int], None] | None
    ) -> Iterator[tuple[tuple[slice, slice, slice], np.ndarray]]:
        """Yield boxes of the volume's grid, in the axes of the prepared image, with their scores (K, *box)."""
        prepared, seconds = case.prepared, case.seconds
        stream, axis = self._stream(case, progress)
        if not prepared.is_on_native_grid:
            stream = resample_slabs(
                self._clocked(stream, seconds, "windows", ("network",)),
                prepared.size_zyx,
                prepared.native_size_zyx,
                axis=axis,
                first=prepared.shift_zyx,
                step=prepared.scale_zyx,
            )
            stream = self._clocked(stream, seconds, "resample", ("network", "windows"))
        else:
            stream = self._clocked(stream, seconds, "windows", ("network",))
        others = [other for other in range(3) if other != axis]
        for slab in stream:
            box = [slice(None)] * 3
            for place, part in zip((axis, *others), slab.place, strict=True):
                box[place] = part
            yield tuple(box), np.moveaxis(self.backend.to_numpy(slab.scores), 1, 1 + axis)

    def _stream(self, case: Case, progress: Any) -> tuple[Iterator[Slab], int]:
        recipe, prepared, backend = self.recipe, case.prepared, self.backend
        image, size = prepared.image, prepared.size_zyx
        neighbours = recipe.slice_neighbours
        patch = recipe.patch_size_zyx or (size if neighbours is None else (1, *size[1:]))
        stride = recipe.patch_stride_zyx
        if neighbours is None:
            axis = min(range(3), key=lambda k: (min(patch[k], size[k]) / size[k], k))
        else:
            axis = 0

        def read(box: Sequence[slice]) -> np.ndarray:
            if not neighbours:
                return image[(slice(None), *box)]
            first = box[0].start
            planes = np.clip(np.arange(first - neighbours, first + neighbours + 1), 0, size[0] - 1)
            return np.concatenate([image[:, z : z + 1, box[1], box[2]] for z in planes])

        def forward(windows: Any) -> Any:
            started = self._clock()
            logits = backend.forward(windows) if neighbours is None else backend.forward(windows[:, :, 0])[:, :, None]
            case.seconds["network"] += self._clock() - started
            return logits

        stream = stream_windows(
            read,
            size,
            recipe.network_channels,
            forward,
            patch_size=patch,
            patch_stride=stride,
            blending=recipe.blending,
            sigma_scale=recipe.sigma_scale,
            padding=recipe.padding,
            forward_batch_windows=recipe.forward_batch_windows,
            average=recipe.average,
            activation=recipe.activation,
            flip_axes=recipe.flip_axes,
            axis=axis,
            whole_planes=False,
            asarray=backend.asarray,
            progress=progress,
            on_memory_error=case.notes.append,
        )
        return stream, axis

    def _clocked(
        self, stream: Iterator[Slab], seconds: dict[str, float], stage: str, inner: Sequence[str]
    ) -> Iterator[Slab]:
        """Count what a stream takes, but for what is counted as one of the `inner` stages, as `stage`."""
        while True:
            started, before = self._clock(), sum(seconds[name] for name in inner)
            slab = next(stream, None)
            seconds[stage] += self._clock() - started - (sum(seconds[name] for name in inner) - before)
            if slab is None:
                return
            yield slab
            del slab

    def _labels(self, scores: np.ndarray) -> np.ndarray:
        if self.recipe.activation == "softmax":
            return labels_of_scores(scores)
        threshold = self.recipe.threshold
        if self.recipe.average == "logits":
            threshold = math.log(threshold / (1 - threshold))
        return scores[0] > np.float32(threshold)

    def _as_logits(self, scores: np.ndarray) -> np.ndarray:
        """Return scores as logits; of averaged probabilities those whose softmax (sigmoid) they are."""
        if self.recipe.average == "logits":
            return scores
        if self.recipe.activation == "sigmoid":
            shares = np.clip(scores, 1e-7, 1 - 1e-7)
            return np.log(shares / (1 - shares))
        return np.log(np.maximum(scores, np.finfo(np.float32).tiny))

    @contextlib.contextmanager
    def _timed(self, case: Case, stage: str) -> Iterator[None]:
        started = self._clock()
        yield
        case.seconds[stage] += self._clock() - started


def label_dtype(num_classes: int) -> np.dtype:
    """Return the type of predicted labels: uint8 up to 255 classes, int16 up to 32767, else int32."""
    return np.dtype(np.uint8 if num_classes <= 255 else np.int16 if num_classes <= 32767 else np.int32)


def _read(source: Any) -> tuple[Volume, str | None]:
    """Return the volume that `source` is or names, and how messages call it."""
    if isinstance(source, Volume):
        return source, None
    if isinstance(source, (str, os.PathLike)):
        if Path(source).is_dir():
            from itkit.io.dicom import read_dicom_series

            return read_dicom_series(source), os.fspath(source)
        return read_volume(source), os.fspath(source)
    if hasattr(source, "GetDirection"):
        return from_image(source), None
    raise UsageError(
        f"a predictor takes a path, a Volume or a SimpleITK image, found a {type(source).__name__}. Give an array its place in "
        "space: itkit.io.volumes.Volume(array, spacing_zyx, origin_xyz, direction_xyz)."
    )


def _on_grid(array: np.ndarray, volume: Volume) -> Volume:
    return Volume(array, volume.spacing_zyx, volume.origin_xyz, volume.direction_xyz)


def _box_before(box: Sequence[slice], prepared: Prepared) -> tuple[slice, slice, slice]:
    """Return a box of the turned axes as one of the axes as read."""
    turn, size = prepared.turning, prepared.native_size_zyx
    found = [slice(None)] * 3
    for new, (old, flipped) in enumerate(zip(turn.axes_zyx, turn.flipped_zyx, strict=True)):
        first, last, _ = box[new].indices(size[new])
        found[old] = slice(size[new] - last, size[new] - first) if flipped else slice(first, last)
    return tuple(found)


def _with_window(steps: list[Mapping[str, Any]], level: float | None, width: float | None) -> list[dict[str, Any]]:
    places = [number for number, step in enumerate(steps) if step["type"] == "Window"]
    if len(places) != 1:
        found = ", ".join(step["type"] for step in steps) or "nothing"
        raise UsageError(
            f"the model's preprocessing has {'no' if not places else 'more than one'} step Window whose level and width could be "
            f"changed; it does {found}."
        )
    steps = [dict(step) for step in steps]
    step = steps[places[0]]
    step.update({key: value for key, value in (("level", level), ("width", width)) if value is not None})
    return steps
