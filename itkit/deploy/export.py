"""Write a network as an ONNX file that says how it is used, and keep it only if it computes what the network computes."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from itkit import __version__
from itkit._support.files import replace_when_complete
from itkit._support.optional import require
from itkit.deploy.onnx_backend import CHECKSUM_KEY, RECIPE_KEY, OnnxBackend, with_checksum
from itkit.deploy.recipe import Recipe
from itkit.errors import DataError, ExportError, UsageError

INPUT_NAME, OUTPUT_NAME = "image", "logits"
TOLERANCE = 1e-4
"""Largest difference of logits that is allowed, as a part of the largest logit (and of 1 where all are smaller)."""
BATCHES = (1, 2, 3)
"""Batch sizes that are tried after writing."""
MOST_BYTES = 2**31 - 2**24
"""Weights that one file can hold: a protocol buffer ends at 2 GiB."""
_EXAMPLE_SIZE = 32
"""Voxels along each axis of the example that a network of whole images is traced with, where there is no real one."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how well it was verified.

    Attributes:
        path: The file.
        largest_difference: Between logits of ONNX Runtime and PyTorch, over all windows that were tried.
        largest_logit: The largest absolute logit of PyTorch over the same windows.
        random_windows: Windows of random numbers that were tried.
        real_windows: Windows of real images that were tried.
        opset: Version of the operators.
    """

    path: Path
    largest_difference: float
    largest_logit: float
    random_windows: int
    real_windows: int
    opset: int


def export_onnx(
    network: nn.Module,
    recipe: Recipe,
    path: str | os.PathLike,
    *,
    real_windows: Sequence[np.ndarray] = (),
    dynamic_size: bool = False,
    opset: int | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] | None = None,
) -> Exported:
    """Write `network` to `path` with `recipe` in its metadata, and verify it.

    The batch may have any size; windows have the recipe's patch size, or any size with `dynamic_size`. Before the file gets
    its name it is checked by onnx, loaded by ONNX Runtime on the CPU, and compared with PyTorch: on batches of 1, 2 and 3
    random windows (with `dynamic_size` on two other sizes too) and on
    `real_windows`. One logit beyond `TOLERANCE` and there is no file.

    Args:
        network: Windows (B, C, *patch) to logits (B, K, *patch). Neither it nor its mode is changed.
        recipe: What must be done before and after; input and output get the names that are written into it.
        path: The file, ``.onnx``.
        real_windows: Batches (B, C, *patch), float32, of preprocessed images to compare on.
        dynamic_size: Let the spatial size vary too, where the network allows it. A network of whole images, whose recipe has no
            patch size, needs that and gets it anyhow.
        opset: Version of ONNX's operators. None: what torch prefers.
        overwrite: Replace an existing file when the new one is verified.
        say: Called with one line before each step that takes time.

    Raises:
        ExportError: If torch cannot turn the network into a graph (of that opset), it is too large for one file, or the graph
            computes other numbers.
        UsageError: If the file exists, or its name does not end with ``.onnx``.
        DataError: If the file cannot be written.
        MissingDependency: If onnx, onnxscript or onnxruntime are not installed.
    """
    path, say = Path(path), say or (lambda line: None)
    _require_place(path, overwrite)
    require("onnxscript", extra="export", purpose="exporting networks")
    require("onnxruntime", extra="onnx", purpose="verifying an exported network")
    onnx = require("onnx", extra="export", purpose="exporting networks")
    dynamic_size = dynamic_size or recipe.patch_size_zyx is None
    network = copy.deepcopy(network).cpu().float().eval()
    weights = sum(tensor.numel() * tensor.element_size() for tensor in (*network.parameters(), *network.buffers()))
    if weights > MOST_BYTES:
        raise ExportError(
            f"{path}: the network has {weights / 2**30:.1f} GiB of weights; one ONNX file holds less than 2. Nothing was written."
        )
    shape = _window_shape(recipe, real_windows)
    say(f"tracing the network with windows {shape} (channels, then size)")
    model = _graph_of(network, shape, dynamic_size, opset, path)
    recipe = recipe.replaced(onnx_input=INPUT_NAME, onnx_output=OUTPUT_NAME)
    _describe(model, recipe)
    content = with_checksum(model.SerializeToString(deterministic=True))
    try:
        with replace_when_complete(path) as temporary:
            temporary.write_bytes(content)
            say("comparing ONNX Runtime with PyTorch")
            opset = model.opset_import[0].version
            return _verified(onnx, network, temporary, path, shape, real_windows, dynamic_size, opset)
    except OSError as error:
        raise DataError(f"cannot be written ({error.strerror or error}).", path) from error


def readable(recipe: Recipe) -> dict[str, str]:
    """Return what a person may want to see of a recipe in an ONNX file's metadata, one text a key."""
    values: dict[str, Any] = {
        "version": __version__,
        "channels": recipe.channels,
        "classes": ", ".join(recipe.classes),
        "activation": recipe.activation,
        "patch_size_zyx": recipe.patch_size_zyx,
        "patch_stride_zyx": recipe.patch_stride_zyx,
        "spacing_zyx": recipe.spacing_zyx,
        "orientation": recipe.orientation,
        "preprocessing": ", ".join(str(step.get("type")) for step in recipe.preprocessing),
        "postprocessing": ", ".join(str(step.get("type")) for step in recipe.postprocessing),
        **{key: value for key, value in recipe.provenance.items() if not isinstance(value, (Mapping, list, tuple))},
    }
    return {f"itkit_{key}": _text(value) for key, value in values.items() if value not in (None, "")}


def _require_place(path: Path, overwrite: bool) -> None:
    if path.suffix != ".onnx":
        raise UsageError(f"{path}: the name of an exported network ends with .onnx.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise UsageError(f"{path}: is there already. Choose another name, or replace it with --overwrite.")


def _window_shape(recipe: Recipe, real_windows: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Channels and size of the windows that the network is traced with."""
    spatial = 3 if recipe.slice_neighbours is None else 2
    if recipe.patch_size_zyx is not None:
        return (recipe.network_channels, *recipe.patch_size_zyx[-spatial:])
    if len(real_windows):
        return tuple(real_windows[0].shape[1:])
    return (recipe.network_channels, *(_EXAMPLE_SIZE,) * spatial)


def _graph_of(network: nn.Module, shape: tuple[int, ...], dynamic_size: bool, opset: int | None, path: Path) -> Any:
    """Return the network as an ONNX model."""
    dimensions: dict[int, Any] = {0: torch.export.Dim("batch")}
    if dynamic_size:
        dimensions |= dict.fromkeys(range(2, len(shape) + 1), torch.export.Dim.DYNAMIC)
    example = torch.from_numpy(_random_windows(2, shape, seed=0))
    with _silent():
        try:
            with torch.no_grad():
                program = torch.onnx.export(
                    network,
                    (example,),
                    dynamo=True,
                    dynamic_shapes=(dimensions,),
                    input_names=[INPUT_NAME],
                    output_names=[OUTPUT_NAME],
                    opset_version=opset,
                    external_data=False,
                    verbose=False,
                )
            model = program.model_proto
        except Exception as error:  # border: torch raises whatever a network's own code leads it to
            what = " and sizes that vary" * dynamic_size
            raise ExportError(
                f"{path}: torch cannot export {_title(network)} with a batch{what} ({_first_cause(error)}). Nothing was "
                "written."
            ) from error
    found = model.opset_import[0].version
    if opset not in (None, found):
        raise ExportError(
            f"{path}: torch cannot write {_title(network)} with operators of version {opset}; it gave version {found}. Ask "
            "for another --opset, or for none. Nothing was written."
        )
    axes = model.graph.input[0].type.tensor_type.shape.dim
    fixed = [axis for axis in dimensions if not axes[axis].dim_param]
    if fixed:
        names = ["batch", "channels", *"ZYX"[-(len(shape) - 1) :]]
        raise ExportError(
            f"{path}: {_title(network)} works for one size alone along {', '.join(names[axis] for axis in fixed)}, so "
            "that cannot vary. Nothing was written."
        )
    _strip(model.graph)
    for function in model.functions:
        _strip(function)
    return model


def _strip(graph: Any) -> None:
    """Take out what torch notes for its own developers, paths of this machine's source files among it."""
    parts = [graph, *graph.node, *graph.value_info, *getattr(graph, "initializer", ())]
    parts += [end for end in (*graph.input, *graph.output) if hasattr(end, "metadata_props")]
    for part in parts:
        del part.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                _strip(inner)


def _describe(model: Any, recipe: Recipe) -> None:
    """Put the recipe, and what is readable of it, into the model's metadata."""
    del model.metadata_props[:]
    for key, value in {**readable(recipe), RECIPE_KEY: recipe.to_json(), CHECKSUM_KEY: "0" * 64}.items():
        model.metadata_props.add(key=key, value=value)
    origin = recipe.provenance
    model.doc_string = (
        f"{origin.get('experiment', 'network')}/{origin.get('model', '')} exported by itkit {__version__}"
    )


def _verified(
    onnx: Any,
    network: nn.Module,
    file: Path,
    path: Path,
    shape: tuple[int, ...],
    real_windows: Sequence[np.ndarray],
    dynamic_size: bool,
    opset: int,
) -> Exported:
    """Compare the file with the network; `path` is how messages call it."""
    try:
        onnx.checker.check_model(os.fspath(file), full_check=True)
    except Exception as error:  # onnx has several types of error
        raise ExportError(
            f"{path}: onnx finds the graph wrong ({_first_cause(error)}). Nothing was written."
        ) from error
    backend = OnnxBackend(file, device="cpu")
    random = [_random_windows(count, shape, seed=count) for count in BATCHES]
    if dynamic_size:
        random += [_random_windows(1, size, seed=0) for size in (_doubled(shape, 1), _doubled(shape, len(shape) - 1))]
    largest_difference = largest_logit = 0.0
    for kind, batches in (("random", random), ("real", real_windows)):
        for windows in batches:
            try:
                difference, logit = _difference(network, backend, windows)
            except Exception as error:  # border: a network's own code, or ONNX Runtime, refuses what was asked for
                raise ExportError(
                    f"{path}: a batch of {len(windows)} {kind} windows {windows.shape[1:]} (channels, then size) cannot be "
                    f"computed ({_first_cause(error).replace(os.fspath(file), path.name)}). Nothing was written."
                ) from error
            if not difference <= TOLERANCE * max(1.0, logit):  # NaN is not
                raise ExportError(
                    f"{path}: ONNX Runtime and PyTorch differ by {difference:.3g} on a batch of {len(windows)} {kind} windows, "
                    f"where the largest logit is {logit:.3g} and {TOLERANCE * max(1.0, logit):.3g} is allowed. Nothing was "
                    "written."
                )
            largest_difference, largest_logit = max(largest_difference, difference), max(largest_logit, logit)
    count = sum(map(len, real_windows))
    return Exported(path, largest_difference, largest_logit, sum(map(len, random)), count, opset)


@torch.no_grad()
def _difference(network: nn.Module, backend: OnnxBackend, windows: np.ndarray) -> tuple[float, float]:
    """Return the largest difference of logits and the largest absolute logit of one batch."""
    expected = network(torch.from_numpy(np.ascontiguousarray(windows, dtype=np.float32))).float().numpy()
    found = backend.forward(backend.asarray(windows))
    if found.shape != expected.shape:
        return math.inf, float(np.abs(expected).max())
    with np.errstate(all="ignore"):
        return float(np.abs(found - expected).max()), float(np.abs(expected).max())


def _title(network: nn.Module) -> str:
    return getattr(network, "title", type(network).__name__)


def _doubled(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(2 * extent if at == axis else extent for at, extent in enumerate(shape))


def _random_windows(count: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *shape), dtype=np.float32)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep torch's exporter from telling its steps to the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_cause(error: BaseException) -> str:
    """What went wrong first, as one line of at most 300 letters."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _text(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return " ".join(
            "-" if item is None else f"{item:g}" if isinstance(item, float) else str(item) for item in value
        )
    return str(value)
