"""Every command that itkit brings, once: shell commands, the table in the README and their tests read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: As it is typed.
        target: ``module:function`` that runs it; the function takes the words after the name and returns the exit code.
        summary: One line, without a full stop.
    """

    name: str
    target: str
    summary: str


COMMANDS = (
    Command("mmrun", "itkit.mm.run:main", "train, resume, test and report the models of versioned experiments"),
    Command(
        "python -m itkit.dataset.MSD.convert_nii_mha",
        "itkit.dataset.MSD.convert_nii_mha:main",
        "convert a task of the Medical Segmentation Decathlon to the one layout",
    ),
    Command(
        "python -m itkit.dataset.Phantom",
        "itkit.dataset.Phantom.generate:main",
        "make the phantom dataset in a folder of your choice",
    ),
)


def as_markdown() -> str:
    """Return the table of commands as Markdown."""
    rows = ["| command | what it does |", "|---|---|"]
    rows += [f"| `{command.name}` | {command.summary} |" for command in COMMANDS]
    return "\n".join(rows)
