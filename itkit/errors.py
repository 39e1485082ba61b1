"""Every exception that itkit raises on purpose, in one tree.

```
ItkitError                 exit 1   something a user can understand went wrong
├── UsageError             exit 2   the command line or an argument is wrong
│   └── ChangedRun         exit 2   a run would go on with another config or other data than it began with
├── ConfigError            exit 2   a config file or a component's arguments are wrong
├── ExperimentNotFound     exit 2   a name matches no experiment, or more than one
├── DataError              exit 1   a file of a case is missing, damaged or inconsistent (carries the path)
│   └── GeometryError      exit 1   the place in space of a volume is wrong or does not match its partner
├── CheckpointError        exit 1   a checkpoint is missing, damaged or of another model
│   └── UntrustedCheckpoint         it holds objects that could run code
├── ExportError            exit 1   a network has no ONNX graph, or its graph computes other numbers
├── TrainingError          exit 1   a run cannot go on (a loader worker died, the loss is not finite, ...)
│   └── LostContact        exit 1   another process of the run was killed, hangs, or cannot be reached
├── PredictionError        exit 1   a model cannot be applied (not enough memory, answers that are not finite, ...)
├── RunLocked              exit 1   another process works in the same work directory
└── MissingDependency      exit 1   an optional package is not installed (names the extra)
```

A command turns an exception into its exit code by ``error.exit_code``; nothing else decides about exit codes.
"""

from __future__ import annotations

import os


class ItkitError(Exception):
    """The root: whatever itkit raises on purpose is one of these."""

    exit_code = 1


class UsageError(ItkitError):
    """The command line, or an argument of a public function, makes no sense."""

    exit_code = 2


class ChangedRun(UsageError):
    """A run would go on with another config or other data than it began with, and nobody said that it may."""


class ConfigError(ItkitError):
    """A config file cannot be read, or asks for something that does not exist."""

    exit_code = 2


class ExperimentNotFound(ItkitError):
    """No experiment, or more than one, answers to the name that was given."""

    exit_code = 2


class DataError(ItkitError):
    """A file of a case cannot be used.

    Args:
        message: What is wrong and what to do, without the path.
        path: The offending file or folder. It is put in front of the message.
    """

    def __init__(self, message: str, path: str | os.PathLike | None = None):
        self.message = message
        self.path = None if path is None else os.fspath(path)
        super().__init__(message if self.path is None else f"{self.path}: {message}")

    def __reduce__(self):
        return type(self), (self.message, self.path)


class GeometryError(DataError):
    """Size, spacing, origin or direction are impossible, or differ where they must agree."""


class CheckpointError(ItkitError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class UntrustedCheckpoint(CheckpointError):
    """A checkpoint holds objects that could run code when they are loaded."""


class ExportError(ItkitError):
    """A network cannot be exported, or what was exported computes other numbers than the network."""


class TrainingError(ItkitError):
    """A run cannot go on."""


class LostContact(TrainingError):
    """Another process of the run was killed, hangs, or cannot be reached."""


class PredictionError(ItkitError):
    """A model cannot be applied to a volume."""


class RunLocked(ItkitError):
    """Another process holds the work directory."""


class MissingDependency(ItkitError):
    """An optional package is needed and absent.

    Args:
        package: The name to import.
        extra: The extra of itkit that installs it.
        purpose: What it is needed for, as the end of "needed for ...".
    """

    def __init__(self, package: str, extra: str, purpose: str = "this feature"):
        self.package, self.extra, self.purpose = package, extra, purpose
        super().__init__(
            f"{package} is needed for {purpose} and is not installed. Install it with: pip install 'itkit[{extra}]'"
        )

    def __reduce__(self):
        return type(self), (self.package, self.extra, self.purpose)
