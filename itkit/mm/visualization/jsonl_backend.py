"""Write every logged scalar as one line of JSON, in a file that survives crashes, resumes and full disks."""

from __future__ import annotations

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

from mmengine.logging import MessageHub, MMLogger
from mmengine.visualization import BaseVisBackend

from itkit.registry import VISBACKENDS

SCALARS_FILE = "scalars.jsonl"
LARGEST = 3.4028234663852886e38
"""The largest float32; a larger magnitude in a log is an accident, and is written as null."""

_RENAMED = {"time": "iter_time", "iter": None}
_SPLITS = ("train", "val", "test")


def finite_number(value: Any) -> int | float | None:
    """Return a plain Python number for a number, a NumPy scalar or a tensor of one element; None for all else.

    NaN, infinite and huge values (beyond float32) are None too, because JSON has no way to say them.
    """
    if hasattr(value, "item"):
        try:
            value = value.item()
        except (ValueError, RuntimeError, TypeError):
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if -LARGEST <= value <= LARGEST else None


@VISBACKENDS.register_module()
class JSONLinesVisBackend(BaseVisBackend):
    """Appends scalars to ``<save_dir>/scalars.jsonl``.

    A line is ``{"step", "split", "time", <name>: number or null, ...}``: `split` is ``train``, ``val`` or ``test``, `time` the
    wall clock in seconds since 1970. The engine's own ``time`` (seconds an iteration took) is written as ``iter_time``. The step
    of a validation is the iteration after which it ran, whatever the engine counts by. After a resume the file goes on; a
    reader takes the later line where a step occurs twice. A line is handed to the system as a whole when it is written.

    Args:
        save_dir: Folder of the run.
        filename: Name of the file.
    """

    def __init__(self, save_dir: str, filename: str = SCALARS_FILE):
        super().__init__(save_dir)
        self._filename = filename
        self._stream = None
        self._broken = False

    @property
    def experiment(self) -> Path:
        """The file that is written."""
        return Path(self._save_dir) / self._filename

    def _init_env(self) -> None:
        self._env_initialized = True

    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        """Write one value as a line of its own."""
        self.add_scalars({name: value}, step)

    def add_scalars(self, scalar_dict: dict, step: int = 0, file_path: str | None = None, **kwargs: Any) -> None:
        """Write values that belong to one step as one line; what is not a number is left out.

        Args:
            scalar_dict: Name → number, tensor or array of one element. A prefix ``train/``, ``val/`` or ``test/`` of all
                names tells the split and is cut off.
            step: Of training.
            file_path: Ignored; there is one file.
        """
        split, values = _split_of(scalar_dict), {}
        for name, value in scalar_dict.items():
            name = name.removeprefix(f"{split}/")
            name = _RENAMED.get(name, name)
            if name is None or name in ("step", "split") or not _is_scalar(value):
                continue
            values[name] = finite_number(value)
        if split == "val":
            step = max(int(step), _iterations_done())
        self._write({"step": int(step), "split": split, "time": round(time.time(), 3), **values})

    def close(self) -> None:
        """Close the file; it is opened again if more is written."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            try:
                stream.close()
            except OSError as error:
                self._warn(error)

    def _write(self, row: dict[str, Any]) -> None:
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        for is_last in (False, True):
            try:
                if self._stream is None:
                    self._open()
                self._stream.write(line)
                return
            except OSError as error:  # a network file system may have forgotten the open file: open it again
                with contextlib.suppress(OSError, AttributeError):
                    self._stream.close()
                self._stream = None
                if is_last:
                    self._warn(error)

    def _open(self) -> None:
        path = self.experiment
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_short = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
        self._stream = open(path, "ab", buffering=0)  # noqa: SIM115 (lives as long as the run)
        if cut_short:
            self._stream.write(b"\n")

    def _warn(self, error: OSError) -> None:
        """Say once that scalars are lost; training is worth more than its log."""
        if not self._broken:
            self._broken = True
            MMLogger.get_current_instance().warning(
                f"{self.experiment}: scalars cannot be written ({error}); training goes on without them. Free some space "
                "or make the folder writable; what can be written later will be."
            )


def _is_scalar(value: Any) -> bool:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return True
    count = getattr(value, "numel", None) or getattr(value, "size", None)
    count = count() if callable(count) else count
    return hasattr(value, "item") and count == 1


def _split_of(scalars: dict) -> str:
    for split in _SPLITS:
        if scalars and any(name.startswith(f"{split}/") for name in scalars):
            return split
    stage = MessageHub.get_current_instance().runtime_info.get("loop_stage")
    if stage in _SPLITS:
        return stage
    return "train" if "iter" in scalars else "val"


def _iterations_done() -> int:
    """Return how many iterations of training are done, as the engine's message hub knows it; 0 before the first."""
    done = MessageHub.get_current_instance().runtime_info.get("iter")
    return 0 if done is None or not math.isfinite(done) else int(done) + 1
