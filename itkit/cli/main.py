"""The one main of all data tools: words to parameters, an operation run, what came of it said, an exit code."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from itkit import __version__
from itkit.cli.parameters import RUN_PARAMETERS
from itkit.cli.table import TOOL_MODULES, Tool, load_tool
from itkit.errors import ItkitError

EXIT_CODES = """
exit codes
  0 every case is done   1 some cases failed, each is named with its reason   2 usage   130 interrupted
A second run does only what is missing, failed, or stale (its input or a parameter changed); see ledger.jsonl.
"""


def build_parser(tool: Tool) -> argparse.ArgumentParser:
    """Return the argument parser of a tool."""
    parser = _parser(tool, prog=tool.name)
    if tool.variants:
        below = parser.add_subparsers(dest="variant", required=True, metavar="WHAT", title="what")
        for variant in tool.variants:
            made = below.add_parser(variant.name, help=variant.summary, **_texts(variant))
            _fill(made, variant)
    else:
        _fill(parser, tool)
    parser.add_argument("--version", action="version", version=f"itkit {__version__}")
    return parser


def _parser(tool: Tool, **options: Any) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(**options, **_texts(tool))


def _texts(tool: Tool) -> dict[str, Any]:
    lines = [textwrap.fill(paragraph, 110) for paragraph in tool.description.split("\n\n") if paragraph]
    epilog = ""
    if tool.examples:
        width = max(len(command) for command, _ in tool.examples) + 2
        epilog += "examples\n" + "".join(f"  {command:{width}}{what}\n" for command, what in tool.examples)
    if tool.documents:
        width = max(len(name) for name, _ in tool.documents) + 2
        epilog += "\nwritten into the destination\n"
        epilog += "".join(
            f"  {name:{width}}{what}\n"
            for name, what in (*tool.documents, ("ledger.jsonl", "what became of each case"))
        )
    return {
        "description": tool.summary[0].upper() + tool.summary[1:] + ".\n\n" + "\n\n".join(lines),
        "epilog": epilog + EXIT_CODES,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }


def _fill(parser: argparse.ArgumentParser, tool: Tool) -> None:
    parser._negative_number_matcher = re.compile(r"^-\.?\d")  # -1:400 is a value, as -1 is; no flag begins so
    for parameter in tool.parameters:
        parameter.add_to(parser)
    how = parser.add_argument_group("how it is run (the results do not depend on it)")
    for parameter in RUN_PARAMETERS:
        parameter.add_to(how)


def run_tool(name: str, words: Sequence[str] | None = None) -> int:
    """Run the tool `name` with the words of a command line (None: those of the process) and return its exit code."""
    tool = load_tool(name)
    parser = build_parser(tool)
    options = vars(parser.parse_args(words))
    if tool.last_word and options[tool.last_word] is None:
        options[tool.last_word] = _last_word(parser, tool, options, sys.argv[1:] if words is None else words)
    chosen = next((variant for variant in tool.variants if variant.name == options.get("variant")), tool)
    try:
        return _run(name, chosen, options)
    except ItkitError as error:
        say(f"{name}: {error}")
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has read enough
        return 0
    except KeyboardInterrupt:
        say(f"{name}: interrupted; run it again and it does what is left")
        return 130


def _last_word(parser: argparse.ArgumentParser, tool: Tool, options: dict[str, Any], words: Sequence[str]) -> str:
    """Take the last word of the line from the flag that swallowed it."""
    for parameter in tool.parameters:
        values = options[parameter.name]
        if parameter.count == "+" and values and len(values) > 1 and values[-1] == words[-1]:
            return values.pop()
    parser.error(f"the last word must be the {tool.last_word}")


def _run(name: str, tool: Tool, options: dict[str, Any]) -> int:
    from itkit.cli.progress import case_progress
    from itkit.process.execution import RunOptions, run_operation

    module, _, kind = tool.operation.partition(":")
    operation = getattr(importlib.import_module(module), kind)(
        **{parameter.name: options[parameter.name] for parameter in tool.parameters}
    )
    how = RunOptions(
        workers=options["workers"] or (None if options["mp"] else 1),
        overwrite=options["overwrite"],
        dry_run=options["dry_run"],
    )
    with case_progress(name) as progress:
        summary, entries = run_operation(operation, how, progress=progress, ask=_ask)
    text = None if how.dry_run else operation.describe(entries)
    if options["json"]:
        document = {
            "tool": name, "itkit": __version__, "destination": os.fspath(operation.destination), "dry_run": how.dry_run,
            "done": summary.done, "current": summary.current, "failed": summary.failed, "notes": summary.notes,
            "documents": [os.fspath(path) for path in summary.documents], "seconds": round(summary.seconds, 3),
        }  # fmt: skip
        sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    elif text:
        sys.stdout.write(text.rstrip("\n") + "\n")
    for case_id, notes in sorted(summary.notes.items()):
        for note in notes:
            say(f"  note    {case_id}: {note}")
    for case_id, reason in sorted(summary.failed.items()):
        say(f"  FAILED  {case_id}: {reason}")
    verb = "to do" if how.dry_run else "done"
    say(
        f"{name}: {len(summary.done)} {verb}, {len(summary.current)} up to date, {len(summary.failed)} failed; "
        f"{os.fspath(operation.destination)}"
    )
    return summary.exit_code


def say(text: str) -> None:
    """Write one message to the terminal (stderr, so that stdout stays free for results)."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _ask(question: str) -> bool:
    if not sys.stdin.isatty():
        return False
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def __getattr__(name: str) -> Callable[[], int]:
    """Give each tool of the table a function, which is what its shell command calls."""
    if name not in TOOL_MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def main(words: Sequence[str] | None = None) -> int:
        return run_tool(name, words)

    main.__name__ = name
    return main
