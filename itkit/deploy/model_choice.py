"""Which model a command asks for - an experiment's, a config's, an ONNX file's, or several averaged - and what identifies it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itkit.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from itkit.deploy.predictor import Predictor
    from itkit.experiment.names import Roots

BACKENDS = ("mmengine", "onnx")


@dataclass(frozen=True)
class ModelChoice:
    """The model of a command, as words; nothing is loaded before `predictor` is called.

    Args:
        backend: ``"mmengine"`` or ``"onnx"``; None: the one that the other words mean.
        experiment: Experiment as `mmrun` takes it.
        model: Its models; several are averaged.
        config: Config file, instead of an experiment.
        checkpoint: Checkpoints that belong to it; several are averaged.
        onnx: ONNX files; several are averaged.
        last: An experiment's last checkpoint instead of the best.
        config_root: Folder of experiments; None: that of the environment.
        work_dir_root: Folder of runs; None: that of the environment.
        trust_checkpoint: Load checkpoints that could run code.

    Raises:
        UsageError: If it is not exactly one of the three, or a part is missing.
    """

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

    def __post_init__(self):
        given = [
            flag
            for flag, value in (("--experiment", self.experiment), ("--config", self.config), ("--onnx", self.onnx))
            if value
        ]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise UsageError(
                "which model? Give one of --experiment EXP [--model M], --config CFG --checkpoint CKPT, and --onnx FILE; found "
                f"{found}."
            )
        if bool(self.config) != bool(self.checkpoint):
            raise UsageError("--config and --checkpoint belong together; give both.")
        if self.model and not self.experiment:
            raise UsageError("--model names a model of an --experiment.")
        if self.backend not in (None, *BACKENDS):
            raise UsageError(f"--backend is {' or '.join(BACKENDS)}, not {self.backend!r}.")
        if self.backend is not None and (self.backend == "onnx") != bool(self.onnx):
            wanted = "--onnx FILE" if self.backend == "onnx" else "--experiment EXP, or --config CFG --checkpoint CKPT"
            raise UsageError(f"--backend {self.backend} takes its model from {wanted}; found {given[0]}.")

    @property
    def uses_torch(self) -> bool:
        """Whether torch is needed."""
        return not self.onnx

    def roots(self) -> Roots:
        """Return the folders of experiments and runs."""
        from itkit.experiment.names import Roots

        return Roots.resolve(self.config_root, self.work_dir_root)

    def identity(self) -> list[Any]:
        """Return what tells one model from another, as plain data: checksums of weights, configs and post-processing.

        Raises:
            ItkitError: If a file or an experiment is missing.
        """
        if self.onnx:
            return [_digest(Path(path)) for path in self.onnx]
        if self.config:
            return [_digest(Path(self.config)), *(_digest(Path(path)) for path in self.checkpoint)]
        return [part for run in self._runs() for part in run]

    def _runs(self) -> list[list[Any]]:
        from itkit.deploy.post_file import read_post
        from itkit.experiment.names import find_experiment, select_models
        from itkit.experiment.state import RunState

        roots = self.roots()
        experiment = find_experiment(self.experiment, roots.configs)
        found = []
        for name in select_models(experiment, list(self.model) if self.model else None):
            run_dir = roots.work / experiment.name / name
            state = RunState.load(run_dir)
            last = self.last or (state.best is None and state.last is not None)
            path, step = state.checkpoint(run_dir, last=last)
            record = (state.last if last else state.best) or {}
            files = [path for path in (experiment.shared_config, experiment.models[name]) if path]
            found.append([record.get("sha256") or _digest(path), step, *(_digest(file) for file in files)])
            found[-1].append((read_post(run_dir) or {}).get("steps", []))
        return found

    def predictor(self, *, device: str | None = None, half: bool = False, threads: int | None = None) -> Predictor:
        """Load the model, or the models, and return who asks them.

        Args:
            device: ``"cpu"``, ``"cuda:0"``, ...; None: a GPU where there is one.
            half: Compute in float16 on a GPU.
            threads: Threads on the CPU; None: the library's own choice.

        Raises:
            ItkitError: What is wrong with the experiment, the config, the checkpoint or the file.
        """
        from itkit.deploy.ensemble import EnsembleBackend
        from itkit.deploy.predictor import Predictor

        if self.onnx:
            from itkit.deploy.onnx_backend import OnnxBackend

            if half:
                raise UsageError("--fp16 is for PyTorch; an ONNX file computes in the type it was exported with.")
            members = [Predictor(OnnxBackend(path, device=device, threads=threads)) for path in self.onnx]
        else:
            if threads is not None:
                import torch

                torch.set_num_threads(threads)
            how = {"device": device, "half": half, "trust_checkpoint": self.trust_checkpoint}
            if self.config:
                members = [Predictor.from_config(self.config, path, **how) for path in self.checkpoint]
            else:
                names = self.model or (None,)
                members = [
                    Predictor.from_experiment(self.experiment, name, last=self.last, roots=self.roots(), **how)
                    for name in names
                ]
        if len(members) == 1:
            return members[0]
        return Predictor(EnsembleBackend([member.backend for member in members]))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(f"{os.fspath(path)}: cannot be read ({error.strerror or error}).") from error
    return digest.hexdigest()
