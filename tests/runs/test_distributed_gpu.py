"""The twins on GPUs, by NCCL, of the tests that several processes give what one process gives."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

import equality
from parallel_runs import Task, largest_difference, run_tasks, succeeded

GPUS = torch.cuda.device_count()
pytestmark = pytest.mark.gpu
one_gpu = pytest.mark.skipif(GPUS < 1, reason="needs a CUDA device")
two_gpus = pytest.mark.skipif(GPUS < 2, reason=f"needs two CUDA devices, here are {GPUS}: NCCL takes one a process")

BOUNDS = {"float64": 1e-10, "float32": 1e-5}
"""Ten times and more those of CPUs: convolutions of other batch sizes add up in another order on a GPU."""

KINDS = (("ddp", 2), ("fsdp", 2))
ROWS = list(equality.combinations(("plain", "all three", "own step, two forwards", "batch norm, synchronised")))
MOVED = {"dtype": "float64", "optimizer": equality.OPTIMIZERS["AdamW"], "ema": True, "clip": 0.05}
WAYS = {"none": 1, "ddp": 2, "fsdp": 2}
MOVES = [(a, b) for a in WAYS for b in WAYS if a != b]


def train(name: str, way: str, **arguments) -> Task:
    return Task(name, WAYS[way], arguments={"parallel": way, "batch": 6 // WAYS[way], **arguments})


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Results of groups of one process."""
    tasks = [
        Task(f"alone-{precision}", 1, "fsdp_checks:alone", {"device": "cuda", "precision": precision})
        for precision in (None, "bf16", "fp16")
    ]
    return run_tasks(tasks, tmp_path_factory.mktemp("gpu"), device="cuda")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of groups of two processes, each on a GPU of its own."""
    tasks = [
        *equality.tasks(KINDS, ROWS),
        *[train(f"begun-{way}", way, iterations=3, **MOVED) for way in WAYS],
        *[train(f"{a}-to-{b}", b, iterations=6, resume=f"begun-{a}", **MOVED) for a, b in MOVES],
        train("whole", "none", iterations=6, **MOVED),
        *[
            Task(
                f"predicted-{way}",
                count,
                "fsdp_checks:validated",
                {"parallel": way, "batch": 6 // count, "cases": 1},
            )
            for way, count in WAYS.items()
        ],
    ]
    return run_tasks(tasks, tmp_path_factory.mktemp("gpus"), device="cuda", timeout_s=600)


@one_gpu
def test_a_group_of_one_process_gives_what_a_plain_model_gives(alone):
    (answer,) = succeeded(alone["alone-None"])
    for way in ("ddp", "fsdp"):
        assert largest_difference(answer["plain"]["weights"], answer[way]["weights"]) <= 1e-10
        assert answer[way]["losses"] == pytest.approx(answer["plain"]["losses"], rel=1e-10)
        assert answer[way]["predicted"] == pytest.approx(answer["plain"]["predicted"], rel=1e-10)


@one_gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_in_parts_trains_as_autocast_does(alone, precision):
    (answer,) = succeeded(alone[f"alone-{precision}"])
    assert answer["fsdp"]["losses"] == pytest.approx(answer["plain"]["losses"], rel=0.02)
    assert largest_difference(answer["plain"]["weights"], answer["fsdp"]["weights"]) < 0.1
    assert {tensor.dtype for tensor in answer["fsdp"]["weights"].values()} == {torch.float32}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in answer["fsdp"]["weights"].values())


@two_gpus
@pytest.mark.parametrize("dtype,optimizer,scenario", ROWS)
@pytest.mark.parametrize("parallel,processes", KINDS)
def test_two_gpus_give_what_one_gives(results, parallel, processes, dtype, optimizer, scenario):
    found = equality.differences(results, parallel, processes, dtype, optimizer, scenario)
    assert found.pop("optimizer") <= 5 * BOUNDS[dtype]
    assert max(found.values()) <= BOUNDS[dtype], found


@two_gpus
@pytest.mark.parametrize("start,end", MOVES)
def test_a_checkpoint_moves_between_all_ways_to_train(results, start, end):
    (expected,) = succeeded(results["whole"])
    found = succeeded(results[f"{start}-to-{end}"])
    for answer in found:
        assert largest_difference(expected["weights"], answer["weights"]) <= BOUNDS["float64"]
    for key in ("state_dict", "raw_state_dict"):
        assert largest_difference(expected["saved"][key], found[0]["saved"][key]) <= BOUNDS["float64"]


@two_gpus
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_process_without_a_case_does_not_hold_up_the_other(results, way):
    (expected,) = succeeded(results["predicted-none"])
    found = succeeded(results[f"predicted-{way}"])
    assert [len(answer["sums"]) for answer in found] == [2, 0]
    for (_, _, value), (_, _, wanted) in zip(found[0]["sums"], expected["sums"], strict=True):
        assert value == pytest.approx(wanted, rel=1e-9)
