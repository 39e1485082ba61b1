"""The progress bar of work over cases: how many, how long still."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from itkit.process.execution import Progress as Listener


@contextlib.contextmanager
def case_progress(title: str) -> Iterator[Listener]:
    """Show a bar on stderr while the block runs (nothing where stderr is no terminal)."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[case]}"),
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None, case="")

        def finished(number: int, total: int, case_id: str) -> None:
            bar.update(task, completed=number, total=total, case=case_id)

        yield finished
