"""The way to run a data tool in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from itkit.cli.main import run_tool

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))


@pytest.fixture
def tool(capsys) -> Callable:
    """Run a tool: returns exit code, stdout and stderr."""

    def run(name: str, *words) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = run_tool(name, [str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
