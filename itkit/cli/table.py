"""Every command that itkit brings, once: shell commands, their help, the pages about them, forms and tests read it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from itkit._support.suggestions import did_you_mean
from itkit.cli.parameters import Parameter
from itkit.errors import UsageError


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


@dataclass(frozen=True)
class Tool:
    """One data tool, or one way of working of a tool.

    Attributes:
        name: As it is typed, e.g. ``"itk_orient"``; of a variant its own word, e.g. ``"format"``.
        summary: One line, without a full stop.
        operation: ``module:class`` of the `Operation` that does it; its fields are called as the parameters are.
        parameters: What it takes, besides `RUN_PARAMETERS` (of an action: besides `ACTION_PARAMETERS`).
        description: Paragraphs for the help and the page; may be empty.
        examples: Pairs (command line, what it does).
        documents: Pairs (file in the destination, what it says), besides ``ledger.jsonl``.
        variants: Ways of working that take different parameters, each chosen by its word. Where the tool has an own way
            too (`operation`), the word must be the first; a variant that is called as a flag, e.g. ``"--compare"``, takes
            the place of the own way wherever the flag is given.
        last_word: A parameter declared with count ``"?"`` that takes the last word of the line, although a flag with
            several values stands before it.
        action: Of a way of working that is no run over cases: ``module:function`` that does it. The function takes the
            parameters by name and ``say``, to be called with one line before a long step; it returns the lines for the
            terminal and a document for ``--json``.
    """

    name: str
    summary: str
    operation: str = ""
    parameters: tuple[Parameter, ...] = ()
    description: str = ""
    examples: tuple[tuple[str, str], ...] = ()
    documents: tuple[tuple[str, str], ...] = ()
    variants: tuple[Tool, ...] = field(default=())
    last_word: str | None = None
    action: str = ""


TOOL_MODULES = {
    "itk_check": "itkit.cli.tools.check",
    "itk_resample": "itkit.cli.tools.resample",
    "itk_orient": "itkit.cli.tools.orient",
    "itk_patch": "itkit.cli.tools.patch",
    "itk_aug": "itkit.cli.tools.aug",
    "itk_extract": "itkit.cli.tools.extract",
    "itk_combine": "itkit.cli.tools.combine",
    "itk_convert": "itkit.cli.tools.convert",
    "itk_evaluate": "itkit.cli.tools.evaluate",
    "itk_infer": "itkit.cli.tools.infer",
}
"""Tool -> module whose `TOOL` declares it; only the one that is asked for is imported."""

SUMMARIES = {
    "itk_check": "open every image and label and say what is wrong with them",
    "itk_resample": "put volumes on a grid with another spacing or size, or on the grids of other volumes",
    "itk_orient": "turn the axes of volumes towards one of the 48 orientations",
    "itk_patch": "cut volumes into patches for training, each at its own place in space",
    "itk_aug": "write randomly changed copies of images and their labels",
    "itk_extract": "take some classes out of label maps and give them new numbers",
    "itk_combine": "make one label map of several, by rules",
    "itk_convert": "change the file format or the layout of a dataset, there and back",
    "itk_evaluate": "measure predicted label maps against true ones, or compare methods",
    "itk_infer": "predict label maps with a trained model",
}

PLANNED: dict[str, str] = {}
"""Tools that have a name and nothing behind it yet."""

OTHER_COMMANDS = (
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

COMMANDS = (
    OTHER_COMMANDS[0],
    *(Command(name, f"itkit.cli.main:{name}", summary) for name, summary in {**SUMMARIES, **PLANNED}.items()),
    *OTHER_COMMANDS[1:],
)


def load_tool(name: str) -> Tool:
    """Return the declaration of the tool called `name`.

    Raises:
        UsageError: If there is none, or it is only planned.
    """
    if name in PLANNED:
        raise UsageError(f"{name} is planned and not built yet.")
    if name not in TOOL_MODULES:
        raise UsageError(
            f"{name!r} is no data tool; found {', '.join(TOOL_MODULES)}.{did_you_mean(name, TOOL_MODULES)}"
        )
    return importlib.import_module(TOOL_MODULES[name]).TOOL


def all_tools() -> Iterator[Tool]:
    """Yield the declarations of all tools, in the order of the table."""
    return (load_tool(name) for name in TOOL_MODULES)


def as_markdown() -> str:
    """Return the table of commands as Markdown."""
    rows = ["| command | what it does |", "|---|---|"]
    rows += [f"| `{command.name}` | {command.summary} |" for command in COMMANDS]
    return "\n".join(rows)
