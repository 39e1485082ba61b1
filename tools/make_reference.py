"""Write docs/reference.md (every registered component of itkit and every command) and the parameter tables in docs/tools/.

What is written depends on the code alone, so two runs give the same bytes. ``--check`` writes nothing and exits with 1 if a
file is not what it would be. In the page of a tool only what stands between the two comments is written.

    python tools/make_reference.py [--check]
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmengine.registry import Registry

from itkit import registry as registries
from itkit._support.files import write_text
from itkit.cli.parameters import RUN_PARAMETERS, Parameter
from itkit.cli.table import all_tools, as_markdown
from itkit.measures.case import MEASURES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference.md"
TOOLS = PAGE.parent / "tools"
BEGIN = "<!-- from here on written by tools/make_reference.py -->"
END = "<!-- to here -->"
HEAD = """# Reference

Written by `python tools/make_reference.py`; do not edit. Each component is registered under its name, so a config takes the
class or the name: `dict(type=RandomFlip)` or `dict(type="RandomFlip")`. What each argument means stands in the docstring:

```bash
python -m pydoc itkit.transforms.RandomFlip
```

Two further sources answer to names: `monai.<Class>` (networks, losses, blocks, transforms) and everything that MMEngine, MMCV
and MMSegmentation register.
"""
TITLES = {
    "DATASETS": "Datasets",
    "TRANSFORMS": "Transforms",
    "DATA_SAMPLERS": "Samplers",
    "FUNCTIONS": "Functions",
    "MODELS": "Task models, networks and losses",
    "METRICS": "Metrics",
    "OPTIMIZERS": "Optimizers",
    "OPTIM_WRAPPERS": "Optimizer wrappers",
    "OPTIM_WRAPPER_CONSTRUCTORS": "Optimizer wrapper constructors",
    "PARAM_SCHEDULERS": "Schedulers",
    "LOOPS": "Loops",
    "HOOKS": "Hooks",
    "VISBACKENDS": "Where scalars and pictures go",
}
"""Registries in the order of the page; others follow under their own name."""
LEFT_OUT = ("RUNNERS",)
"""What `mmrun` chooses itself."""


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or compare them; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    options = parser.parse_args(arguments)
    outdated = []
    for path, text in [(PAGE, page()), *tool_pages()]:
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        outdated.append(path)
        if not options.check:
            write_text(path, text)
            print(f"{path}: {len(text.encode())} bytes")
    if not options.check:
        return 0
    for path in outdated:
        print(f"{path}: is out of date; run python tools/make_reference.py")
    return 1 if outdated else 0


def tool_pages() -> Iterator[tuple[Path, str]]:
    """Yield path and text of the page of each data tool, and of the page about all of them."""
    links = [f"| [`{t.name}`]({t.name.removeprefix('itk_')}.md) | {t.summary} |" for t in all_tools()]
    overview = "\n".join(["| tool | what it does |", "|---|---|", *links])
    yield TOOLS / "index.md", with_part(TOOLS / "index.md", f"{overview}\n\n{table_of(RUN_PARAMETERS)}")
    for tool in all_tools():
        path = TOOLS / f"{tool.name.removeprefix('itk_')}.md"
        ways = [tool] if tool.operation else []
        parts = ["## Parameters"]
        for way in [*ways, *tool.variants]:
            if way is not tool:
                parts.append(f"`{tool.name} {way.name}`: {way.summary}.")
            parts.append(table_of(way.parameters))
        parts.append("What every tool takes besides (`--mp`, `--workers`, `--shard`, ...): [the data tools](index.md).")
        yield path, with_part(path, "\n\n".join(parts), head=f"# {tool.name}\n\n{tool.description or tool.summary}\n")


def with_part(path: Path, part: str, head: str = "") -> str:
    """Return the page `path` (`head` where there is none) with `part` between the comments, or at its end."""
    text = path.read_text(encoding="utf-8") if path.is_file() else head
    part = f"{BEGIN}\n\n{part}\n\n{END}\n"
    if BEGIN in text and END in text:
        before, _, rest = text.partition(BEGIN)
        return before + part + rest.partition(END)[2].removeprefix("\n")
    return f"{text.rstrip()}\n\n{part}"


def table_of(parameters: Sequence[Parameter]) -> str:
    """Return parameters as a Markdown table, written as they are typed."""
    rows = ["| parameter | what it does |", "|---|---|"]
    for parameter in parameters:
        parser = argparse.ArgumentParser(add_help=False)
        parameter.add_to(parser)
        words = parser.format_usage().removeprefix("usage: ").partition(" ")[2].split()
        typed = " ".join(words)
        if typed.startswith("[") and typed.endswith("]") and not parameter.is_positional:
            typed = typed[1:-1]
        if len(parameter.flags) > 1:
            rest = typed.partition(" ")[2]
            typed = f"{', '.join(parameter.flags)} {rest}".strip()
        cells = (f"`{typed}`", parameter.help.replace("<", "&lt;"))
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def page() -> str:
    """Return the whole page."""
    parts = [HEAD, "## Commands\n", as_markdown() + "\n"]
    for title, components in sections():
        parts.append(f"## {title}\n")
        parts += [entry(name, component) for name, component in components]
    measures = ", ".join(f"`{name}`" for name in MEASURES)
    parts.append(f"## Measures\n\nNames for `measures` of a metric, defined in [metrics](metrics.md): {measures}.\n")
    return "\n".join(parts)


def sections() -> Iterator[tuple[str, list[tuple[str, object]]]]:
    """Yield the title and the components of each registry that holds any of itkit's."""
    found = {key: value for key, value in vars(registries).items() if is_ours(value)}
    for key in [*TITLES, *sorted(found.keys() - TITLES.keys() - set(LEFT_OUT))]:
        registry = found[key]
        registry.import_from_location()
        own = {n: c for n, c in registry.module_dict.items() if c.__module__.partition(".")[0] == registries.SCOPE}
        if own:
            yield TITLES.get(key, registry.name.capitalize()), sorted(own.items(), key=lambda item: item[0].lower())


def is_ours(value: object) -> bool:
    """Whether `value` is one of itkit's own registries, and not the window into a library's."""
    return isinstance(value, Registry) and value.scope == registries.SCOPE


def entry(name: str, component: object) -> str:
    """Return the lines of one component."""
    base = registered_base(component)
    arguments = f"`{name}{signature(component)}`" if base is None else f"Arguments as of [{base}](#{base.lower()})."
    return f"### {name}\n\n{arguments}\n\n{first_line(component)} In `{component.__module__}`.\n"


def registered_base(component: object) -> str | None:
    """Return the registered class whose constructor the component inherits; None if it has its own."""
    for base in getattr(component, "__mro__", ()):
        if "__init__" in vars(base):
            known = any(is_ours(r) and base in r.module_dict.values() for r in vars(registries).values())
            return base.__name__ if known and base is not component else None
    return None


def signature(component: object) -> str:
    """Return the arguments with their defaults, without annotations."""
    parameters = list(inspect.signature(component).parameters.values())
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    for i, parameter in enumerate(plain):
        if inspect.isclass(parameter.default) and parameter.default is not inspect.Parameter.empty:
            plain[i] = parameter.replace(default=_Bare(parameter.default.__name__))
    return str(inspect.Signature(plain))


class _Bare:
    """A default that is shown by its name."""

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return self.name


def first_line(component: object) -> str:
    """Return the first sentence block of the component's own docstring, on one line, RST marks turned into Markdown's."""
    text = inspect.cleandoc(vars(component).get("__doc__") or "") if inspect.isclass(component) else component.__doc__
    if not text:
        raise SystemExit(f"{component.__module__}.{component.__name__} has no docstring of its own.")
    line = " ".join(inspect.cleandoc(text).split("\n\n")[0].split())
    return line.replace("``", "`")


if __name__ == "__main__":
    sys.exit(main())
