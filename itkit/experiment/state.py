"""What is known of one run, kept in `run.json`: state, step, best and last checkpoint, cost, provenance."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from itkit._support.files import write_json
from itkit.errors import CheckpointError

STATE_FILE = "run.json"
RESULT_FILE = "result.json"
CHECKPOINT_FOLDER = "checkpoints"
CASES_OF_TRAINING_FILE = "dataset.json"
_REPAIR = (
    "Repair it, or remove the run folder to start anew. If it cannot be repaired, remove this file alone: the next training "
    "takes the state from the newest checkpoint."
)


@dataclass
class RunState:
    """The state of one model of one experiment.

    Attributes:
        state: ``new`` (nothing trained), ``partial`` (begun, to be resumed), ``trained`` or ``failed``.
        step: Iterations done, as of the last checkpoint or end.
        max_steps: Iterations asked for when it last ran.
        best: ``{"step", "metric", "value", "checkpoint"}``, the path relative to the run folder; None before the first.
        last: ``{"step", "checkpoint", "sha256"}`` of the newest checkpoint.
        kept: The same of every ordinary checkpoint that is there, the newest last.
        changes: ``{"step", "changes"}`` of each resume with another config or other data, ``changes`` one line each.
        cpu_minutes: User and system time of all processes of the training so far, validation and loading included.
        failure: ``{"message", "traceback_file", "step"}`` of the last attempt, None if it did not fail.
        stopped: ``{"by", "step"}`` if the last start ended because somebody asked for it, and is to be started again.
        exports: Format -> what was written of the model in it: ``{"file", "sha256", "checkpoint", "step", ...}``, the file
            relative to the run folder.
        provenance: Command, versions, hardware, seed, dataset fingerprint of the last start.
    """

    experiment: str
    model: str
    state: str = "new"
    step: int = 0
    max_steps: int = 0
    best: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    kept: list[dict[str, Any]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)
    cpu_minutes: float = 0.0
    wall_minutes: float = 0.0
    parameters: int | None = None
    flops: int | None = None
    failure: dict[str, Any] | None = None
    stopped: dict[str, Any] | None = None
    exports: dict[str, dict[str, Any]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: int = 1

    @classmethod
    def load(cls, folder: Path) -> RunState:
        """Return the state in `folder`; a new one if there is no ``run.json``.

        Raises:
            CheckpointError: If ``run.json`` cannot be read or is not one; nothing is guessed in its place.
        """
        path = Path(folder) / STATE_FILE
        blank = cls(experiment=Path(folder).parent.name, model=Path(folder).name)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return blank
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: is not valid JSON ({error}). {_REPAIR}") from error
        if not isinstance(document, dict):
            raise CheckpointError(f"{path}: cannot be used, it holds {document!r:.60} and not an object. {_REPAIR}")
        known = {f.name for f in fields(cls)}
        state = cls(**{**asdict(blank), **{k: v for k, v in document.items() if k in known}})
        _require_types(state, path)
        return state

    def save(self, folder: Path) -> None:
        """Write ``run.json`` in `folder`, all of it or nothing."""
        write_json(Path(folder) / STATE_FILE, asdict(self))

    def checkpoint(self, folder: Path, *, last: bool = False) -> tuple[Path, int]:
        """Return path and step of the best (or the last) checkpoint.

        Raises:
            CheckpointError: If none is recorded, or the recorded file is gone.
        """
        record, word = (self.last, "last") if last else (self.best, "best")
        if not record:
            lost = self.state == "new" and any((Path(folder) / CHECKPOINT_FOLDER).glob("*.pth"))
            advice = (
                "There are checkpoints, so the file was lost: start the training, which takes the state from the newest."
                if lost
                else "Train it first."
                if last or not self.last
                else "Test with --test-use-last-ckpt, or set save_best in the checkpoint hook."
            )
            raise CheckpointError(f"no {word} checkpoint is recorded in {Path(folder) / STATE_FILE}. {advice}")
        path = Path(folder) / record["checkpoint"]
        if not path.is_file():
            advice = "Put it back, or train again." if last else "Put it back, or test another: --test-use-last-ckpt."
            raise CheckpointError(f"{path}: the {word} checkpoint recorded in {STATE_FILE} is not there. {advice}")
        return path, int(record["step"])


def _require_types(state: RunState, path: Path) -> None:
    for name in ("kept", "changes"):
        value = getattr(state, name)
        if not isinstance(value, list) or not all(isinstance(item, dict) and "step" in item for item in value):
            raise CheckpointError(
                f"{path}: {name!r} must be a list of objects with a step, found {value!r:.60}. {_REPAIR}"
            )
    if any("checkpoint" not in record for record in state.kept):
        raise CheckpointError(f"{path}: an entry of 'kept' lacks checkpoint. {_REPAIR}")
    for name in ("best", "last", "failure", "stopped", "exports", "provenance"):
        value = getattr(state, name)
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"{path}: {name!r} must be an object, found {value!r}. {_REPAIR}")
        lacking = {"step", "checkpoint"} - set(value or ()) if name in ("best", "last") and value else None
        if lacking:
            raise CheckpointError(f"{path}: {name!r} lacks {', '.join(sorted(lacking))}. {_REPAIR}")
    if state.state not in ("new", "partial", "trained", "failed"):
        raise CheckpointError(
            f"{path}: unknown state {state.state!r}; expected new, partial, trained or failed. {_REPAIR}"
        )
    for name in ("step", "max_steps", "cpu_minutes", "wall_minutes"):
        value = getattr(state, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise CheckpointError(f"{path}: {name!r} must be a number, found {value!r}. {_REPAIR}")


def load_result(folder: Path) -> dict[str, Any] | None:
    """Return the test result in `folder`, or None if there is none or it cannot be read."""
    try:
        return json.loads((Path(folder) / RESULT_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def is_tested(state: RunState, result: dict[str, Any] | None) -> bool:
    """Whether `result` was measured on the run's best or last checkpoint, and not on one that has been replaced."""
    if result is None or state.state != "trained":
        return False
    tested = (result.get("checkpoint"), result.get("step"))
    return any(record and (record["checkpoint"], record["step"]) == tested for record in (state.best, state.last))
