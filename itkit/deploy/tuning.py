"""`itk_infer tune-post`: which steps of post-processing help a model, decided on its validation cases and stored with it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from itkit import __version__
from itkit._support.files import write_json
from itkit.deploy.infer import Infer
from itkit.deploy.model_choice import ModelChoice
from itkit.deploy.post_file import POST_FILE
from itkit.errors import ConfigError, DataError, UsageError
from itkit.io.geometry import require_same_grid
from itkit.io.labels import require_label_map
from itkit.io.volumes import read_volume
from itkit.measures.overlap import class_counts, confusion_matrix, dice
from itkit.measures.postprocessing import PER_CLASS, as_words, parse_steps, postprocess
from itkit.measures.statistics import compare_paired
from itkit.process.operation import Ask, Task

CANDIDATES = ("largest", "small=10", "small=50", "small=200", "holes")
RULE = (
    "A step is taken for a class if the mean over the cases of the paired differences of the class's Dice (with the step "
    "minus without) is positive and so is the lower end of its 95 % bootstrap interval. Steps are tried in their order, "
    "class by class, each on top of those that were taken before. Where neither truth nor prediction has the class, its "
    "Dice counts as 1 here, so that a step is credited for removing a class that is not there."
)


@dataclass(frozen=True)
class TunePost(Infer):
    """Predict the validation cases without post-processing, then try step after step.

    Args:
        candidates: Words of steps, tried in this order for each class.
        no_store: Leave the run's folder as it is.
        seed: Of the bootstrap.

    Other arguments as for `Infer`.

    Raises:
        UsageError: If a candidate cannot be tried class by class.
    """

    name: ClassVar[str] = "itk_infer tune-post"
    places: ClassVar[tuple[str, ...]] = (*Infer.places, "candidates", "no_store", "seed")
    source: str = ""
    destination: str = ""
    candidates: tuple[str, ...] | None = None
    no_store: bool = False
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "post", ("none",))
        self.choice  # noqa: B018 (refuses what does not fit together)
        for word in self.candidates or CANDIDATES:
            kind = word.partition("=")[0]
            if kind not in PER_CLASS or "@" in word:
                raise UsageError(
                    f"--candidates {word}: candidates are {', '.join(PER_CLASS)}, without classes; each class is tried alone."
                )

    @property
    def sources(self) -> tuple[Path, ...]:
        return ()

    @cached_property
    def choice(self) -> ModelChoice:
        return dataclasses.replace(
            ModelChoice(experiment=self.experiment, model=tuple(self.model) if self.model else None),
            last=self.last,
            config_root=self.config_root,
            work_dir_root=self.work_dir_root,
            trust_checkpoint=self.trust_checkpoint,
        )

    def parameters(self) -> dict[str, Any]:
        # The post-processing that is stored is what is looked for: it does not change the predictions.
        found = super().parameters()
        found["model_identity"] = [part for part in found["model_identity"] if not isinstance(part, list)]
        return found

    def tasks(self) -> Sequence[Task]:
        from itkit.deploy.trained import validation_cases

        found = []
        for case_id, image, label in validation_cases(self._trained.config):
            if label is None:
                raise DataError(f"validation case {case_id} has no label to tune on.", image)
            outputs = self._outputs(case_id, ".mha")
            found.append(Task(case_id, (Path(image), Path(label)), outputs, ("image", "label")))
        return found

    @cached_property
    def _trained(self) -> Any:
        from itkit.deploy.trained import of_experiment

        model = None if not self.model else self.model[0]
        return of_experiment(self.experiment, model, roots=self.choice.roots(), last=self.last)

    def finish(self, entries: Mapping[str, dict], ask: Ask) -> Iterable[Path]:
        failed = [case for case, entry in entries.items() if entry["state"] != "done"]
        if failed:
            raise DataError(
                f"{len(failed)} of {len(entries)} validation cases could not be predicted; nothing was decided.",
                self.destination,
            )
        document = self._decide(sorted(entries))
        written = [Path(self.destination) / POST_FILE]
        write_json(written[0], document)
        if not self.no_store:
            written.append(Path(self._trained.run_dir) / POST_FILE)
            write_json(written[1], document)
        return written

    def _decide(self, case_ids: Sequence[str]) -> dict[str, Any]:
        files = {task.case_id: task for task in self.tasks()}
        cases = [_Case.read(files[case_id]) for case_id in case_ids]
        classes = self._class_names()
        taken: list[dict[str, Any]] = []
        tried = []
        for word in self.candidates or CANDIDATES:
            kind = parse_steps([word], classes)[0]
            for number in range(1, len(classes)):
                step = {**kind, "classes": [number]}
                pairs = [case.try_step(step, number) for case in cases]
                found = judge_pairs(pairs, seed=self.seed)
                if found["taken"]:
                    taken.append(step)
                    for case in cases:
                        case.take(step)
                tried.append({"step": word, "class": classes[number], **found})
        steps = merged(taken)
        return {
            "steps": steps,
            "words": as_words(steps, classes),
            "rule": RULE,
            "classes": list(classes),
            "cases": list(case_ids),
            "tried": tried,
            "experiment": self._trained.provenance.get("experiment"),
            "model": self._trained.provenance.get("model"),
            "checkpoint": self._trained.checkpoint.name,
            "checkpoint_sha256": self._trained.sha256 or self._identity[0],
            "itkit": __version__,
        }

    def _class_names(self) -> tuple[str, ...]:
        if "_recipe" in self.__dict__:
            return self.__dict__["_recipe"].classes
        from itkit.deploy.trained import class_names

        names = class_names(self._trained.config)
        if names is None:
            raise ConfigError(
                f"{self._trained.config.filename}: its dataset does not name the classes, so no step can be stored for one."
            )
        return names

    def describe(self, entries: Mapping[str, dict]) -> str | None:
        try:
            document = json.loads((Path(self.destination) / POST_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        rows = [
            f"{'step':12}{'class':24}{'cases':>6}{'better':>7}{'worse':>6}{'difference of Dice':>20}   95 % interval"
        ]
        for row in document["tried"]:
            interval = "{:+.5f} to {:+.5f}".format(*row["ci95"]) if row["ci95"] else "none"
            rows.append(
                f"{row['step']:12}{row['class']:24}{row['cases']:6}{row['better']:7}{row['worse']:6}{row['mean']:+20.5f}   "
                f"{interval}{'   taken' if row['taken'] else ''}"
            )
        words = " ".join(document["words"]) or "none: no step helps"
        return "\n".join([*rows, f"post-processing: {words}"])


def judge_pairs(pairs: Sequence[tuple[float, float]], *, seed: int = 0) -> dict[str, Any]:
    """Return what the rule of this module says of one step for one class.

    Args:
        pairs: Dice of each case without and with the step.
        seed: Of the bootstrap.
    """
    before, after = np.array(pairs, dtype=float).reshape(-1, 2).T
    differences = after - before
    found: dict[str, Any] = {
        "cases": len(differences),
        "better": int((differences > 0).sum()),
        "worse": int((differences < 0).sum()),
        "mean": float(differences.mean()) if len(differences) else 0.0,
        "ci95": None,
        "taken": False,
    }
    if len(differences) and differences.any():
        interval = compare_paired(before, after, seed=seed)["interval"]
        found["ci95"] = None if interval is None else list(interval)
        found["taken"] = interval is not None and found["mean"] > 0 and interval[0] > 0
    return found


def merged(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return steps in which those that follow each other and differ only in their classes are one."""
    result: list[dict[str, Any]] = []
    for step in steps:
        bare = {key: value for key, value in step.items() if key != "classes"}
        if result and {key: value for key, value in result[-1].items() if key != "classes"} == bare:
            result[-1] = {**result[-1], "classes": [*result[-1]["classes"], *step["classes"]]}
        else:
            result.append(dict(step))
    return result


class _Case:
    """Truth and prediction of one case, the prediction with the steps that were taken so far."""

    def __init__(self, truth: np.ndarray, prediction: np.ndarray, spacing_zyx: tuple[float, ...]):
        self.truth, self.prediction, self.spacing_zyx = truth, prediction, spacing_zyx

    @classmethod
    def read(cls, task: Task) -> _Case:
        truth, prediction = read_volume(task.inputs[1]), read_volume(task.outputs[0])
        require_same_grid(prediction, truth, task.inputs[1])
        return cls(require_label_map(truth.array, task.inputs[1]), prediction.array, prediction.spacing_zyx)

    def try_step(self, step: Mapping[str, Any], number: int) -> tuple[float, float]:
        after = postprocess(self.prediction, [step], self.spacing_zyx)
        return self._dice(self.prediction, number), self._dice(after, number)

    def take(self, step: Mapping[str, Any]) -> None:
        self.prediction = postprocess(self.prediction, [step], self.spacing_zyx)

    def _dice(self, prediction: np.ndarray, number: int) -> float:
        counts = class_counts(confusion_matrix(self.truth == number, prediction == number, 2))
        value = float(dice(counts)[1])
        return 1.0 if np.isnan(value) else value
