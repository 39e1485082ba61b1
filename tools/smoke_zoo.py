"""Train every network of the zoo for 20 iterations on the phantoms through ``mmrun --smoke``; does the loss fall?

    python tools/smoke_zoo.py                       all of 0.2, 0.3 and 0.4
    python tools/smoke_zoo.py 0.3 --models dsnet    one of them

Prints the mean loss of the first and of the last five iterations; the exit code is 1 if one does not fall or a run fails. The
loss of a network with a queue (MoCo v1, v2) is counted from where the queue holds keys of images: the random ones that it begins
with are easily told apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from itkit._support.resources import cpu_seconds
from itkit.experiment.names import find_experiment, select_models
from itkit.mm import run

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
EXPERIMENTS = ("0.2", "0.3", "0.4")
WINDOW = 5
EVERY_STEP = ("default_hooks.logger.interval=1", "log_processor.window_size=1")


def losses_of(folder: Path) -> list[float]:
    """Return the training loss of every iteration of a run."""
    rows = [json.loads(line) for line in (folder / "scalars.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["loss"] for row in rows if row.get("split", "train") == "train" and "loss" in row]


def first_and_last(losses: list[float], steps_to_fill: int = 0) -> tuple[float, float]:
    """Return the mean loss of the first iterations, after a queue was filled, and that of the last ones."""
    return statistics.fmean(losses[steps_to_fill : steps_to_fill + WINDOW]), statistics.fmean(losses[-WINDOW:])


def steps_to_fill(config_text: str, pairs_per_step: int = 16) -> int:
    """Return the iterations after which the queue that a config names is full; 0 without one."""
    found = [line for line in config_text.splitlines() if "queue_size=" in line]
    return -(-int(found[0].split("queue_size=")[1].split(",")[0].rstrip(")")) // pairs_per_step) if found else 0


def smoke(version: str, models: list[str] | None, folder: Path) -> list[tuple[str, str, int, float, float, float]]:
    """Run the models of one experiment; return (experiment, model, iterations, first loss, last loss, CPU seconds)."""
    experiment = find_experiment(version, CONFIGS)
    rows = []
    for model in select_models(experiment, models):
        before = cpu_seconds()
        words = [version, "--smoke", "--models", model, "--config-root", str(CONFIGS), "--work-dir-root", str(folder)]
        code = run.main([*words, "--cfg-options", *EVERY_STEP])
        if code:
            raise SystemExit(f"{experiment.name}/{model}: mmrun --smoke ended with exit code {code}")
        work = folder / ".smoke" / experiment.name / model
        losses = losses_of(work)
        filled = steps_to_fill((work / "config.py").read_text(encoding="utf-8"))
        rows.append((experiment.name, model, len(losses), *first_and_last(losses, filled), cpu_seconds() - before))
    return rows


def main() -> int:
    """Read the command line, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=EXPERIMENTS, help="versions (default: 0.2 0.3 0.4)")
    parser.add_argument("--models", nargs="+", help="only these models")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for version in given.experiments for row in smoke(version, given.models, Path(folder))]
    sys.stdout.write(
        "| experiment | model | iterations | loss, first 5 | last 5 | falls | CPU s |\n|---|---|---|---|---|---|---|\n"
    )
    for experiment, model, count, first, last, seconds in rows:
        falls = "yes" if last < first else "NO"
        sys.stdout.write(f"| {experiment} | {model} | {count} | {first:.3f} | {last:.3f} | {falls} | {seconds:.1f} |\n")
    return int(any(last >= first for *_, first, last, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
