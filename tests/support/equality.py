"""The trainings whose results must not depend on how many processes share them, and by which wrapper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from parallel_runs import Failed, Task, largest_difference

GLOBAL_BATCH = 6
"""Samples of one iteration over all processes: 6 on one process, 3 on each of two, 2 on each of three."""

BOUNDS = {"float64": 1e-12, "float32": 1e-6}
"""Largest difference of weights, averages and losses, see `differences`; optimizers hold squares: five times as much."""

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "AdamW": {"type": "AdamW", "lr": 0.01, "weight_decay": 0.1},
}

SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulate": 2},
    "clipping": {"clip": 0.05},
    "EMA": {"ema": True},
    "all three": {"accumulate": 2, "clip": 0.05, "ema": True},
    "own step, two forwards": {"model": {"type": "SeveralForwards"}, "clip": 0.05},
    "batch norm, synchronised": {"model": {"type": "SmallSegmenter", "norm": "batch"}, "config": {"sync_bn": True}},
}
"""Settings of `parallel_runs.train`; seven iterations, so the last window of an accumulation is incomplete."""

ITERATIONS = 7


def name_of(parallel: str, processes: int, dtype: str, optimizer: str, scenario: str) -> str:
    return f"{parallel}-{processes}-{dtype}-{optimizer}-{scenario}".replace(" ", "_").replace(",", "")


def combinations(scenarios: tuple[str, ...] = tuple(SCENARIOS)) -> Iterator[tuple[str, str, str]]:
    """Yield (dtype, optimizer, scenario)."""
    for dtype in BOUNDS:
        for optimizer in OPTIMIZERS:
            for scenario in scenarios:
                yield dtype, optimizer, scenario


def tasks(kinds: tuple[tuple[str, int], ...], chosen: Sequence[tuple[str, str, str]] | None = None) -> list[Task]:
    """Return a task for each combination on one process, and on each of `kinds`, pairs (parallel, processes).

    Args:
        kinds: Ways to train.
        chosen: (dtype, optimizer, scenario); None: all of `combinations`.
    """
    return [
        Task(
            name_of(parallel, processes, dtype, optimizer, scenario),
            processes,
            arguments={
                "parallel": parallel,
                "dtype": dtype,
                "optimizer": OPTIMIZERS[optimizer],
                "batch": GLOBAL_BATCH // processes,
                "iterations": ITERATIONS,
                **SCENARIOS[scenario],
            },
        )
        for parallel, processes in (("none", 1), *kinds)
        for dtype, optimizer, scenario in (combinations() if chosen is None else chosen)
    ]


def differences(
    results: dict[str, list[Any]], parallel: str, processes: int, dtype: str, optimizer: str, scenario: str
) -> dict[str, float]:
    """Return the largest differences to the training on one process.

    Returns:
        ``weights`` (of all ranks) and ``average`` (the weights of the checkpoint, averaged with EMA): in each tensor as a
        share of its largest absolute value, or of 0.1 where that is less. ``optimizer``: the same without such a floor.
        ``loss``: of every step, as a share of the loss.

    Raises:
        AssertionError: If a training failed.
    """
    expected = results[name_of("none", 1, dtype, optimizer, scenario)][0]
    found = results[name_of(parallel, processes, dtype, optimizer, scenario)]
    for answer in (expected, *found):
        assert not isinstance(answer, Failed), answer.trace
    losses = zip(expected["losses"], found[0]["losses"], strict=True)
    return {
        "weights": max(largest_difference(expected["weights"], answer["weights"]) for answer in found),
        "optimizer": largest_difference(_flat(expected["optimizer"]), _flat(found[0]["optimizer"]), least_scale=0.0),
        "average": largest_difference(expected["saved"]["state_dict"], found[0]["saved"]["state_dict"]),
        "loss": max(abs(a[key] - b[key]) / abs(a[key]) for a, b in losses for key in a),
    }


def check(
    results: dict[str, list[Any]],
    parallel: str,
    processes: int,
    dtype: str,
    optimizer: str,
    scenario: str,
    *,
    kind: str,
) -> list[Any]:
    """Assert that a training on several processes, wrapped by a `kind`, equals the one on one process; return its answers."""
    found = differences(results, parallel, processes, dtype, optimizer, scenario)
    bound = BOUNDS[dtype]
    assert found.pop("optimizer") <= 5 * bound
    assert max(found.values()) <= bound, found
    answers = results[name_of(parallel, processes, dtype, optimizer, scenario)]
    assert {answer["kind"] for answer in answers} == {kind}
    return answers


def _flat(state: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors of an optimizer's state by number and name."""
    return {
        f"{number}.{key}": value
        for number, entry in state["state"].items()
        for key, value in entry.items()
        if hasattr(value, "numel")
    }
