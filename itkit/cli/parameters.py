"""What a parameter of a tool is: one description from which argument parsers, documentation and forms come."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """One parameter of a tool.

    Attributes:
        flags: ``("source",)`` for a positional word, else e.g. ``("-r", "--recursive")``.
        help: What it does, with unit, axis order and default; no full stop.
        kind: One of `KINDS`; it decides how a word is read and which field a form shows.
        count: Number of words: None one, a number that many, ``"?"``, ``"*"`` or ``"+"``.
        default: Value where it is not given.
        choices: The words that are allowed.
        metavar: How the words are called in the help.
        required: Whether it must be given (positional ones must be anyhow).
        field: The operation's field that gets it; None: made of the longest flag.
        repeated: May be given several times; the values are collected.
    """

    flags: tuple[str, ...]
    help: str
    kind: str = "text"
    count: int | str | None = None
    default: Any = None
    choices: tuple[str, ...] | None = None
    metavar: str | tuple[str, ...] | None = None
    required: bool = False
    field: str | None = None
    repeated: bool = False

    @property
    def name(self) -> str:
        """The operation's field that gets the value."""
        return self.field or max(self.flags, key=len).lstrip("-").replace("-", "_")

    @property
    def is_positional(self) -> bool:
        """Whether it has no flag."""
        return not self.flags[0].startswith("-")

    def add_to(self, parser: Any) -> None:
        """Add it to an argument parser, or to a group of one."""
        options: dict[str, Any] = {"help": self.help.replace("%", "%%"), "default": self.default}
        if not self.is_positional:
            options["dest"] = self.name
            if self.required:
                options["required"] = True
        if self.kind == "flag":
            options |= {"action": "store_true", "default": bool(self.default)}
        else:
            options |= {"type": KINDS[self.kind], "metavar": self.metavar, "choices": self.choices}
            if self.count is not None:
                options["nargs"] = self.count
            if self.repeated:
                options["action"] = "append" if self.count is None else "extend"
        parser.add_argument(*(self.flags if not self.is_positional else (self.name,)), **options)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _count(text: str) -> int:
    value = _whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return value


def _positive(text: str) -> int:
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


KINDS: dict[str, Callable | None] = {
    "text": str,
    "folder": str,
    "file": str,
    "whole": _whole,
    "count": _count,
    "positive": _positive,
    "number": _number,
    "share": _share,
    "flag": None,
}
"""Kind -> how a word is read. ``whole``: any integer; ``count``: 0 or more; ``positive``: 1 or more; ``number``: finite;
``share``: between 0 and 1."""

SOURCE = Parameter(
    ("source",), "folder of volumes, or a dataset with image/ and label/; never written to", "folder", metavar="SRC"
)
DESTINATION = Parameter(
    ("destination",), "folder of the results and of ledger.jsonl; made if missing", "folder", metavar="DST"
)
FIX_GEOMETRY = Parameter(
    ("--fix-geometry",),
    "make directions that are not orthonormal so, and record it in the ledger; otherwise such a case fails",
    "flag",
)
RECURSIVE = Parameter(("-r", "--recursive"), "look into subfolders; their layout is kept", "flag")

RUN_PARAMETERS = (
    Parameter(("--mp",), "work in several processes, as many as cores and memory allow", "flag"),
    Parameter(
        ("--workers", "--num-proc"), "number of processes; implies --mp", "positive", metavar="N", field="workers"
    ),
    Parameter(
        ("--shard",),
        "do the I-th of N parts of the cases, e.g. one for each task of a Slurm array; the part that ends last writes the "
        "documents about the whole",
        metavar="I/N",
    ),
    Parameter(
        ("--scheduler",),
        "do the cases on the workers of a dask.distributed cluster that see the same folders, e.g. tcp://node1:8786 (needs "
        "itkit[dask])",
        metavar="ADDRESS",
    ),
    Parameter(("--overwrite",), "do all cases again and replace what is there", "flag"),
    Parameter(("--dry-run",), "only say what would be done, and why", "flag"),
    Parameter(("--json",), "one JSON document on stdout; everything else goes to stderr", "flag"),
    Parameter(("-q", "--quiet"), "no progress and no notes; failures and the last line only", "flag"),
)
"""What every tool takes about how it is run; none of it changes the results."""

ACTION_PARAMETERS = (
    Parameter(("--overwrite",), "replace what is there", "flag"),
    Parameter(("--json",), "one JSON document on stdout; everything else goes to stderr", "flag"),
    Parameter(("-q", "--quiet"), "say nothing but the result, and what failed", "flag"),
)
"""What a way of working takes that is no run over cases."""
