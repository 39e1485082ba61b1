"""``python -m itkit.cli``: the list of all data tools, and each of them where the shell commands are not on the path."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from itkit.cli.main import run_named
from itkit.cli.table import SUMMARIES


def main(words: Sequence[str] | None = None) -> int:
    """List the tools, or run the one that is named first; return the exit code."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, SUMMARIES)) + 2
        lines = [f"  {name:{width}}{summary}" for name, summary in SUMMARIES.items()]
        sys.stdout.write("\n".join(["The data tools; NAME --help says more of each.", "", *lines]) + "\n")
        return 0
    return run_named(words[0], words[1:])


if __name__ == "__main__":
    sys.exit(main())
