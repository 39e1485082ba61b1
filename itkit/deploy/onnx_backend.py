"""An exported network run by ONNX Runtime: no torch, only the file and the recipe that it carries."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from itkit._support.optional import require
from itkit.deploy.recipe import Recipe
from itkit.errors import CheckpointError, ConfigError, UsageError
from itkit.ops.memory_errors import is_memory_error

RECIPE_KEY = "itkit_recipe"
"""Metadata key of the recipe, as JSON."""
CHECKSUM_KEY = "itkit_sha256"
"""Metadata key of the SHA-256 of the file's bytes, with zeros in this value's own place."""
_CHECKSUM = re.compile(CHECKSUM_KEY.encode() + rb"\x12\x40([0-9a-f]{64})")
"""How key and value stand in the file: tag and length of a field of 64 bytes come before the value."""
_TYPE = "tensor(float)"


class OnnxBackend:
    """A network of an ONNX file.

    Args:
        path: The file. One that `itkit.deploy.export` wrote is held against the checksum in it, so that a damaged one is never
            used.
        recipe: What must be done before and after. None: the one that the file carries.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. None: the first GPU where ONNX Runtime can use one, else the CPU.
        threads: Threads on the CPU. None: what ``OMP_NUM_THREADS`` says, else as many as cores may be used.

    Attributes:
        recipe: The recipe, with the names of the graph's input and output in it.
        name: ``"onnx"``.
        device: Where it computes.

    Raises:
        CheckpointError: If the file is missing, damaged, no graph that this ONNX Runtime can run, or carries no recipe.
        ConfigError: If graph and recipe do not fit together.
        UsageError: If the device is unknown or not there.
        MissingDependency: If ONNX Runtime is not installed.
    """

    name = "onnx"

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        recipe: Recipe | None = None,
        device: str | None = None,
        threads: int | None = None,
    ):
        runtime = require("onnxruntime", extra="onnx", purpose="running ONNX files")
        self.path = Path(path)
        self._runtime = runtime
        content = _content(self.path)
        self._session, self.device = _open(runtime, content, self.path, device, threads)
        metadata = self._session.get_modelmeta()
        if recipe is None:
            text = metadata.custom_metadata_map.get(RECIPE_KEY)
            if text is None:
                raise CheckpointError(
                    f"{self.path}: carries no recipe of itkit (metadata key {RECIPE_KEY}), so nobody knows what must be done "
                    f"before and after the network; it was written by {metadata.producer_name or 'an unknown program'}. "
                    "Export it with itk_infer export, or give a recipe."
                )
            if checksum_of(content)[0] is None:
                raise CheckpointError(
                    f"{self.path}: carries a recipe and not the checksum that every export has; it is damaged, or another "
                    "program has changed it. Export it again, or give a recipe."
                )
            try:
                recipe = Recipe.from_json(text)
            except ConfigError as error:
                raise ConfigError(f"{self.path}: {error}") from error
        source, target = self._ends(recipe)
        self.recipe = recipe.replaced(onnx_input=source.name, onnx_output=target.name)
        self._batch = source.shape[0] if isinstance(source.shape[0], int) else None
        self._spatial = len(source.shape) - 2
        self._shrink = False

    def asarray(self, windows: np.ndarray) -> np.ndarray:
        """Return windows (B, C, *patch) as the graph takes them: float32, in one piece."""
        return np.ascontiguousarray(windows, dtype=np.float32)

    def forward(self, windows: np.ndarray) -> np.ndarray:
        """Return the logits (B, K, *patch) of windows (B, C, *patch), float32.

        A graph with a fixed batch is asked so often as it takes, the last time with copies of the last window.

        Raises:
            ConfigError: If windows or logits do not have the shape that the recipe says.
        """
        if windows.ndim != self._spatial + 2 or windows.shape[1] != self.recipe.network_channels:
            raise ConfigError(
                f"{self.path}: the network takes windows (B, {self.recipe.network_channels}, ...) with {self._spatial} spatial "
                f"axes, found {windows.shape}."
            )
        if self._batch is None or len(windows) == self._batch:
            return self._run(windows)
        parts = []
        for start in range(0, len(windows), self._batch):
            part = windows[start : start + self._batch]
            missing = self._batch - len(part)
            full = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
            parts.append(self._run(np.ascontiguousarray(full))[: len(part)])
        return np.concatenate(parts)

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        """Return the array itself: it is NumPy's already."""
        return array

    def is_memory_error(self, error: BaseException) -> bool:
        """Whether `error` says that memory could not be had, so that a smaller batch may succeed."""
        return is_memory_error(error)

    def release_memory(self) -> None:
        """Let the next run give back what ONNX Runtime holds in reserve."""
        self._shrink = True

    def _run(self, windows: np.ndarray) -> np.ndarray:
        options = None
        if self._shrink:
            options = self._runtime.RunOptions()
            where = "cpu:0" if self.device == "cpu" else f"gpu:{self.device.partition(':')[2] or 0}"
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", where)
        names = [self.recipe.onnx_output], {self.recipe.onnx_input: windows}
        (logits,) = self._session.run(*names, options)
        self._shrink = False
        expected = (len(windows), self.recipe.num_logits, *windows.shape[2:])
        if logits.shape != expected:
            raise ConfigError(
                f"{self.path}: the network answers {logits.shape} for windows {windows.shape}; the recipe asks for {expected} "
                "(one channel a class, the size of the window)."
            )
        return logits

    def _ends(self, recipe: Recipe) -> tuple[Any, Any]:
        """Return the graph's input and output that the recipe means; refuse what cannot be them."""
        source = _named(self._session.get_inputs(), recipe.onnx_input, "input", self.path)
        target = _named(self._session.get_outputs(), recipe.onnx_output, "output", self.path)
        for what, end in (("input", source), ("output", target)):
            if end.type != _TYPE:
                raise ConfigError(f"{self.path}: {what} {end.name!r} is a {end.type}; itkit runs graphs of {_TYPE}.")
        spatial = 3 if recipe.slice_neighbours is None else 2
        if len(source.shape) != spatial + 2:
            raise ConfigError(
                f"{self.path}: input {source.name!r} has {len(source.shape)} axes {_axes(source.shape)}, the recipe asks for "
                f"{spatial + 2} (batch, channels, {'Z, ' * (spatial == 3)}Y, X)."
            )
        channels, size = source.shape[1], tuple(source.shape[2:])
        if isinstance(channels, int) and channels != recipe.network_channels:
            raise ConfigError(
                f"{self.path}: input {source.name!r} takes {channels} channels, the recipe gives {recipe.network_channels}."
            )
        wanted = None if recipe.patch_size_zyx is None else recipe.patch_size_zyx[-spatial:]
        fixed = [extent for extent in size if isinstance(extent, int)]
        if fixed and (wanted is None or any(isinstance(n, int) and n != w for n, w in zip(size, wanted, strict=True))):
            asked = "whole images of any size" if wanted is None else f"windows of {wanted} voxels"
            raise ConfigError(
                f"{self.path}: the network was exported for windows of {_axes(size)} voxels, but {asked} are asked for. Take "
                "that size, or export it with sizes that may vary (--dynamic-size)."
            )
        return source, target


def checksum_of(content: bytes) -> tuple[str | None, str]:
    """Return the checksum that the bytes of an ONNX file carry (None: they carry none), and the one that they have."""
    found = _CHECKSUM.search(content)
    if found is None:
        return None, hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256(content[: found.start(1)])
    digest.update(b"0" * 64)
    digest.update(memoryview(content)[found.end(1) :])
    return found[1].decode(), digest.hexdigest()


def with_checksum(content: bytes) -> bytes:
    """Return the bytes of an ONNX file with its checksum in the place that is kept for it (64 zeros under `CHECKSUM_KEY`)."""
    found = _CHECKSUM.search(content)
    if found is None:
        raise ValueError(f"the file has no {CHECKSUM_KEY}")
    return content[: found.start(1)] + checksum_of(content)[1].encode() + content[found.end(1) :]


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if not content:
        raise CheckpointError(f"{path}: is empty.")
    stated, found = checksum_of(content)
    if stated not in (None, found):
        raise CheckpointError(
            f"{path}: is damaged, or another program has changed it (its checksum is not the one recorded when it was exported)."
        )
    return content


def _open(runtime: ModuleType, content: bytes, path: Path, device: str | None, threads: int | None) -> tuple[Any, str]:
    """Return a session and the device it computes on."""
    chosen = _device(runtime, device)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or _threads()
    options.inter_op_num_threads = 1
    providers: list[Any] = ["CPUExecutionProvider"]
    if chosen != "cpu":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": int(chosen.partition(":")[2] or 0)}))
    try:
        session = runtime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # ONNX Runtime has many types of error for what a file can be
        raise CheckpointError(
            f"{path}: ONNX Runtime {runtime.__version__} cannot run it ({_reason(error)}). If it names an opset or IR version, "
            "install a newer ONNX Runtime, or export again."
        ) from error
    if chosen != "cpu" and "CUDAExecutionProvider" not in session.get_providers():
        if device is not None:
            raise UsageError(
                f"device {device!r}: ONNX Runtime could not start CUDA there; see what it says with its logs on."
            )
        warnings.warn("ONNX Runtime could not start CUDA; computing on the CPU.", stacklevel=3)
        chosen = "cpu"
    return session, chosen


def _reason(error: Exception) -> str:
    """What ONNX Runtime says, without its code number, the line of its source and the name of the function there."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
    return re.sub(r"^/\S+:\d+ .*\) (?=[A-Z])", "", text)[:300].rstrip(". ")


def _device(runtime: ModuleType, device: str | None) -> str:
    available = runtime.get_available_providers()
    if device is None:
        return "cuda:0" if "CUDAExecutionProvider" in available else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UsageError(f"device {device!r}: ONNX Runtime computes on cpu, cuda or cuda:N.")
    if device != "cpu" and "CUDAExecutionProvider" not in available:
        raise UsageError(
            f"device {device!r}: this ONNX Runtime has no CUDA (it has {', '.join(available)}). Install onnxruntime-gpu in its "
            "place, or take the CPU."
        )
    return device


def _threads() -> int:
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if text.isdigit() and int(text) > 0:
        return int(text)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _named(ends: list[Any], name: str | None, what: str, path: Path) -> Any:
    """The end called `name`; without a name, the only one (an output: the first)."""
    names = ", ".join(repr(end.name) for end in ends)
    if name is not None:
        for end in ends:
            if end.name == name:
                return end
        raise ConfigError(f"{path}: the graph has no {what} {name!r}; found {names}.")
    if what == "input" and len(ends) != 1:
        raise ConfigError(f"{path}: the graph has {len(ends)} inputs ({names}); a network of itkit has one.")
    return ends[0]


def _axes(shape: Any) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
