"""Segmentation as a task: a network, its losses and its inference, as one model that MMEngine trains and tests."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import is_main_process
from mmengine.model import BaseModel
from torch import Tensor, nn

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError
from itkit.io.windows import axis_triple
from itkit.models.building import build_module
from itkit.models.data_preprocessor import VolumeDataPreprocessor
from itkit.ops.mirror import AVERAGES, mirror_groups, mirrored_inference
from itkit.ops.sliding_window import BLENDINGS, sliding_window_inference
from itkit.registry import MODELS
from itkit.structures import Seg3DDataSample, VolumeData

Part = Mapping | nn.Module
PADDINGS = ("edge", "constant")
HALF_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
SMALL_VOLUME_VOX = 64**3
"""Up to this size a batch of one is slower on a CPU than a batch of two, see docs/models.md."""
STACKED_MIRRORS_VOX = 2 * 96**3
"""Up to this size, copies counted, mirror images go through the network as one batch on a CPU."""


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """How a network is applied to a whole image; the keys of a task model's ``inference_config``.

    Attributes:
        patch_size: Voxels of a window, one number or one an axis (Z, Y, X). None: the whole image at once.
        patch_stride: Voxels between windows. None: half the patch.
        accumulate_device: Where the sum over windows is kept. None: the device of the inputs.
        forward_device: Where windows are sent for the network. None: the device of the inputs.
        forward_batch_windows: Most windows in one call of the network.
        argmax_batchsize: Classes compared at a time, which saves memory with many classes. None: all at once.
        blending: ``"constant"`` or ``"gaussian"``.
        sigma_scale: Standard deviation of the Gaussian as a part of the patch.
        padding: Images smaller than a window are padded on both sides by repeating their ``"edge"``, or with zeros
            (``"constant"``).
        flip_axes: Spatial axes to mirror, 0 the first after the channel; numbers mean all their combinations, groups
            such as ``[[2], [1, 2]]`` themselves. The unmirrored image always takes part. Empty: none.
        average: ``"probabilities"`` or ``"logits"``: what is averaged over windows and mirror images.
        return_logits: Whether predictions carry ``seg_logits`` too.
        slice_batch: Slices in one call of the network when `SemSeg2D` predicts a volume.
    """

    patch_size: int | Sequence[int] | None = None
    patch_stride: int | Sequence[int] | None = None
    accumulate_device: str | None = None
    forward_device: str | None = None
    forward_batch_windows: int = 2
    argmax_batchsize: int | None = None
    blending: str = "constant"
    sigma_scale: float = 0.125
    padding: str = "edge"
    flip_axes: Sequence = ()
    average: str = "probabilities"
    return_logits: bool = False
    slice_batch: int = 8

    @classmethod
    def from_config(cls, config: Mapping | InferenceConfig | None) -> InferenceConfig:
        """Return the settings that `config` names, the defaults for all others.

        Raises:
            ConfigError: If a key is unknown (the nearest valid one is named), or two settings exclude each other.
        """
        if isinstance(config, cls):
            return config
        config = {} if config is None else dict(config)
        keys = [field.name for field in dataclasses.fields(cls)]
        for key in config:
            if key not in keys:
                raise ConfigError(
                    f"inference_config has no key {key!r}.{did_you_mean(str(key), keys)} Valid keys: {', '.join(keys)}."
                )
        result = cls(**config)
        if result.return_logits and result.argmax_batchsize is not None:
            raise ConfigError(
                "inference_config: return_logits keeps what argmax_batchsize is there to avoid; set only one of them."
            )
        if result.patch_size is None and result.patch_stride is not None:
            raise ConfigError("inference_config: patch_stride has no effect without patch_size; set both or neither.")
        for key, allowed in (("average", AVERAGES), ("blending", BLENDINGS), ("padding", PADDINGS)):
            value = getattr(result, key)
            if value not in allowed:
                raise ConfigError(
                    f"inference_config: {key} must be {' or '.join(allowed)}, found {value!r}."
                    f"{did_you_mean(str(value), allowed)}"
                )
        if not isinstance(result.slice_batch, int) or result.slice_batch < 1:
            raise ConfigError(f"inference_config: slice_batch must be at least 1, found {result.slice_batch!r}.")
        return result

    @property
    def averages_probabilities(self) -> bool:
        """Whether several answers are averaged, and as probabilities."""
        return self.average == "probabilities" and (self.patch_size is not None or len(self.flip_axes) > 0)


@MODELS.register_module()
class SemanticSegment(BaseModel):
    """Semantic segmentation of images (N, C, Y, X) or volumes (N, C, Z, Y, X) with any network.

    Modes of a call: ``"loss"`` gives a dictionary of losses, ``"predict"`` the data samples with ``pred_sem_seg``,
    ``"tensor"`` the logits.

    A network returns logits (N, num_classes, ...) of the input's size; or, for deep supervision, a list of them with
    the full size first (or MONAI's stack of them), which goes to the criteria as a list in training.

    Predictions are ``VolumeData`` of shape (1, Z, Y, X) or (1, Y, X): uint8 up to 255 classes, int16 up to 32767, else
    int32.

    Args:
        backbone: The network: a module, or a config ``dict(type=..., ...)`` whose type is a class or a registered name
            (``"SubvoxelUNet"``, ``"monai.UNet"``, ...).
        criterion: One or a list of losses, given in the same way. A loss is called with the logits (or the list of
            them, which itkit's and MONAI's ``DeepSupervisionLoss`` take) and the labels: integers (N, ...), for losses of
            MONAI floats (N, 1, ...). Label maps of floats (K, ...), soft labels, are passed as they are. The losses are
            summed.
        num_classes: Classes including the background; 1 means one foreground channel with a sigmoid.
        gt_sem_seg_key: The field of the data samples that holds the label map.
        use_half: Predict in half precision on a GPU (True and ``"fp16"``: float16, ``"bf16"``: bfloat16); the weights
            themselves stay as they are. On a CPU a warning is given and float32 is used.
        binary_segment_threshold: Probability above which a voxel is foreground; only with ``num_classes=1``, where None
            means 0.5.
        inference_config: Keys of `InferenceConfig`.
        allow_pbar: Show a progress bar over the windows of a prediction on stderr.
        data_preprocessor: None: `VolumeDataPreprocessor`.
        init_cfg: MMEngine's initialisation of weights. None: as the network initialised itself.

    Raises:
        ConfigError: If a part cannot be built or arguments contradict each other.
    """

    input_axes: tuple[int, ...] = (4, 5)
    """Numbers of axes that a batch may have."""

    def __init__(
        self,
        backbone: Part,
        criterion: Part | Sequence[Part],
        num_classes: int,
        gt_sem_seg_key: str = "gt_sem_seg",
        use_half: bool | str = False,
        binary_segment_threshold: float | None = None,
        inference_config: Mapping | None = None,
        allow_pbar: bool = False,
        data_preprocessor: Part | None = None,
        init_cfg: dict | None = None,
    ):
        who = type(self).__name__
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ConfigError(f"{who}: num_classes must be at least 1, found {num_classes!r}.")
        if num_classes > 1 and binary_segment_threshold is not None:
            raise ConfigError(
                f"{who}: binary_segment_threshold={binary_segment_threshold} needs num_classes=1 (one sigmoid "
                f"channel), found num_classes={num_classes}. Remove the threshold, or let network and model have one "
                "class."
            )
        if binary_segment_threshold is not None and not 0 < binary_segment_threshold < 1:
            raise ConfigError(
                f"{who}: binary_segment_threshold is a probability between 0 and 1, found {binary_segment_threshold}."
            )
        if use_half not in (False, True, *HALF_TYPES):
            raise ConfigError(f"{who}: use_half must be False, True, 'fp16' or 'bf16', found {use_half!r}.")
        if data_preprocessor is None:
            data_preprocessor = VolumeDataPreprocessor()
        super().__init__(build_module(data_preprocessor, f"{who}: data_preprocessor"), init_cfg)
        criteria = [criterion] if isinstance(criterion, (Mapping, nn.Module)) else criterion
        if not isinstance(criteria, Sequence) or isinstance(criteria, str) or not criteria:
            raise ConfigError(f"{who}: criterion must be a loss or a non-empty list of losses, found {criterion!r}.")
        self.backbone = build_module(backbone, f"{who}: backbone")
        self.criterion = nn.ModuleList(build_module(c, f"{who}: criterion") for c in criteria)
        self.num_classes = num_classes
        self.gt_sem_seg_key = gt_sem_seg_key
        self.use_half = use_half
        self.binary_segment_threshold = (
            0.5 if num_classes == 1 and binary_segment_threshold is None else (binary_segment_threshold)
        )
        self.inference_config = InferenceConfig.from_config(inference_config)
        if num_classes == 1 and self.inference_config.argmax_batchsize is not None:
            raise ConfigError(f"{who}: argmax_batchsize compares classes, but num_classes is 1. Remove it.")
        self.allow_pbar = allow_pbar
        self._warned_of_half = False

    def init_weights(self) -> None:
        """Initialise weights as `init_cfg` or the network's own ``init_weights`` say; else they are initialised already."""
        if self.init_cfg is not None or hasattr(self.backbone, "init_weights"):
            super().init_weights()

    # ------------------------------------------------------------------ modes

    def forward(self, inputs: Tensor | list[Tensor], data_samples: list | None = None, mode: str = "tensor") -> Any:
        """Run one mode.

        Args:
            inputs: (N, C, ...); for ``"predict"`` also a list of N tensors (C, ...) of different sizes.
            data_samples: N data samples; needed for ``"loss"``.
            mode: ``"loss"``, ``"predict"`` or ``"tensor"``.

        Returns:
            ``"loss"``: losses by name; ``"predict"``: the data samples; ``"tensor"``: logits (N, num_classes, ...).

        Raises:
            ConfigError: If the mode is unknown, or inputs, labels, network and arguments do not fit together.
        """
        if mode == "tensor":
            return self._outputs(self.backbone(inputs), inputs)[0]
        if mode == "loss":
            return self.training_loss(inputs, data_samples)
        if mode == "predict":
            return self.predict(inputs, data_samples)
        raise ConfigError(f"{type(self).__name__} has no mode {mode!r}; choose loss, predict or tensor.")

    def training_loss(self, inputs: Tensor, data_samples: list | None) -> dict[str, Tensor]:
        """Return the losses of one batch: ``{"loss_<Criterion>": scalar, ...}``.

        Two criteria of one class are told apart as ``loss_X`` and ``loss_X_2``. MMEngine sums all of them.

        Raises:
            ConfigError: If the shapes of inputs, logits and labels do not fit, labels are missing, or a criterion does
                not return one number.
        """
        self._check_axes(inputs, self.input_axes, "training")
        outputs = self._outputs(self.backbone(inputs), inputs)
        labels = self._labels(data_samples, inputs, outputs[0])
        answer = outputs[0] if len(outputs) == 1 else outputs
        losses: dict[str, Tensor] = {}
        for criterion in self.criterion:
            kind = type(criterion).__name__
            known = _library(criterion) in ("itkit", "monai", "torch")
            if isinstance(answer, list) and known and kind != "DeepSupervisionLoss":
                raise ConfigError(
                    f"criterion {kind} takes one tensor of logits, but the network returned {len(answer)} (deep "
                    "supervision). Wrap it: dict(type='DeepSupervisionLoss', loss=dict(...))."
                )
            loss = criterion(answer, _as_criterion_wants(criterion, labels, self.num_classes))
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
                raise ConfigError(
                    f"criterion {kind} returned {found}; a loss must be one number. Set its reduction to 'mean'."
                )
            name, copies = f"loss_{kind}", 1
            while name in losses:
                copies += 1
                name = f"loss_{kind}_{copies}"
            losses[name] = loss.reshape(())
        return losses

    @torch.no_grad()
    def predict(self, inputs: Tensor | Sequence[Tensor], data_samples: list | None = None) -> list:
        """Segment whole images and return the data samples with ``pred_sem_seg`` (and ``seg_logits`` when asked).

        Args:
            inputs: (N, C, ...), or N tensors (C, ...) of different sizes.
            data_samples: They are changed. None: new ones are made.
        """
        batches = [inputs] if isinstance(inputs, Tensor) else [x[None] for x in inputs]
        answers = [pair for batch in batches for pair in zip(*self._segment(batch), strict=True)]
        if data_samples is None:
            data_samples = [Seg3DDataSample() for _ in answers]
        for sample, (labels, logits) in zip(data_samples, answers, strict=True):
            sample.pred_sem_seg = VolumeData(data=labels)
            if logits is not None:
                sample.seg_logits = VolumeData(data=logits)
        return data_samples

    @torch.no_grad()
    def check_output(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Run the network on an input of `shape` without data, memory or arithmetic (meta device) and check its logits.

        Args:
            shape: Of the input, (N, C, ...).

        Returns:
            The shape of the logits.

        Raises:
            ConfigError: If the channels of the logits are not `num_classes`, or their size is not the input's.
        """
        x = torch.empty(tuple(shape), device="meta")
        state = {name: t.to("meta") for name, t in (*self.backbone.named_parameters(), *self.backbone.named_buffers())}
        return tuple(self._outputs(torch.func.functional_call(self.backbone, state, (x,)), x)[0].shape)

    # -------------------------------------------------------------- inference

    def _segment(self, inputs: Tensor) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Return labels (N, 1, ...) and logits (N, num_classes, ...) of whole images, N times None if not asked for."""
        self._check_axes(inputs, self.input_axes, "prediction")
        config = self.inference_config
        image, inside = self._padded(inputs)
        with self._progress() as progress:
            answer = sliding_window_inference(
                image,
                self._mirrored if config.flip_axes else self._infer,
                patch_size=config.patch_size,
                patch_stride=config.patch_stride,
                accumulate_device=config.accumulate_device,
                forward_device=config.forward_device,
                forward_batch_windows=config.forward_batch_windows,
                fill_batch_to=1,  # `_infer` knows when a second copy pays
                argmax_batchsize=config.argmax_batchsize,
                blending=config.blending,
                sigma_scale=config.sigma_scale,
                progress=progress,
            )[inside]
        if config.argmax_batchsize is not None:
            labels = answer
        elif self.num_classes == 1:
            threshold = self.binary_segment_threshold
            labels = answer > (threshold if config.averages_probabilities else math.log(threshold / (1 - threshold)))
        else:
            labels = answer.argmax(1, keepdim=True)
        labels = labels.to(label_type(self.num_classes))
        if not config.return_logits:
            return labels, [None] * len(labels)
        return labels, _as_logits(answer) if config.averages_probabilities else answer

    def _padded(self, inputs: Tensor) -> tuple[Tensor, tuple]:
        """Return `inputs` at least as large as a window, and the index of the part that they fill."""
        size, patch = inputs.shape[2:], self.inference_config.patch_size
        if patch is None or self.inference_config.padding == "constant":  # the sliding window itself pads with zeros
            return inputs, (...,)
        missing = [max(p - n, 0) for n, p in zip(size, axis_triple("patch_size", patch, len(size)), strict=True)]
        if not any(missing):
            return inputs, (...,)
        before = [m // 2 for m in missing]
        edges = [edge for b, m in zip(before[::-1], missing[::-1], strict=True) for edge in (b, m - b)]
        inside = (..., *(slice(b, b + n) for b, n in zip(before, size, strict=True)))
        return F.pad(inputs, edges, mode="replicate"), inside

    def _mirrored(self, x: Tensor) -> Tensor:
        """Return logits averaged over mirror images; on a CPU small ones go through the network as one batch."""
        config = self.inference_config
        groups = mirror_groups(config.flip_axes, x.ndim - 2)
        forward: Callable[[Tensor], Tensor] = self._infer
        if x.device.type == "cpu" and x[:, 0].numel() * len(groups) <= STACKED_MIRRORS_VOX:
            images = torch.cat([torch.flip(x, [axis + 2 for axis in group]) for group in groups])
            answers = iter(self._infer(images).split(len(x)))

            def forward(_: Tensor) -> Tensor:
                return next(answers)

        return mirrored_inference(forward, x, config.flip_axes, average="logits")  # the mean of what `_infer` gives

    def window_logits(self, x: Tensor) -> Tensor:
        """Return the logits (B, num_classes, ...) of one batch of windows or whole images, in the type that `use_half` gives.

        On a CPU a small volume alone goes through the network twice, which is quicker, see `SMALL_VOLUME_VOX`.
        """
        alone = len(x) == 1 and x.ndim == 5 and x.device.type == "cpu" and x[0, 0].numel() <= SMALL_VOLUME_VOX
        with self._precision(x.device):
            logits = self._outputs(self.backbone(x.repeat(2, 1, 1, 1, 1) if alone and not self.training else x), x)[0]
        return logits[: len(x)]

    def _infer(self, x: Tensor) -> Tensor:
        """Return what is averaged, float32 logits or probabilities, of one batch of windows or whole images."""
        logits = self.window_logits(x).float()
        if not self.inference_config.averages_probabilities:
            return logits
        return logits.sigmoid() if self.num_classes == 1 else logits.softmax(1)

    @contextlib.contextmanager
    def _precision(self, device: torch.device) -> Iterator[None]:
        if not self.use_half:
            yield
        elif device.type == "cpu":
            if not self._warned_of_half:
                self._warned_of_half = True
                warnings.warn("use_half has no effect on a CPU; predicting in float32.", stacklevel=2)
            yield
        else:
            with torch.autocast(device.type, dtype=HALF_TYPES.get(self.use_half, torch.float16)):
                yield

    @contextlib.contextmanager
    def _progress(self) -> Iterator[Callable[[int, int], None] | None]:
        if not self.allow_pbar or not is_main_process():
            yield None
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("windows", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    # ----------------------------------------------------------------- checks

    def _outputs(self, answer: Any, inputs: Tensor) -> list[Tensor]:
        """Return what the network gave as a list of logits, the full size first; refuse what cannot be logits."""
        kind = type(self.backbone).__name__
        if isinstance(answer, Tensor):
            outputs = list(answer.unbind(1)) if answer.ndim == inputs.ndim + 1 else [answer]
        elif isinstance(answer, (list, tuple)) and answer and all(isinstance(x, Tensor) for x in answer):
            outputs = list(answer)
        else:
            raise ConfigError(
                f"backbone {kind} returned a {type(answer).__name__}; a network must return logits, or a list of them "
                "with the full size first. Wrap it in a module that does."
            )
        for i, logits in enumerate(outputs):
            if logits.ndim != inputs.ndim or logits.shape[1] != self.num_classes:
                channels = logits.shape[1] if logits.ndim > 1 else "no"
                raise ConfigError(
                    f"backbone {kind} returned {channels} channels (output {i} of shape {tuple(logits.shape)} for an "
                    f"input of shape {tuple(inputs.shape)}), but num_classes is {self.num_classes}. Make the network's "
                    "output channels and num_classes agree."
                )
        if outputs[0].shape[2:] != inputs.shape[2:]:
            raise ConfigError(
                f"backbone {kind} returned logits of size {tuple(outputs[0].shape[2:])} for an input of size "
                f"{tuple(inputs.shape[2:])}; the first output must have the input's size."
            )
        return outputs

    def _check_axes(self, inputs: Tensor, axes: tuple[int, ...], purpose: str) -> None:
        names = {4: "(N, C, Y, X)", 5: "(N, C, Z, Y, X)"}
        if not isinstance(inputs, Tensor) or inputs.ndim not in axes:
            found = f"shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else f"a {type(inputs).__name__}"
            raise ConfigError(
                f"{type(self).__name__} takes {' or '.join(names[n] for n in axes)} for {purpose}, found {found}. "
                "Choose SemSeg2D or SemSeg3D after the pipeline, and check its last transforms."
            )

    def _labels(self, data_samples: list | None, inputs: Tensor, logits: Tensor) -> Tensor:
        """Return the label maps of a batch: integers (N, ...) int64, or soft labels (N, num_classes, ...)."""
        if data_samples is None or len(data_samples) != len(inputs):
            found = "none" if data_samples is None else len(data_samples)
            raise ConfigError(f"{len(inputs)} samples came with {found} data samples; the losses need one for each.")
        maps = []
        for i, sample in enumerate(data_samples):
            case = getattr(sample, "case_id", f"sample {i}")
            field = getattr(sample, self.gt_sem_seg_key, None)
            if field is None:
                raise ConfigError(
                    f"{case}: no label map {self.gt_sem_seg_key!r} to train on. Load labels in the pipeline and leave "
                    f"out unlabelled cases, or set gt_sem_seg_key to one of: "
                    f"{', '.join(sample.keys()) or 'nothing is there'}."
                )
            label = field.data
            if label.shape[1:] != logits.shape[2:] or label.shape[0] not in (1, self.num_classes):
                raise ConfigError(
                    f"{case}: label map has shape {tuple(label.shape)}, the logits have {tuple(logits.shape[1:])} "
                    "(channel, then size). Apply the same crops and pads to image and label; the label needs one "
                    "channel."
                )
            maps.append(label)
        labels = torch.stack(maps)
        return labels if labels.is_floating_point() else labels[:, 0].long()


@MODELS.register_module()
class SemSeg3D(SemanticSegment):
    """Segmentation of volumes (N, C, Z, Y, X) by a 3D network. Arguments as in `SemanticSegment`."""

    input_axes = (5,)


@MODELS.register_module()
class SemSeg2D(SemanticSegment):
    """Segmentation by a 2D network: images (N, C, Y, X), in prediction also volumes (N, C, Z, Y, X) slice by slice.

    Args:
        *args: As in `SemanticSegment`.
        neighbours: Slices at each side that the network sees as further channels (2.5D). The network then has
            ``C * (2 * neighbours + 1)`` input channels: all channels of slice z - k first, those of z + k last. Beyond
            the border the edge slice repeats. Images (N, C, Y, X) must bring these channels; for volumes they are made
            here.
        **kwargs: As in `SemanticSegment`.
    """

    input_axes = (4,)

    def __init__(self, *args: Any, neighbours: int = 0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not isinstance(neighbours, int) or neighbours < 0:
            raise ConfigError(f"SemSeg2D: neighbours is a number of slices, 0 or more, found {neighbours!r}.")
        self.neighbours = neighbours

    def _segment(self, inputs: Tensor) -> tuple[Tensor, Sequence[Tensor | None]]:
        if inputs.ndim != 5:
            return super()._segment(inputs)
        labels, logits = zip(*(self._segment_volume(volume) for volume in inputs), strict=True)
        return torch.stack(labels), logits

    def _segment_volume(self, volume: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return labels (1, Z, Y, X) and logits (K, Z, Y, X) or None for one volume (C, Z, Y, X)."""
        positions = torch.arange(volume.shape[1])
        parts = [
            super(SemSeg2D, self)._segment(slices_with_neighbours(volume, z, self.neighbours))
            for z in positions.split(self.inference_config.slice_batch)
        ]
        labels = torch.cat([part[0] for part in parts]).transpose(0, 1)
        if not self.inference_config.return_logits:
            return labels, None
        return labels, torch.cat([part[1] for part in parts]).transpose(0, 1)


def slices_with_neighbours(volume: Tensor, positions: Tensor, neighbours: int) -> Tensor:
    """Return slices of `volume` as images whose channels are the slices around them.

    Args:
        volume: (C, Z, Y, X).
        positions: (B,) integer indices along Z.
        neighbours: Slices k at each side; beyond the border the edge slice repeats.

    Returns:
        (B, (2k + 1) * C, Y, X): the C channels of slice z - k first, those of z + k last.
    """
    offsets = torch.arange(-neighbours, neighbours + 1)
    z = (positions[:, None] + offsets).clamp(0, volume.shape[1] - 1).to(volume.device)
    return volume[:, z].permute(1, 2, 0, 3, 4).flatten(1, 2)


def label_type(num_classes: int) -> torch.dtype:
    """Return the type of predicted labels: uint8 up to 255 classes, int16 up to 32767, else int32."""
    if num_classes <= 255:
        return torch.uint8
    return torch.int16 if num_classes <= 32767 else torch.int32


def _as_logits(probabilities: Tensor) -> Tensor:
    """Return logits whose softmax (sigmoid for one channel) are `probabilities` (N, K, ...)."""
    if probabilities.shape[1] == 1:
        return probabilities.logit(eps=1e-7)
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def _as_criterion_wants(criterion: nn.Module, labels: Tensor, num_classes: int) -> Tensor:
    """Return integer `labels` (N, ...) in the form that the library of `criterion` documents."""
    if labels.is_floating_point():
        return labels
    library = _library(criterion)
    if library == "monai" or (library == "torch" and num_classes == 1):  # e.g. nn.BCEWithLogitsLoss
        return labels[:, None].float()
    return labels


def _library(criterion: nn.Module) -> str:
    return type(criterion).__module__.partition(".")[0]
