"""The checkpoints of one run on the disk: a new one is proven and recorded before an old one goes."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from itkit._support.files import flush_folder
from itkit.errors import CheckpointError, UntrustedCheckpoint
from itkit.experiment.state import CHECKPOINT_FOLDER, RunState
from itkit.mm import checkpoints

_ORDINARY = re.compile(r"iter_(\d+)\.pth")
_BEST = "best_iter_*.pth"
_LEFT_OVER = ".*.part-*"


class CheckpointFolder:
    """Writes, finds and removes the checkpoints of a run; ``run.json`` names only files that are there and whole.

    The order is always: write beside, flush, read back, compare, rename, record in ``run.json``, remove what is too many.
    A process that is killed between any two of these leaves a folder that the next start understands: at worst a file
    too many, which goes with the next removal.

    Args:
        run_dir: Folder of the run.
        state: What ``run.json`` holds; changed here.
        record: Writes ``run.json``.
        say: Called with what somebody should know, one line each.
        lock: Held while `state` changes and while it is written.
    """

    def __init__(
        self,
        run_dir: Path,
        state: RunState,
        record: Callable[[], None],
        say: Callable[[str], None],
        lock: threading.RLock | None = None,
    ):
        self.path = Path(run_dir) / CHECKPOINT_FOLDER
        self.state, self._record, self._say = state, record, say
        self._lock = lock or threading.RLock()

    # ---- what is there ----

    def candidates(self) -> list[dict[str, Any]]:
        """Return the records of the checkpoints to resume from: ordinary ones, the newest first, then the best."""
        found = sorted(self._files(), key=lambda record: -record["step"])
        best = self.state.best
        return [*found, best] if best and self.file(best).is_file() else found

    def file(self, record: dict[str, Any]) -> Path:
        """Return the path of a recorded checkpoint."""
        return self.path / Path(record["checkpoint"]).name

    def of_step(self, step: int) -> dict[str, Any] | None:
        """Return the record of the proven ordinary checkpoint of `step`, None if there is none."""
        return next(
            (r for r in self.state.kept if r["step"] == step and r.get("sha256") and self.file(r).is_file()), None
        )

    def _files(self) -> list[dict[str, Any]]:
        """Records of all ordinary checkpoints on the disk, as far as known with their checksums."""
        known = {r["checkpoint"]: r for r in [self.state.last, *self.state.kept] if r}
        records = []
        for path in self.path.glob("iter_*.pth"):
            number = _ORDINARY.fullmatch(path.name)
            if number:
                name = f"{CHECKPOINT_FOLDER}/{path.name}"
                records.append(known.get(name, {"step": int(number[1]), "checkpoint": name}))
        return records

    # ---- beginning ----

    def tidy(self) -> None:
        """Remove what a killed process left, and let the records be those of the files that are there."""
        for folder in (self.path, self.path.parent):
            for path in folder.glob(_LEFT_OVER):
                self._remove(path)
        with self._lock:
            self.state.kept = sorted(self._files(), key=lambda record: record["step"])
        best = self.state.best
        if best and self.file(best).is_file():
            self._remove_other_bests(best)

    def resumed_from(self, record: dict[str, Any], damaged: Iterable[dict[str, Any]]) -> None:
        """Note the checkpoint that a run goes on from, and put aside newer ones that cannot be read.

        Args:
            record: Of the checkpoint; one whose checksum is not known gets it now.
            damaged: Records of those to be put aside.
        """
        if not record.get("sha256"):
            record = {**record, "sha256": checkpoints.sha256(self.file(record))}
        for other in damaged:
            path = self.file(other)
            path.replace(path.with_name(f"{path.name}.damaged"))
        with self._lock:
            kept = [record if r["checkpoint"] == record["checkpoint"] else r for r in self._files()]
            self.state.kept = sorted(kept, key=lambda r: r["step"])
            self.state.step = record["step"]
            self.state.last = record if record in kept else None

    # ---- writing ----

    def write(self, checkpoint: dict[str, Any], name: str, *, step: int, keep: int) -> dict[str, Any]:
        """Write an ordinary checkpoint, record it, and remove the oldest ones; return its record.

        Args:
            checkpoint: What `itkit.mm.checkpoints.frozen` returns.
            name: File name.
            step: Iterations done.
            keep: Ordinary checkpoints that stay, this one among them; -1 keeps all.

        Raises:
            OSError: If it cannot be written; everything is then as it was.
        """
        self._expect_replacement(name)
        digest = checkpoints.save(checkpoint, self.path / name, say=self._say)
        record = {"step": step, "checkpoint": f"{CHECKPOINT_FOLDER}/{name}", "sha256": digest}
        with self._lock:
            before = [r for r in self.state.kept if r["checkpoint"] != record["checkpoint"]]
            kept = [*before, record] if keep < 0 else [*before[max(0, len(before) + 1 - keep) :], record]
            too_many = [r for r in before if r not in kept]
            self.state.step, self.state.last, self.state.kept = step, record, kept
            self._record()
        for old in too_many:
            self._remove(self.file(old))
        return record

    def write_best(self, checkpoint: dict[str, Any], *, step: int, metric: str, value: float) -> None:
        """Write the best checkpoint as a file of its own, record it, and remove the one before.

        Raises:
            OSError: If it cannot be written; the best is then the one before.
        """
        name = self._name_of_best(step)
        digest = checkpoints.save(checkpoint, self.path / name, say=self._say)
        self._record_best(name, step, metric, value, digest)

    def copy_best(self, source: dict[str, Any], *, metric: str, value: float) -> None:
        """Let a copy of a proven ordinary checkpoint be the best, record it, and remove the best before.

        Raises:
            OSError: If it cannot be written; the best is then the one before.
        """
        name = self._name_of_best(source["step"])
        checkpoints.copy_file(self.file(source), self.path / name, source["sha256"])
        self._record_best(name, source["step"], metric, value, source["sha256"])

    def _name_of_best(self, step: int) -> str:
        """A name that the present best does not have, so that record and file are exchanged in one moment."""
        name = f"best_iter_{step}.pth"
        taken = self.state.best and Path(self.state.best["checkpoint"]).name == name
        return f"best_iter_{step}_again.pth" if taken else name

    def _record_best(self, name: str, step: int, metric: str, value: float, digest: str) -> None:
        record = {"step": step, "checkpoint": f"{CHECKPOINT_FOLDER}/{name}", "sha256": digest}
        with self._lock:
            self.state.best = {**record, "metric": metric, "value": value}
            self._record()
        self._remove_other_bests(record)

    def _expect_replacement(self, name: str) -> None:
        """Forget the checksum of a file that is about to be replaced under its own name."""
        name = f"{CHECKPOINT_FOLDER}/{name}"
        with self._lock:
            if not any(r and r["checkpoint"] == name and "sha256" in r for r in [self.state.last, *self.state.kept]):
                return

            def without(record: dict[str, Any] | None) -> dict[str, Any] | None:
                same = record is not None and record["checkpoint"] == name
                return {k: v for k, v in record.items() if k != "sha256"} if same else record

            self.state.last, self.state.kept = without(self.state.last), [without(r) for r in self.state.kept]
            self._record()

    def mend_best(self, *, may_forget: bool) -> None:
        """Look whether the best checkpoint is what was recorded; a damaged one is copied anew from its step if that is still
        kept.

        Args:
            may_forget: Else put it aside, so that the best is sought anew by a training that goes on; False raises.

        Raises:
            CheckpointError: If it is damaged for good, and not to be forgotten.
            OSError: If it cannot be read or copied.
        """
        best = self.state.best
        if not best or not best.get("sha256") or not self.file(best).is_file():
            return
        path = self.file(best)
        if checkpoints.sha256(path) == best["sha256"]:
            return
        twin = self.of_step(best["step"])
        if twin and twin["sha256"] == best["sha256"] == checkpoints.sha256(self.file(twin)):
            checkpoints.copy_file(self.file(twin), path, best["sha256"])
            self._say(f"{path}: was damaged, and is copied anew from {self.file(twin).name}.")
            return
        damage = f"{path}: is damaged (its checksum is not the one recorded when it was written)"
        if not may_forget:
            raise CheckpointError(f"{damage}. Put it back, or test another: --test-use-last-ckpt.")
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        with self._lock:
            self.state.best = None
            self._record()
        self._say(f"{damage} and put aside as {aside.name}; the best model is sought anew from here on.")

    # ---- removing ----

    def _remove_other_bests(self, best: dict[str, Any]) -> None:
        for path in self.path.glob(_BEST):
            if path.name != Path(best["checkpoint"]).name:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
            flush_folder(path.parent)
        except OSError as error:  # a file too many is no reason to end a run
            self._say(f"{path}: cannot be removed ({error.strerror}); it is not needed any more.")


def choose(
    folder: CheckpointFolder, *, trusted: bool, say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]] | None:
    """Return the newest checkpoint that can be read, its record, and the records of newer damaged ones; None without any.

    A best checkpoint that was written while gradients were being added up is no state to go on from, and counts as none.

    Raises:
        CheckpointError: If there are checkpoints and none can be read.
        UntrustedCheckpoint: If the newest holds objects that could run code.
    """
    damaged: list[dict[str, Any]] = []
    for record in folder.candidates():
        path = folder.file(record)
        try:
            checkpoint = checkpoints.load(path, sha256_expected=record.get("sha256"), trusted=trusted)
            meta = _meta(checkpoint, path)
        except UntrustedCheckpoint:
            raise
        except CheckpointError as error:
            say(f"{error} Trying the one before.")
            damaged.append(record)
            continue
        if meta.get("resumable", True):
            return checkpoint, record, damaged
    if damaged:
        raise CheckpointError(
            f"{folder.path}: none of {len(damaged)} checkpoints can be read. Remove the run folder to start anew."
        )
    return None


def _meta(checkpoint: Any, path: Path) -> dict[str, Any]:
    meta = checkpoint.get("meta") if isinstance(checkpoint, dict) else None
    if not isinstance(meta, dict) or not {"iter", "epoch"} <= meta.keys() or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path}: holds no state of a training.")
    return meta
