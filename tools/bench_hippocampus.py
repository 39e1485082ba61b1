"""Measure Dice against CPU minutes: train, test and report the models of 1.0.Hippocampus, each in a process of its own.

CPU minutes are user and system time of the whole tree of processes (loading, validation, test, pictures and report included),
as the kernel counts them. The test cases are looked at once, with the checkpoint that validation chose.

    python tools/bench_hippocampus.py [--models unet_small unet_strong] [--work-dir-root D] [--markdown]

Two measurements do not share a folder: a work directory that holds a run already is refused, `--show` only prints its table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from itkit._support.environment import data_path
from itkit._support.files import write_json
from itkit._support.resources import describe_machine
from itkit.errors import ItkitError, UsageError
from itkit.experiment.comparison import load_model as load_run
from itkit.experiment.comparison import mean_of
from itkit.experiment.names import Experiment, find_experiment, select_models

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
DATASET = "Task04_Hippocampus"
COST_FILE = "cost.json"
"""What the kernel counted for one model, beside its ``run.json``."""


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; return 0 if every model was trained and tested."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", metavar="M", help="only these models")
    parser.add_argument("--experiment", default="1.0", metavar="EXP", help="version or name (default 1.0)")
    parser.add_argument(
        "--work-dir-root", type=Path, metavar="D", help="where runs go (default: a new temporary folder)"
    )
    parser.add_argument("--cfg-options", nargs="+", metavar="K=V", help="handed on to mmrun")
    parser.add_argument(
        "--show", action="store_true", help="run nothing; print the table of what is in the work directory"
    )
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    options = parser.parse_args(arguments)
    try:
        experiment = find_experiment(options.experiment, CONFIGS)
        models = select_models(experiment, options.models)
        if options.show and options.work_dir_root is None:
            raise UsageError("--show needs --work-dir-root, the folder of an earlier measurement.")
        root = options.work_dir_root or Path(tempfile.mkdtemp(prefix="bench_hippocampus_"))
        root = root.resolve()
        if not options.show:
            require_data()
            require_new(experiment, models, root)
            for model in models:
                measure(experiment, model, root, options.cfg_options)
    except ItkitError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    found = [load_run(root / experiment.name / model, root / "test" / experiment.name / model) for model in models]
    print_tables(experiment, found, markdown=options.markdown)
    print(f"\nruns and report: {root}", file=sys.stderr)
    return 0 if all(run.state == "tested" for run in found) else 1


def require_data() -> None:
    """Refuse to start without the converted dataset.

    Raises:
        UsageError: If the folder of datasets is not known, or has no converted hippocampus task.
    """
    folder = data_path(DATASET)
    missing = [name for name in ("image", "label", "split.json") if not (folder / name).exists()]
    if missing:
        raise UsageError(
            f"{folder}: has no {', '.join(missing)}. Convert the task first: python -m itkit.dataset.MSD.convert_nii_mha "
            f"<{DATASET} as published> {folder}; the measured split needs its split.json there."
        )


def require_new(experiment: Experiment, models: list[str], root: Path) -> None:
    """Refuse a work directory that holds a run already: its minutes would be missing.

    Raises:
        UsageError: If one of the models has a run there.
    """
    for model in models:
        folder = root / experiment.name / model
        if folder.exists():
            raise UsageError(f"{folder}: holds a run already; give another --work-dir-root, or print it with --show.")


def measure(experiment: Experiment, model: str, root: Path, overrides: list[str] | None) -> None:
    """Train, test and report one model, and write what it cost beside its run."""
    command = [sys.executable, "-m", "itkit.mm.run", experiment.name, "--all", "--models", model]
    command += ["--config-root", str(CONFIGS), "--work-dir-root", str(root), "--test-work-dir-root", str(root / "test")]
    if overrides:
        command += ["--cfg-options", *overrides]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # the table on stdout is printed below, with more columns; progress stays on stderr
    finished = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    cost = {"cpu_minutes": seconds / 60, "exit_code": finished.returncode, "threads": os.environ.get("OMP_NUM_THREADS")}
    write_json(root / experiment.name / model / COST_FILE, cost)


def print_tables(experiment: Experiment, found: list, *, markdown: bool) -> None:
    """Print cost and test result of each model, and the way of validation Dice over CPU minutes."""
    machine = describe_machine()
    print(f"{experiment.name} on {machine['processor']}, {machine['cores']} cores, torch {version('torch')}")
    header = ["model", "parameters", "iterations", "CPU min in all", "CPU min training", "test Dice [95 %]"]
    classes = next((run.result["classes"] for run in found if run.result), [])
    header += [*(f"Dice {name}" for name in classes), "HD95 mm", "NSD"]
    print_table(header, [result_row(run, classes) for run in found], markdown=markdown)
    print("\nvalidation Dice after so many CPU minutes of training (time shared out by steps)")
    rows = [[run.name, *(f"{dice:.4f} at {minutes:.1f}" for minutes, dice in validations(run))] for run in found]
    columns = max((len(row) for row in rows), default=1)
    rows = [row + [""] * (columns - len(row)) for row in rows]
    print_table(["model", *(f"validation {i}" for i in range(1, columns))], rows, markdown=markdown)
    for run in found:
        if run.failure_message:
            print(f"{run.name}: {run.failure_message}")


def result_row(run, classes: list[str]) -> list[str]:
    """Return the cells of one model; a dash where it has no value."""
    dice = run.metrics.get("Dice", {})
    interval, by_class = dice.get("ci95"), dice.get("per_class", {})
    means = [number(mean_of(run, name), digits) for name, digits in (("HD95", 2), ("NSD", 3))]
    return [
        run.name,
        f"{run.run.parameters:,}" if run.run.parameters else "-",
        f"{run.run.step:,}",
        number(cpu_minutes_in_all(run), 2),
        number(run.run.cpu_minutes or None, 2),
        number(dice.get("mean"), 4) + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else ""),
        *(number(by_class.get(name), 4) for name in classes),
        *means,
    ]


def cpu_minutes_in_all(run) -> float | None:
    """Return the minutes that the kernel counted; None if the run was not measured by this tool."""
    try:
        return json.loads((run.folder / COST_FILE).read_text(encoding="utf-8"))["cpu_minutes"]
    except (OSError, ValueError, KeyError):
        return None


def validations(run) -> list[tuple[float, float]]:
    """Return (CPU minutes, Dice) of each validation; the minutes are the training's, shared out by steps."""
    rows = {row["step"]: row.get("Dice") for row in run.scalars() if row.get("split") == "val"}
    last = max(run.run.step, 1)
    return [(run.run.cpu_minutes * step / last, dice) for step, dice in sorted(rows.items()) if dice is not None]


def number(value: float | None, digits: int) -> str:
    """Return a number with so many decimals, a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def print_table(header: list[str], rows: list[list[str]], *, markdown: bool) -> None:
    """Print a table, columns aligned, as text or as Markdown."""
    if markdown:
        for cells in (header, ["---"] * len(header), *rows):
            print("| " + " | ".join(cells) + " |")
        return
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for cells in (header, ["-" * width for width in widths], *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
