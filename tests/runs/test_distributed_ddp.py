"""Several processes with RemasteredDDP give what one process gives: trainings, validations, tests, failures.

All checks but the last run in one group of workers that is started once (see `parallel_runs`); the last starts two agents
of ``torchrun``, as on two machines.
"""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

import equality
from parallel_runs import Failed, Task, largest_difference, run_tasks, succeeded
from tiny_experiment import make_data, make_experiment

KINDS = (("ddp", 2), ("ddp", 3))
COMBINATIONS = [
    (dtype, optimizer, scenario)
    for dtype, optimizer, scenario in equality.combinations()
    if dtype == "float64" or scenario not in ("accumulation", "clipping", "EMA")  # "all three" has them in float32
]
RESUMED = {"dtype": "float64", "optimizer": equality.OPTIMIZERS["AdamW"], "ema": True, "clip": 0.05}
CONSTANT_RATE = {"config": {"param_scheduler": None}}
CASES = (1, 2, 5)


def ddp(name: str, processes: int = 2, **arguments) -> Task:
    return Task(name, processes, arguments={"parallel": "ddp", "batch": 6 // processes, **arguments})


def check(name: str, function: str, processes: int = 2, **arguments) -> Task:
    return Task(name, processes, f"ddp_checks:{function}", arguments)


TASKS = [
    *equality.tasks(KINDS, COMBINATIONS),
    # a checkpoint moved from one process to two, to three, and back
    Task("whole", 1, arguments={"batch": 6, "iterations": 9, **RESUMED}),
    Task("one_3", 1, arguments={"batch": 6, "iterations": 3, **RESUMED}),
    ddp("two_6", 2, resume="one_3", iterations=6, **RESUMED),
    ddp("three_9", 3, resume="two_6", iterations=9, **RESUMED),
    Task("one_9", 1, arguments={"batch": 6, "iterations": 9, "resume": "two_6", **RESUMED}),
    # accumulation is the big batch
    Task("big", 1, arguments={"batch": 12, "iterations": 3, **CONSTANT_RATE}),
    ddp("small", 2, iterations=6, accumulate=2, **CONSTANT_RATE),
    # two ways to be apart, and what becomes of them
    check("naive", "apart", wrapper="naive"),
    check("remastered", "apart", wrapper="remastered"),
    Task("moved", 2, "ddp_checks:fails", {"model": "MovesByRank"}),
    Task("bypassed", 2, "ddp_checks:fails", {"model": "BackwardItself"}),
    Task("unused", 2, "ddp_checks:fails", {"model": "UsesNothing"}),
    # a head that one process lacks
    Task("heads-1", 1, "ddp_checks:trained", {"batch": 4, "model": {"type": "UsesByNumber"}}),
    Task(
        "heads-2",
        2,
        "ddp_checks:trained",
        {"batch": 2, "parallel": "ddp", "model": {"type": "UsesByNumber"}, "config": {"find_unused_parameters": True}},
    ),
    # decisions
    Task("nan-1", 2, "ddp_checks:fails", {"model": "BadOnOneRank", "patience": 1}),
    Task("nan-3", 3, "ddp_checks:fails", {"model": "BadOnOneRank", "patience": 3}),
    check("stop", "early_stop"),
    check("means", "means"),
    check("buffers", "buffers"),
    # normalisation over all processes
    check("bn-1d", "statistics", 2, dtype="float64", shape=[3], sizes=[3, 2]),
    check("bn-2d", "statistics", 3, dtype="float64", shape=[3, 4, 5], sizes=[1, 4, 2]),
    check("bn-3d", "statistics", 3, dtype="float64", shape=[2, 3, 4, 2], sizes=[2, 0, 1], momentum=None),
    check("bn-plain", "statistics", 2, dtype="float64", shape=[3, 7], sizes=[2, 2], affine=False, eps=0.1),
    check("bn-32", "statistics", 2, dtype="float32", shape=[3, 4, 4, 4], sizes=[2, 2]),
    check("bn-kinds", "exchanged"),
    check("bn-few", "too_few"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """All results, and the folder that the tasks worked in."""
    root = tmp_path_factory.mktemp("ddp")
    data = make_data(root / "data", cases=14)
    names = [f"case_{i:02d}" for i in range(14)]
    (data / "split.json").write_text(json.dumps({"train": names[:4], "test": names[4:9], "val": names[9:]}))
    make_experiment(root, extra="custom_hooks = [dict(type=OverlayHook)]\n")
    evaluations = [
        check(f"cases-{cases}-on-{processes}", "evaluate", processes, root=str(root), cases=cases)
        for cases in CASES
        for processes in (1, 2, 3)
    ]
    real = [check(f"real-{processes}", "train_experiment", processes, root=str(root)) for processes in (1, 2, 3)]
    return run_tasks([*TASKS, *evaluations, *real], root / "tasks"), root / "tasks"


@pytest.fixture(scope="module")
def results(world):
    return world[0]


# ---- equality ----


@pytest.mark.parametrize("dtype,optimizer,scenario", COMBINATIONS)
@pytest.mark.parametrize("parallel,processes", KINDS)
def test_several_processes_give_what_one_gives(results, parallel, processes, dtype, optimizer, scenario):
    answers = equality.check(results, parallel, processes, dtype, optimizer, scenario, kind="RemasteredDDP")
    for answer in answers[1:]:
        for name, tensor in answer["weights"].items():
            assert torch.equal(tensor, answers[0]["weights"][name]), name
        assert answer["losses"] == answers[0]["losses"]
    together = sorted(number for answer in answers for number in answer["seen"])
    assert together == sorted(results[equality.name_of("none", 1, dtype, optimizer, scenario)][0]["seen"])


def test_the_optimizers_and_options_really_differ(results):
    states = [
        results[equality.name_of("ddp", 2, "float64", optimizer, scenario)][0]["saved"]["state_dict"]
        for dtype, optimizer, scenario in COMBINATIONS
        if dtype == "float64" and scenario in ("plain", "accumulation", "clipping", "EMA", "all three")
    ]
    assert len(states) == 10
    for i, one in enumerate(states):
        for other in states[:i]:
            assert largest_difference(one, other) > 1e-4


@pytest.mark.parametrize("name", ["three_9", "one_9"])
def test_a_checkpoint_moves_between_one_two_and_three_processes(results, name):
    expected, found = succeeded(results["whole"])[0], succeeded(results[name])
    for answer in found:
        assert largest_difference(expected["weights"], answer["weights"]) <= 1e-12
    saved, wanted = found[0]["saved"], expected["saved"]
    assert saved["meta"]["iter"] == 9
    for key in ("state_dict", "raw_state_dict"):
        assert largest_difference(wanted[key], saved[key]) <= 1e-12
    assert saved["ema_updates"] == wanted["ema_updates"]
    assert len(found[0]["losses"]) == 3


def test_accumulation_on_two_processes_is_the_big_batch_on_one(results):
    assert largest_difference(results["big"][0]["weights"], succeeded(results["small"])[0]["weights"]) <= 1e-12


def test_the_experiment_itself_trains_alike(results):
    (expected,) = succeeded(results["real-1"])
    for processes in (2, 3):
        for answer in succeeded(results[f"real-{processes}"]):
            assert largest_difference(expected, answer) <= 1e-6


# ---- what would train each process apart ----


def test_a_wrapper_that_calls_the_model_directly_trains_the_processes_apart_and_ours_does_not(results):
    one, other = succeeded(results["naive"])
    assert max(float((one[name] - other[name]).abs().max()) for name in one) > 1e-3
    one, other = succeeded(results["remastered"])
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "name,kind,message",
    [
        (
            "moved",
            "TrainingError",
            "after update 1 of this start the weights of the processes differ in 1 parameters (net.6.bias)",
        ),
        ("bypassed", "ConfigError", "BackwardItself.train_step uses optim_wrapper.optimizer"),
        ("unused", "TrainingError", "2 trained parameters of UsesNothing got no gradient: spare.weight, spare.bias."),
    ],
)
def test_a_model_that_bypasses_the_reduction_ends_all_processes_with_the_same_error(results, name, kind, message):
    for answer in succeeded(results[name]):
        assert answer["kind"] == kind
        assert message in answer["message"]
    if name != "moved":
        assert all(answer["unchanged"] for answer in results[name])


def test_a_head_that_one_process_lacks_trains_as_on_one_process(results):
    expected = succeeded(results["heads-1"])[0]
    for answer in succeeded(results["heads-2"]):
        assert largest_difference(expected, answer) <= 1e-12


# ---- the same decision everywhere ----


@pytest.mark.parametrize("name,step", [("nan-1", 3), ("nan-3", 5)])
def test_a_loss_that_is_not_finite_on_one_process_ends_all_with_the_same_words(results, name, step):
    messages = {(answer["kind"], answer["message"]) for answer in succeeded(results[name])}
    ((kind, message),) = messages
    assert kind == "TrainingError"
    assert message.startswith(f"the loss is nan at step {step}")


def test_early_stopping_is_one_decision_and_every_case_is_validated_once(results):
    one, other = succeeded(results["stop"])
    assert one["steps"] == other["steps"] == 6  # the first process gets better all the time
    assert one["validations"] == other["validations"] == 6
    assert sorted(one["seen"] + other["seen"]) == sorted([0, 1, 2] * 6)


def test_numbers_of_a_step_are_means_of_those_that_have_them(results):
    one, other = succeeded(results["means"])
    assert float(one[0]["loss"]) == float(other[0]["loss"]) == 0.5
    assert (one[0]["rate"], one[0]["own_0"], other[0]["own_1"]) == (0.5, 0.25, 1.25)
    assert math.isnan(one[1]["loss"])
    assert math.isnan(other[1]["loss"])
    assert (one[2], other[2]) == ({}, {"rate": 2.0})


def test_running_statistics_that_are_not_synchronised_are_those_of_the_first_process(results):
    one, other = succeeded(results["buffers"])
    assert one.keys() == other.keys()
    assert len(one) == 6
    for name in one:
        assert torch.equal(one[name], other[name]), name


# ---- batch normalisation over all processes ----


@pytest.mark.parametrize(
    "name,bound", [("bn-1d", 1e-12), ("bn-2d", 1e-12), ("bn-3d", 1e-12), ("bn-plain", 1e-12), ("bn-32", 2e-5)]
)
def test_batch_norm_over_all_processes_is_batch_norm_over_the_global_batch(results, name, bound):
    assert {"output", "input gradient"} <= results[name][0].keys()
    for answer in succeeded(results[name]):
        assert {"running_mean", "running_var"} <= answer.keys()
        assert max(answer.values()) <= bound, answer


def test_batch_norms_are_exchanged_in_place(results):
    for answer in succeeded(results["bn-kinds"]):
        assert answer["kinds_before"].count("GlobalBatchNorm") == 1
        assert answer["kinds"] == ["Sequential", "GlobalBatchNorm", "InstanceNorm2d", "ModuleDict", "GlobalBatchNorm"]
        assert answer["same"]
        assert answer["shared"]
        assert answer["momentum"] == 0.3


def test_one_value_per_channel_is_refused_on_all_processes(results):
    for answer in results["bn-few"]:
        assert isinstance(answer, Failed)
        assert answer.message == "batch normalisation needs more than one value per channel over all processes"


# ---- validation and test ----


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("cases", CASES)
def test_every_case_is_counted_once_on_any_number_of_processes(world, cases, processes):
    results, folder = world
    (expected,) = succeeded(results[f"cases-{cases}-on-1"])
    found = succeeded(results[f"cases-{cases}-on-{processes}"])
    assert [answer["predicted"] for answer in found] == [len(range(r, cases, processes)) for r in range(processes)]
    for answer in found:
        for key in ("metrics", "rows", "validated", "val_rows"):
            assert answer[key] == expected[key], key
    assert [row["case_id"] for row in expected["rows"]] == [f"case_{4 + i:02d}" for i in range(cases)]


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("cases", CASES)
def test_results_are_written_once_and_complete(world, cases, processes):
    one, many = (world[1] / f"cases-{cases}-on-{n}" for n in (1, processes))
    files = {
        p.relative_to(one): p
        for p in one.rglob("*")
        if p.is_file() and "logs" not in p.parts and "tensorboard" not in p.parts
    }
    assert {Path("test/unet/cases.csv"), Path("test/unet/result.json"), Path("work/unet/val_cases.csv")} <= files.keys()
    assert len([name for name in files if "overlays" in name.parts]) == cases
    assert len([name for name in files if "visuals" in name.parts]) == cases
    for name, file in files.items():
        other = many / name
        if name.suffix in (".csv", ".png"):
            assert other.read_bytes() == file.read_bytes(), name
        elif name.name == "result.json":
            here, there = (json.loads(path.read_text()) for path in (file, other))
            assert {**here, "cpu_minutes": 0} == {**there, "cpu_minutes": 0}
        elif name.suffix == ".jsonl":
            here, there = (path.read_text().splitlines() for path in (file, other))
            assert len(here) == len(there)
    events = [list((path / "work" / "unet" / "tensorboard").rglob("events*")) for path in (one, many)]
    assert len(events[0]) == len(events[1])
    assert [sum(map(pictures, files)) for files in events] == [cases, cases]


def pictures(events: Path) -> int:
    """Return how many pictures a file of TensorBoard holds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(events), size_guidance={"images": 0})
    read.Reload()
    return sum(len(read.Images(tag)) for tag in read.Tags()["images"])


# ---- two agents, as on two machines ----


def test_two_agents_train_and_test_together(tmp_path):
    make_data(tmp_path / "data")
    make_experiment(tmp_path, iterations=4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).resolve().parents[2] / "itkit" / "mm" / "run.py"
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=tiny"]
    agent += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", str(script), "0.1", "--all"]
    for flag, folder in (("--config-root", "configs"), ("--work-dir-root", "work"), ("--test-work-dir-root", "test")):
        agent += [flag, str(tmp_path / folder)]
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")},
        "ITKIT_DATA": str(tmp_path / "data"),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    said = [tmp_path / f"agent_{i}.txt" for i in range(2)]
    agents = []
    try:
        for file in said:
            with open(file, "wb") as stream:
                options = {"env": environment, "cwd": tmp_path, "start_new_session": True}
                agents.append(subprocess.Popen(agent, stdout=stream, stderr=stream, **options))
        codes = [process.wait(timeout=400) for process in agents]
    finally:
        for process in agents:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    everything = [file.read_text() for file in said]
    assert codes == [0, 0], everything
    for words in ("trained, 4 steps", "validation at step 4", "tested step 4"):  # the main process alone speaks
        assert sum(text.count(words) for text in everything) == 1, words
    assert not any("Warning" in text for text in everything), everything
    folder = tmp_path / "work" / "0.1.Tiny" / "unet"
    state = json.loads((folder / "run.json").read_text())
    assert (state["state"], state["step"]) == ("trained", 4)
    assert sum(text.count('parallel = "ddp", as the config') for text in everything) == 1
    assert "parallel = 'ddp'" in (folder / "config.py").read_text()
    result = json.loads((tmp_path / "test" / "0.1.Tiny" / "unet" / "result.json").read_text())
    assert (result["cases"], result["sha256"]) == (2, state["best"]["sha256"])
    with open(tmp_path / "test" / "0.1.Tiny" / "unet" / "cases.csv", newline="") as stream:
        assert [row["case_id"] for row in csv.DictReader(stream)] == ["case_06", "case_07"]
    assert len(list((tmp_path / "test" / "0.1.Tiny" / "unet" / "overlays").glob("*.png"))) == 2
