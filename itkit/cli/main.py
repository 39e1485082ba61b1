"""The one main of all data tools: words to parameters, an operation run, what came of it said, an exit code."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import signal
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from itkit import __version__
from itkit._support.threads import prefer_one_thread
from itkit.cli.parameters import ACTION_PARAMETERS, RUN_PARAMETERS
from itkit.cli.table import PLANNED, TOOL_MODULES, Tool, load_tool
from itkit.errors import ItkitError, UsageError

if TYPE_CHECKING:
    from itkit.process.execution import RunOptions, RunSummary

EXIT_CODES = """
exit codes
  0 every case is done   1 some cases failed, each is named with its reason   2 usage   130, 143 interrupted, terminated
A second run does only what is missing, failed, or stale (its input or a parameter changed); see ledger.jsonl.
"""

ACTION_EXIT_CODES = """
exit codes
  0 done   1 failed, with the reason   2 usage   130, 143 interrupted, terminated
"""


def build_parser(tool: Tool) -> argparse.ArgumentParser:
    """Return the argument parser of a tool."""
    parser = _parser(tool, prog=tool.name)
    if not (tool.operation or tool.action):
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
        "epilog": epilog + (ACTION_EXIT_CODES if tool.action else EXIT_CODES),
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }


def _fill(parser: argparse.ArgumentParser, tool: Tool) -> None:
    parser._negative_number_matcher = re.compile(r"^-\.?\d")  # -1:400 is a value, as -1 is; no flag begins so
    for parameter in tool.parameters:
        parameter.add_to(parser)
    how = parser.add_argument_group("how it is run (the results do not depend on it)")
    for parameter in ACTION_PARAMETERS if tool.action else RUN_PARAMETERS:
        parameter.add_to(how)


class Terminated(BaseException):
    """Somebody asked the process to end (SIGTERM)."""


def run_tool(name: str, words: Sequence[str] | None = None) -> int:
    """Run the tool `name` with the words of a command line (None: those of the process) and return its exit code.

    Raises:
        UsageError: If there is no such tool.
    """
    words = list(sys.argv[1:] if words is None else words)
    tool = by_flag(load_tool(name), words)
    parser = build_parser(tool)
    options = vars(parser.parse_args(words))
    if tool.last_word and options[tool.last_word] is None:
        options[tool.last_word] = _last_word(parser, tool, options, words)
    sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    chosen = next((variant for variant in tool.variants if variant.name == options.get("variant")), tool)
    try:
        with _sigterm_is_heard():
            return _act(chosen, options) if chosen.action else _run(name, chosen, options)
    except ItkitError as error:
        return _refused(name, str(error), error.exit_code, options)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has read enough
        return 0
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return _refused(name, f"{where}{error.strerror or error}.", 1, options)
    except (KeyboardInterrupt, Terminated) as stop:
        how, code = ("interrupted", 130) if isinstance(stop, KeyboardInterrupt) else ("terminated", 143)
        say(f"{name}: {how}; what is done is noted, run it again and it does what is left")
        return code


def run_named(name: str, words: Sequence[str] | None = None) -> int:
    """Do what `run_tool` does; a name that is no tool, or only planned, is said and gives its exit code."""
    try:
        return run_tool(name, words)
    except UsageError as error:
        say(str(error))
        return error.exit_code


@contextlib.contextmanager
def _sigterm_is_heard() -> Iterator[None]:
    """Let SIGTERM end the block by an exception, so that workers are stopped and nothing unfinished stays."""

    def stop(*_: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _refused(name: str, message: str, code: int, options: dict[str, Any]) -> int:
    say(f"{name}: {message}")
    if options["json"]:
        _write_json({"tool": name, "itkit": __version__, "error": message, "exit_code": code})
    return code


def by_flag(tool: Tool, words: list[str]) -> Tool:
    """Return the variant whose flag is among `words`, or whose word comes first where the tool has an own way too, and take
    it out of them; the tool itself if there is none.
    """
    for variant in tool.variants:
        flag = variant.name.startswith("-") and variant.name in words
        if flag or (tool.operation and words[:1] == [variant.name]):
            words.remove(variant.name)
            return replace(variant, name=f"{tool.name} {variant.name}")
    return tool


def _last_word(parser: argparse.ArgumentParser, tool: Tool, options: dict[str, Any], words: Sequence[str]) -> str:
    """Take the last word of the line from the flag that swallowed it."""
    lists = [options[parameter.name] for parameter in tool.parameters if parameter.count == "+"]
    lists = [values for values in lists if values and len(values) > 1]
    if lists:
        return max(lists, key=lambda values: max(at for at, word in enumerate(words) if word == values[-1])).pop()
    parser.error(f"the last word must be the {tool.last_word}")


def _run(name: str, tool: Tool, options: dict[str, Any]) -> int:
    prefer_one_thread()
    from itkit.cli.progress import case_progress
    from itkit.process.execution import RunOptions, Shard, run_operation

    module, _, kind = tool.operation.partition(":")
    operation = getattr(importlib.import_module(module), kind)(
        **{parameter.name: options[parameter.name] for parameter in tool.parameters}
    )
    how = RunOptions(
        workers=options["workers"] or (None if options["mp"] else operation.processes),
        overwrite=options["overwrite"],
        dry_run=options["dry_run"],
        shard=None if options["shard"] is None else Shard.parse(options["shard"]),
        scheduler=options["scheduler"],
    )
    with case_progress(name, quiet=options["quiet"]) as progress, warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", UserWarning)
        summary, entries = run_operation(operation, how, progress=progress, ask=_ask)
    hints = [str(warning.message) for warning in heard if warning.category is UserWarning]
    for hint in dict.fromkeys(hints):
        say(f"{name}: {hint}")
    place = os.fspath(operation.destination)
    if options["json"]:
        _write_json(
            {
                "tool": name,
                "itkit": __version__,
                "destination": place,
                "parameters": operation.parameters(),
                "dry_run": how.dry_run,
                "shard": options["shard"],
                "workers": summary.workers,
                "done": summary.done,
                "current": summary.current,
                "failed": summary.failed,
                "why": summary.why,
                "notes": summary.notes,
                "documents": [os.fspath(path) for path in summary.documents],
                "problems": summary.problems,
                "hints": list(dict.fromkeys(hints)),
                "elsewhere": summary.elsewhere,
                "gone": summary.gone,
                "seconds": round(summary.seconds, 3),
                "exit_code": summary.exit_code,
            }  # fmt: skip
        )
    elif not how.dry_run and not summary.elsewhere:
        text = operation.describe(entries)
        if text:
            sys.stdout.write(text.rstrip("\n") + "\n")
    elif how.dry_run:
        for case_id in summary.done:
            sys.stdout.write(f"  to do   {case_id}: {summary.why[case_id]}\n")
    _tell(name, place, summary, how, quiet=options["quiet"])
    return summary.exit_code


def _act(tool: Tool, options: dict[str, Any]) -> int:
    """Do what is no run over cases, and say what came of it."""
    module, _, function = tool.action.partition(":")
    hint = (lambda line: None) if options["quiet"] else lambda line: say(f"{tool.name}: {line}")
    values = {parameter.name: options[parameter.name] for parameter in tool.parameters}
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", UserWarning)
        lines, document = getattr(importlib.import_module(module), function)(
            **values, overwrite=options["overwrite"], say=hint
        )
    hints = list(dict.fromkeys(str(warning.message) for warning in heard if warning.category is UserWarning))
    for text in hints:
        say(f"{tool.name}: {text}")
    if options["json"]:
        _write_json({"tool": tool.name, "itkit": __version__, **document, "hints": hints, "exit_code": 0})
    else:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _tell(name: str, place: str, summary: RunSummary, how: RunOptions, *, quiet: bool) -> None:
    """Say what came of a run: notes, failures, what is open, and the counts in the last line."""
    if not quiet:
        for case_id, notes in sorted(summary.notes.items()):
            for note in notes:
                say(f"  note    {case_id}: {note}")
    for case_id, reason in sorted(summary.failed.items()):
        say(f"  FAILED  {case_id}: {reason}")
    for problem in summary.problems:
        say(f"{name}: {problem}")
    if summary.gone and not quiet:
        say(f"{name}: the ledger holds {summary.gone} more, which the source does not have any more")
    if summary.elsewhere and not quiet:
        say(
            f"{name}: {summary.elsewhere} cases of other shards are not done yet; the shard that ends last writes the "
            "documents"
        )
    verb = "to do" if how.dry_run else "done"
    say(f"{name}: {len(summary.done)} {verb}, {len(summary.current)} up to date, {len(summary.failed)} failed; {place}")


def _write_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False, default=str) + "\n")


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
    if name not in TOOL_MODULES and name not in PLANNED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def main(words: Sequence[str] | None = None) -> int:
        return run_named(name, words)

    main.__name__ = name
    return main
