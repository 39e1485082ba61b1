"""Check what the documents show: Python blocks run, commands parse, links lead somewhere, tables are up to date.

A ```python block is executed in an empty folder, each file's blocks one after the other in one namespace; ```python no-run is
only compiled. In ```bash blocks every `mmrun` and `itk_*` line must be accepted by its parser, every `make` target must exist,
and every `python -m` or `python tools/...` must name something that is there.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(?P<kind>[^\n`]*)\n(?P<text>.*?)^```", re.M | re.S)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\((?P<target>[^)#\s]+)(#[^)]*)?\)")


def main() -> int:
    """Check all documents; print each problem and return 1 if there is one."""
    pages = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    problems = [f"{page.relative_to(ROOT)}: {problem}" for page in pages for problem in check_page(page)]
    for problem in problems:
        print(problem)
    print(f"{len(pages)} documents, {len(problems)} problems")
    return 1 if problems else 0


def check_page(page: Path) -> list[str]:
    """Return the problems of one document."""
    text = page.read_text(encoding="utf-8")
    problems = [
        f"link to {m['target']} leads nowhere"
        for m in LINK.finditer(BLOCK.sub("", text))
        if not link_holds(page, m["target"])
    ]
    namespace: dict = {"__name__": "example"}
    for block in BLOCK.finditer(text):
        kind = block["kind"].split()
        line = text.count("\n", 0, block.start()) + 1
        if kind[:1] == ["python"]:
            problems += run_python(block["text"], f"{page.name}:{line}", namespace, run="no-run" not in kind)
        elif kind[:1] == ["bash"]:
            problems += [f"line {line}: {p}" for p in check_commands(block["text"])]
    if page.name == "README.md" and page.parent == ROOT:
        from itkit.cli.table import as_markdown

        if as_markdown() not in text:
            problems.append("the table of commands is not the one of itkit.cli.table")
    return problems


def link_holds(page: Path, target: str) -> bool:
    """Whether a link is external or names a file."""
    return target.startswith(("http", "mailto:")) or (page.parent / target).exists()


def run_python(source: str, name: str, namespace: dict, *, run: bool) -> list[str]:
    """Compile, and execute in an empty folder, one block."""
    try:
        code = compile(source, name, "exec")
        if run:
            with tempfile.TemporaryDirectory() as folder:
                before = os.getcwd()
                os.chdir(folder)
                try:
                    exec(code, namespace)
                finally:
                    os.chdir(before)
    except Exception as error:  # border: any failure of an example is a problem to be listed
        return [f"{name}: {type(error).__name__}: {error}"]
    return []


def check_commands(text: str) -> list[str]:
    """Return what is wrong with the commands of a shell block."""
    from itkit.cli.main import build_parser as tool_parser
    from itkit.cli.main import by_flag
    from itkit.cli.table import TOOL_MODULES, load_tool
    from itkit.mm.run import build_parser

    problems = []
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words = words[1:]
        if not words:
            continue
        if words[0] == "mmrun":
            try:
                build_parser().parse_args(words[1:])
            except SystemExit as stop:
                if stop.code:
                    problems.append(f"mmrun refuses: {line}")
        elif words[0] in TOOL_MODULES:
            try:
                rest = words[1:]
                tool_parser(by_flag(load_tool(words[0]), rest)).parse_args(rest)
            except SystemExit as stop:
                if stop.code:
                    problems.append(f"{words[0]} refuses: {line}")
        elif words[0] == "make":
            problems += [f"no make target {word}" for word in words[1:] if word not in targets and "=" not in word]
        elif words[0].startswith("python") and len(words) > 2 and words[1] == "-m":
            if importlib.util.find_spec(words[2]) is None:
                problems.append(f"no module {words[2]}")
        elif (
            words[0].startswith("python")
            and len(words) > 1
            and words[1].endswith(".py")
            and not (ROOT / words[1]).exists()
        ):
            problems.append(f"no script {words[1]}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
