"""What must be done before and after a network so that its numbers mean what they meant in training, as plain data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError
from itkit.io.windows import axis_triple

FORMAT_VERSION = 1
"""Raised when a recipe of before can no longer be understood."""
ACTIVATIONS = ("softmax", "sigmoid")
BLENDINGS = ("constant", "gaussian")
AVERAGES = ("logits", "probabilities")
PADDINGS = ("edge", "constant")


@dataclass(frozen=True)
class Recipe:
    """How an image becomes the input of a network, and the network's logits a label map.

    A recipe is data, not code: it travels in the metadata of an ONNX file and beside a checkpoint, and every backend follows
    the same one. All triples are in the order (Z, Y, X).

    Attributes:
        channels: Channels of the image.
        classes: Names of the classes in the order of the labels, the background included. With ``"sigmoid"`` two names
            and one logit.
        preprocessing: Steps from the image as it was read to the network's input, each a dict with ``type`` and the step's
            arguments (`itkit.io.preprocessing` knows them).
        activation: ``"softmax"``: one logit a class, the largest wins. ``"sigmoid"``: one logit, foreground above
            `threshold`.
        threshold: Probability above which a voxel is foreground; only with ``"sigmoid"``.
        patch_size_zyx: Voxels of a window. None: the whole image at once. A network of two dimensions has 1 along Z.
        patch_stride_zyx: Voxels between windows. None: half the patch, rounded up.
        blending: ``"constant"`` or ``"gaussian"``.
        sigma_scale: Standard deviation of the Gaussian as a part of the patch.
        padding: What an image smaller than a window is continued by: its ``"edge"``, or zeros (``"constant"``).
        flip_axes: Spatial axes of the window to mirror (0 is Z), numbers for all their combinations or groups of numbers;
            empty: none.
        average: What is averaged over windows and mirror images, ``"logits"`` or ``"probabilities"``.
        forward_batch_windows: Most windows in one call of the network, unless somebody asks for others.
        slice_neighbours: None: the network sees volumes. A number: it sees single slices (B, C * (2 k + 1), Y, X) with so
            many neighbouring slices at each side as further channels, those of slice z - k first; beyond the border the
            edge slice repeats.
        postprocessing: Steps on the label map, each a dict with ``type`` and arguments (`itkit.measures.postprocessing`).
        spacing_zyx: Voxel spacing in mm that the preprocessing brings images to, None for an axis (or all) that stays.
        orientation: Code such as ``"LPS"`` that images are turned to first; None: they stay as they are.
        provenance: Where the model comes from: ``experiment``, ``model``, ``checkpoint``, ``checkpoint_sha256``, ``step``,
            ``config_sha256``, ``itkit``, ``torch``; plain data.
        onnx_input: Name of an ONNX graph's input; None where there is no graph.
        onnx_output: Name of its output.

    Raises:
        ConfigError: If values contradict each other.
    """

    channels: int
    classes: tuple[str, ...]
    preprocessing: tuple[dict[str, Any], ...] = ()
    activation: str = "softmax"
    threshold: float | None = None
    patch_size_zyx: tuple[int, int, int] | None = None
    patch_stride_zyx: tuple[int, int, int] | None = None
    blending: str = "constant"
    sigma_scale: float = 0.125
    padding: str = "edge"
    flip_axes: tuple = ()
    average: str = "probabilities"
    forward_batch_windows: int = 2
    slice_neighbours: int | None = None
    postprocessing: tuple[dict[str, Any], ...] = ()
    spacing_zyx: tuple[float | None, float | None, float | None] | None = None
    orientation: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    onnx_input: str | None = None
    onnx_output: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "classes", tuple(self.classes))
        for name in ("preprocessing", "postprocessing"):
            object.__setattr__(self, name, tuple(_lists(dict(step)) for step in getattr(self, name)))
        for name in ("patch_size_zyx", "patch_stride_zyx"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, axis_triple(name, value, 3))
        if self.spacing_zyx is not None:
            object.__setattr__(self, "spacing_zyx", tuple(self.spacing_zyx))
        object.__setattr__(self, "flip_axes", _tuples(self.flip_axes))
        for name, allowed in (
            ("activation", ACTIVATIONS),
            ("blending", BLENDINGS),
            ("average", AVERAGES),
            ("padding", PADDINGS),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(f"recipe: {name} must be {' or '.join(allowed)}; found {value!r}.")
        for name in ("channels", "forward_batch_windows"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"recipe: {name} must be a whole number of at least 1; found {value!r}.")
        if len(self.classes) < 2:
            raise ConfigError(f"recipe: classes must name the background and at least one more; found {self.classes}.")
        if self.activation == "sigmoid":
            if len(self.classes) != 2:
                raise ConfigError(f"recipe: a sigmoid tells two classes apart; found {len(self.classes)}.")
            if self.threshold is None:
                object.__setattr__(self, "threshold", 0.5)
            if not 0 < self.threshold < 1:
                raise ConfigError(f"recipe: threshold is a probability between 0 and 1; found {self.threshold!r}.")
        elif self.threshold is not None:
            raise ConfigError("recipe: threshold needs the activation sigmoid; with softmax the largest class wins.")
        if self.patch_stride_zyx is not None and self.patch_size_zyx is None:
            raise ConfigError("recipe: patch_stride_zyx has no effect without patch_size_zyx; give both or neither.")
        if self.slice_neighbours is not None:
            if self.slice_neighbours < 0:
                raise ConfigError(f"recipe: slice_neighbours must be at least 0; found {self.slice_neighbours!r}.")
            if self.patch_size_zyx is not None and self.patch_size_zyx[0] != 1:
                raise ConfigError(
                    f"recipe: a network of slices needs windows of one slice; found {self.patch_size_zyx} (Z, Y, X)."
                )

    @property
    def num_logits(self) -> int:
        """Channels of the network's output: one a class, or one alone with a sigmoid."""
        return 1 if self.activation == "sigmoid" else len(self.classes)

    @property
    def network_channels(self) -> int:
        """Channels of the network's input: those of the image, times the slices that it sees."""
        return self.channels * (2 * (self.slice_neighbours or 0) + 1)

    def replaced(self, **changes: Any) -> Recipe:
        """Return a recipe with other values in some places; it is checked as every recipe is."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """Return the recipe as JSON text with the version of its format."""
        document = {"format": FORMAT_VERSION, **dataclasses.asdict(self)}
        return json.dumps(document, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Return the recipe that `to_json` wrote.

        Raises:
            ConfigError: If the text is no recipe, of a later format, or contradicts itself.
        """
        try:
            document = json.loads(text)
        except (json.JSONDecodeError, TypeError) as error:
            raise ConfigError(f"the recipe of a model is not valid JSON ({error}).") from error
        if not isinstance(document, dict) or not isinstance(document.get("format"), int):
            raise ConfigError("the recipe of a model has no format version; it was not written by itkit.")
        version = document.pop("format")
        if version > FORMAT_VERSION:
            raise ConfigError(
                f"the recipe of a model has the format {version}, this itkit reads up to {FORMAT_VERSION}. Install a newer itkit."
            )
        return cls.from_dict(document)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Recipe:
        """Return the recipe with the given fields.

        Raises:
            ConfigError: If a field is unknown or missing, or values contradict each other.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        for name in document:
            if name not in names:
                raise ConfigError(f"a recipe has no field {name!r}.{did_you_mean(str(name), names)}")
        missing = [name for name in ("channels", "classes") if name not in document]
        if missing:
            raise ConfigError(f"a recipe lacks {', '.join(missing)}.")
        return cls(**document)


def _lists(value: Any) -> Any:
    """Return nested tuples as nested lists, which is what JSON gives back."""
    if isinstance(value, Mapping):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _tuples(value: Any) -> Any:
    """Return nested sequences as nested tuples."""
    return (
        tuple(_tuples(item) for item in value) if isinstance(value, Sequence) and not isinstance(value, str) else value
    )
