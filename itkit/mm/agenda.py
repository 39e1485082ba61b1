"""What one command has to do and what came of it, also across a fresh start of its processes."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field

VARIABLE = "ITKIT_AGENDA"


@dataclass(frozen=True)
class Outcome:
    """What came of one model.

    Attributes:
        message: One line for the summary.
        exit_code: 0 if all went well, else that of the error.
        traceback_file: Where the traceback of a failure lies.
    """

    experiment: str
    model: str
    message: str
    exit_code: int = 0
    traceback_file: str | None = None

    @property
    def title(self) -> str:
        """Experiment and model, as in messages."""
        return f"{self.experiment}/{self.model}"


@dataclass(frozen=True)
class Failure:
    """What one of several processes tells the others when it cannot go on.

    Attributes:
        rank: The process.
        may_retry: Whether a further attempt could do better.
        run_dir: Run folder of the model.
    """

    experiment: str
    model: str
    rank: int
    message: str
    exit_code: int
    may_retry: bool
    traceback_file: str | None
    run_dir: str

    @property
    def outcome(self) -> Outcome:
        """The failure as the outcome of its model."""
        return Outcome(self.experiment, self.model, self.message, self.exit_code, self.traceback_file)


@dataclass
class Agenda:
    """Outcomes and attempts so far.

    Several processes cannot go on together after one of them failed: the others wait in a collective operation for ever.
    They start anew instead, each in its own place (the program is executed again), and find here what was done before.

    Attributes:
        outcomes: Of the models that are done, in their order.
        attempts: Failed attempts of models that are to be tried again.
        start: How often the processes started anew.
        cpu_s: CPU seconds that this process had used when it started anew; the system counts on.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    start: int = 0
    cpu_s: float = 0.0

    @classmethod
    def resume(cls) -> Agenda:
        """Return the agenda that this process was started anew with, else a blank one."""
        text = os.environ.pop(VARIABLE, None)
        if text is None:
            return cls()
        document = json.loads(text)
        return cls(
            [Outcome(**o) for o in document["outcomes"]], document["attempts"], document["start"], document["cpu_s"]
        )

    def after(self, failure: Failure, auto_retry: int) -> Agenda:
        """Return the agenda with which to start anew after `failure`: a further attempt if one is left, else the next model."""
        title = failure.outcome.title
        attempt = self.attempts.get(title, 0)
        others = {name: count for name, count in self.attempts.items() if name != title}
        done = [o for o in self.outcomes if o.title != title]
        if failure.may_retry and attempt < auto_retry:
            return Agenda(done, {**others, title: attempt + 1}, self.start + 1)
        return Agenda([*done, failure.outcome], others, self.start + 1)

    def as_text(self) -> str:
        """Return the agenda as a value of the environment."""
        return json.dumps(asdict(self))

    def outcome_of(self, experiment: str, model: str) -> Outcome | None:
        """Return what came of a model; None if it is still to be done."""
        return next((o for o in self.outcomes if (o.experiment, o.model) == (experiment, model)), None)


def exit_code(outcomes: list[Outcome]) -> int:
    """Return 0 if all models succeeded, 2 if nothing was possible for want of a sound config or name, else 1."""
    failed = [o.exit_code for o in outcomes if o.exit_code]
    if not failed:
        return 0
    return 2 if len(failed) == len(outcomes) and all(code == 2 for code in failed) else 1
