"""Print, as Markdown, how much trainings on several processes differ from the same training on one process.

The trainings are those of tests/support/equality.py: seven iterations of a small 3D network on global batches of 6 samples,
gloo on this machine's CPUs. A figure is the largest difference of any weight, averaged weight (EMA) or loss: of weights, in
each tensor as a share of its largest absolute value (of 0.1 where that is less); of losses, as a share of the loss. The second
table moves a checkpoint after three iterations (AdamW, clipping, EMA) and compares after six.

    python tools/equality_table.py [--kinds ddp:2 ddp:3 fsdp:2 fsdp:3]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import equality
from parallel_runs import Failed, Task, largest_difference, run_tasks

MOVED = {"optimizer": equality.OPTIMIZERS["AdamW"], "ema": True, "clip": 0.05}


def move_tasks(ways: list[tuple[str, int]]) -> list[Task]:
    tasks = []
    for dtype in equality.BOUNDS:
        for iterations in (3, 6):
            for way in ways if iterations == 3 else [("none", 1)]:
                tasks.append(move_task(f"{dtype}-{title(way)}-{iterations}", way, dtype, iterations))
        for begun in ways:
            for way in ways:
                name = f"{dtype}-{title(begun)}-to-{title(way)}"
                tasks.append(move_task(name, way, dtype, 6, resume=f"{dtype}-{title(begun)}-3"))
    return tasks


def move_task(name: str, way: tuple[str, int], dtype: str, iterations: int, **arguments) -> Task:
    parallel, processes = way
    settings = {"parallel": parallel, "dtype": dtype, "batch": equality.GLOBAL_BATCH // processes, **MOVED}
    return Task(name, processes, arguments={**settings, "iterations": iterations, **arguments})


def title(way: tuple[str, int]) -> str:
    return "one process" if way[0] == "none" else f"{way[0]}, {way[1]}"


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def moved(results: dict, dtype: str, begun: tuple[str, int], way: tuple[str, int]) -> float:
    expected = results[f"{dtype}-one process-6"][0]
    found = results[f"{dtype}-{title(begun)}-to-{title(way)}"]
    for answer in (expected, *found):
        if isinstance(answer, Failed):
            raise RuntimeError(answer.trace)
    return max(
        *(largest_difference(expected["weights"], answer["weights"]) for answer in found),
        largest_difference(expected["saved"]["state_dict"], found[0]["saved"]["state_dict"]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=["ddp:2", "ddp:3", "fsdp:2", "fsdp:3"], metavar="WAY:PROCESSES")
    kinds = [(way, int(count)) for way, _, count in (kind.partition(":") for kind in parser.parse_args().kinds)]
    ways = [("none", 1), *[kind for kind in kinds if kind[1] == 2]]
    tasks = [*equality.tasks(tuple(kinds)), *move_tasks(ways)]
    with tempfile.TemporaryDirectory() as folder:
        results = run_tasks(tasks, Path(folder), timeout_s=1200)
    print(row(["", "optimizer", "training", *map(title, kinds)]))
    print(row(["---"] * (3 + len(kinds))))
    for dtype, optimizer, scenario in equality.combinations():
        cells = []
        for parallel, processes in kinds:
            found = equality.differences(results, parallel, processes, dtype, optimizer, scenario)
            cells.append(f"{max(found[key] for key in ('weights', 'average', 'loss')):.0e}")
        print(row([dtype, optimizer, scenario, *cells]))
    print()
    print(row(["", "checkpoint of", *(f"trained on by {title(way)}" for way in ways)]))
    print(row(["---"] * (2 + len(ways))))
    for dtype in equality.BOUNDS:
        for begun in ways:
            print(row([dtype, title(begun), *(f"{moved(results, dtype, begun, way):.0e}" for way in ways)]))


if __name__ == "__main__":
    main()
