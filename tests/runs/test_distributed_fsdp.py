"""Several processes with RemasteredFSDP give what one process gives, and checkpoints move between all ways to train.

All checks run in one group of workers that is started once (see `parallel_runs`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

import equality
from parallel_runs import Failed, Task, largest_difference, run_tasks, succeeded
from tiny_experiment import make_data, make_experiment

KINDS = (("fsdp", 2), ("fsdp", 3))
MOVED = {"dtype": "float64", "optimizer": equality.OPTIMIZERS["AdamW"], "ema": True, "clip": 0.05}
SGD = {"dtype": "float64", "optimizer": equality.OPTIMIZERS["SGD"]}
WAYS = {"none": ("none", 1), "ddp": ("ddp", 2), "fsdp": ("fsdp", 2), "ddp3": ("ddp", 3), "fsdp3": ("fsdp", 3)}
MOVES = [(a, b) for a in ("none", "ddp", "fsdp") for b in ("none", "ddp", "fsdp") if a != b]
MOVES += [("fsdp", "fsdp3"), ("fsdp3", "fsdp"), ("fsdp3", "none"), ("ddp3", "fsdp"), ("fsdp3", "ddp")]
CASES = (1, 2, 5)


def train(name: str, way: str, function: str = "parallel_runs:train", **arguments) -> Task:
    parallel, processes = WAYS[way]
    return Task(name, processes, function, {"parallel": parallel, "batch": 6 // processes, **arguments})


def check(name: str, function: str, processes: int = 2, **arguments) -> Task:
    return Task(name, processes, f"fsdp_checks:{function}", arguments)


def both(name: str, function: str = "trained", ways: tuple[str, ...] = ("none", "fsdp"), **arguments) -> list[Task]:
    return [train(f"{name}-{way}", way, f"fsdp_checks:{function}", **arguments) for way in ways]


HARD = list(equality.combinations(("all three", "own step, two forwards", "batch norm, synchronised")))
ALL = [row for row in equality.combinations() if row[0] == "float64" or row in HARD or row[2] == "plain"]
ROWS = [*[("fsdp", 2, *row) for row in ALL], *[("fsdp", 3, *row) for row in HARD]]
TASKS = [
    *equality.tasks(KINDS[:1], ALL),
    *[task for task in equality.tasks(KINDS[1:], HARD) if task.processes > 1],
    # a checkpoint of each way, trained on in each other way
    *[train(f"begun-{way}", way, iterations=3, **MOVED) for way in WAYS],
    *[train(f"{a}-to-{b}", b, iterations=6, resume=f"begun-{a}", **MOVED) for a, b in MOVES],
    train("whole", "none", iterations=6, **MOVED),
    *[train(f"begun-{way}-sgd", way, iterations=3, **SGD) for way in ("none", "fsdp")],
    train("none-to-fsdp-sgd", "fsdp", iterations=6, resume="begun-none-sgd", **SGD),
    train("fsdp-to-none-sgd", "none", iterations=6, resume="begun-fsdp-sgd", **SGD),
    train("whole-sgd", "none", iterations=6, **SGD),
    # models of all kinds
    *both(
        "mixed",
        model={"type": "Mixed"},
        optimizer=equality.OPTIMIZERS["AdamW"],
        ema=True,
        ways=("none", "fsdp", "fsdp3"),
    ),
    *both("muon", "muon"),
    *both("buffers", model={"type": "SmallSegmenter", "norm": "batch"}, ways=("ddp", "fsdp")),
    *both("bf16", "half", model={"type": "SmallSegmenter", "norm": "batch"}, ways=("none", "ddp", "fsdp")),
    *[train(f"own-loop-{way}", way, "fsdp_checks:own_loop") for way in ("none", "ddp", "fsdp", "fsdp3")],
    # predicting: other numbers of cases and of calls on each process, or none
    *[
        task
        for cases in CASES
        for task in both(f"predicted-{cases}", "validated", ("none", "fsdp", "fsdp3"), cases=cases)
    ],
    check("states", "states"),
    check("eval", "in_eval_mode"),
    check("alone", "alone", 1),
    check("accumulates", "accumulates"),
    check("memory-2", "memory"),
    check("memory-3", "memory", 3),
    # MMEngine's own runner
    check("flexible-1", "flexible", 1, iterations=6),
    check("flexible-2", "flexible", 2, iterations=6),
    check("flexible-3", "flexible", 3, iterations=3),
    check("flexible-3-to-2", "flexible", 2, iterations=6, resume_from="flexible-3/iter_3.pth"),
    check("flexible-compiled", "flexible", 2, iterations=1, strategy={"compile": True}),
    # refusals
    check("inside", "fails", model={"type": "ReachesInside", "norm": "none"}),
    check("twice", "fails", model={"type": "UpdatesTwice"}),
    check("heads", "fails", model={"type": "ChoosesAHead"}, batch=3, iterations=9),
    check("fused", "fails", optimizer={"type": "SGD", "lr": 0.1, "fused": True}),
    check("compiled", "fails", config={"compile": True}),
    check("option", "fails", config={"model_wrapper_cfg": {"unit": ["net.3"]}}),
    check("fp16", "refuses_fp16"),
    check("optimizer", "refuses_an_optimizer_of_before"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """All results, and the folder that the tasks worked in."""
    root = tmp_path_factory.mktemp("fsdp")
    data = make_data(root / "data", cases=8)
    names = [f"case_{i:02d}" for i in range(8)]
    (data / "split.json").write_text(json.dumps({"train": names[:4], "val": names[4:6], "test": names[6:]}))
    make_experiment(root)
    window = {"patch_size": [8, 8, 8], "patch_stride": [4, 4, 4]}
    evaluations = [
        check(f"cases-{n}", "evaluate", n, root=str(root), cases=2, parallel="fsdp", inference=window) for n in (1, 3)
    ]
    return run_tasks([*TASKS, *evaluations], root / "tasks"), root / "tasks"


@pytest.fixture(scope="module")
def results(world):
    return world[0]


# ---- equality ----


@pytest.mark.parametrize("parallel,processes,dtype,optimizer,scenario", ROWS)
def test_several_processes_give_what_one_gives(results, parallel, processes, dtype, optimizer, scenario):
    answers = equality.check(results, parallel, processes, dtype, optimizer, scenario, kind="FSDPRemasteredFSDP")
    for answer in answers[1:]:
        assert answer["losses"] == answers[0]["losses"]


@pytest.mark.parametrize("start,end", MOVES)
def test_a_checkpoint_moves_between_all_ways_to_train(results, start, end):
    (expected,) = succeeded(results["whole"])
    found = succeeded(results[f"{start}-to-{end}"])
    for answer in found:
        assert largest_difference(expected["weights"], answer["weights"]) <= 1e-12
        assert len(answer["losses"]) == 3
    saved, wanted = found[0]["saved"], expected["saved"]
    for key in ("state_dict", "raw_state_dict"):
        assert largest_difference(wanted[key], saved[key]) <= 1e-12
    assert saved["ema_updates"] == wanted["ema_updates"] == 6


@pytest.mark.parametrize("name", ["none-to-fsdp-sgd", "fsdp-to-none-sgd"])
def test_an_optimizer_that_computes_differently_in_parts_moves_too(results, name):
    (expected,) = succeeded(results["whole-sgd"])
    for answer in succeeded(results[name]):
        assert largest_difference(expected["weights"], answer["weights"]) <= 1e-12


@pytest.mark.parametrize("way", ["fsdp", "fsdp3"])
def test_a_checkpoint_has_the_layout_that_one_process_writes(results, way):
    wanted, saved = (succeeded(results[f"begun-{kind}"])[0]["saved"] for kind in ("none", way))
    assert layout(saved["state_dict"]) == layout(wanted["state_dict"])
    assert layout(saved["raw_state_dict"]) == layout(wanted["raw_state_dict"])
    assert layout(saved["optimizer"]["state"]) == layout(wanted["optimizer"]["state"])
    for here, there in zip(saved["optimizer"]["param_groups"], wanted["optimizer"]["param_groups"], strict=True):
        assert here.keys() == there.keys()
        assert here["params"] == there["params"]
    assert saved.keys() == wanted.keys()


def layout(state):
    """Return keys, shapes and types of nested tensors."""
    if isinstance(state, dict):
        return [(key, layout(value)) for key, value in state.items()]
    return (
        (type(state), tuple(state.shape), state.dtype, state.device) if isinstance(state, torch.Tensor) else type(state)
    )


# ---- models of all kinds ----


@pytest.mark.parametrize("way", ["fsdp", "fsdp3"])
def test_frozen_tied_and_small_weights_and_buffers_train_as_on_one_process(results, way):
    (expected,) = succeeded(results["mixed-none"])
    for answer in succeeded(results[f"mixed-{way}"]):
        assert largest_difference(expected["weights"], answer["weights"]) <= 1e-12
        assert torch.equal(answer["weights"]["before.weight"], answer["weights"]["after.weight"])
        assert torch.equal(answer["weights"]["net.0.weight"], expected["weights"]["net.0.weight"])
        assert int(answer["weights"]["seen_batches"]) == 5
    saved, wanted = results[f"mixed-{way}"][0]["saved"], expected["saved"]
    assert largest_difference(wanted["state_dict"], saved["state_dict"]) <= 1e-12


def test_running_statistics_that_are_not_synchronised_are_those_of_the_first_process_as_with_ddp(results):
    expected = succeeded(results["buffers-ddp"])[0]["weights"]
    assert "net.1.running_mean" in expected
    for answer in succeeded(results["buffers-fsdp"]):
        assert largest_difference(expected, answer["weights"]) <= 1e-12


def test_gradients_that_are_added_up_are_averaged_at_the_last_step_only(results):
    for answer in succeeded(results["accumulates"]):
        assert answer == {"reduced": [True], "early": [False, False], "changed": [False, True]}


@pytest.mark.parametrize("way", ["ddp", "fsdp", "fsdp3"])
def test_losses_asked_for_through_the_wrapper_train_all_processes_alike(results, way):
    (expected,) = succeeded(results["own-loop-none"])
    answers = succeeded(results[f"own-loop-{way}"])
    for answer in answers:
        assert largest_difference(expected, answer) <= 1e-12
        assert all(torch.equal(answer[name], answers[0][name]) for name in answer)


def test_muon_orthogonalises_whole_matrices(results):
    (expected,) = succeeded(results["muon-none"])
    for answer in succeeded(results["muon-fsdp"]):
        assert largest_difference(expected, answer) <= 1e-12


def test_bf16_gathers_and_computes_in_bf16_and_keeps_float32(results):
    (expected,) = succeeded(results["bf16-none"])
    for answer in succeeded(results["bf16-fsdp"]):
        assert answer["seen"]["convolutions"] == {"torch.bfloat16"}
        assert answer["seen"]["norms"] == {"torch.float32"}
        assert "torch.bfloat16" in answer["seen"]["activations"]
        assert {tensor.dtype for name, tensor in answer["weights"].items() if "num_batches" not in name} == {
            torch.float32
        }
        assert 0 < largest_difference(expected["weights"], answer["weights"]) < 0.01
        assert answer["losses"][-1]["loss"] == pytest.approx(expected["losses"][-1]["loss"], rel=0.01)
    assert expected["seen"]["convolutions"] == {"torch.float32"}
    assert largest_difference(expected["weights"], succeeded(results["bf16-ddp"])[0]["weights"]) < 0.01


# ---- predicting ----


@pytest.mark.parametrize("way", ["fsdp", "fsdp3"])
@pytest.mark.parametrize("cases", CASES)
def test_processes_with_other_numbers_of_cases_or_none_validate_the_average(results, cases, way):
    (expected,) = succeeded(results[f"predicted-{cases}-none"])
    found = succeeded(results[f"predicted-{cases}-{way}"])
    count = WAYS[way][1]
    assert [len(answer["sums"]) for answer in found] == [2 * len(range(rank, cases, count)) for rank in range(count)]
    sums = sorted(entry for answer in found for entry in answer["sums"])
    for (step, number, value), (step_wanted, number_wanted, wanted) in zip(sums, sorted(expected["sums"]), strict=True):
        assert (step, number) == (step_wanted, number_wanted)
        assert value == pytest.approx(wanted, rel=1e-12)
    for answer in found:
        assert answer["kinds"] <= {"Tensor"}
        assert largest_difference(expected["weights"], answer["weights"]) <= 1e-12
    saved, wanted = found[0]["best"], expected["best"]  # written while the whole weights were in place
    assert saved["meta"]["iter"] == wanted["meta"]["iter"] == 2
    for key in ("state_dict", "raw_state_dict"):
        assert largest_difference(wanted[key], saved[key]) <= 1e-12


def test_a_sliding_window_on_three_processes_of_which_one_has_no_case(results):
    (expected,) = succeeded(results["cases-1"])
    found = succeeded(results["cases-3"])
    assert [answer["predicted"] for answer in found] == [1, 1, 0]
    for answer in found:
        assert answer["metrics"] == pytest.approx(expected["metrics"], rel=1e-5, nan_ok=True)
        assert [row["case_id"] for row in answer["rows"]] == ["case_06", "case_07"]


def test_ways_between_parts_and_whole_weights(results):
    one, other = succeeded(results["states"])
    for answer in (one, other):
        assert answer["first"]  # the weights of the first process
        assert answer["names"] == list(one["start"])
        assert answer["names"][0] == "net.0.weight"
        assert answer["bare"]
        assert answer["not whole"].startswith(
            "TrainingError: RemasteredFSDP.val_step without gradients: this process holds"
        )
        assert answer["attributes"] == (True, False, "fp32")
        assert answer["predicted"] == pytest.approx(answer["expected"], rel=1e-6)
        assert (answer["whole kinds"], answer["part kinds"]) == ({"Tensor"}, {"DTensor"})
        assert answer["no gradient"]
        assert answer["same"]
        assert (answer["changed"], answer["constant"]) == (["net.3.weight"], True)
        assert answer["loaded"]
        assert answer["finite"] == [True, False]
        assert answer["without bf16"] == "fp32"
    assert [text for text in one["warned"] if 'precision = "bf16": this machine computes it slowly' in text]
    for name, tensor in one["start"].items():
        assert torch.equal(tensor, other["start"][name]), name


def test_a_step_in_evaluation_mode_trains_the_parts(results):
    for training, evaluating in succeeded(results["eval"]):
        assert training == evaluating


def test_a_group_of_one_process_trains_and_predicts_as_a_plain_model(results):
    (answer,) = succeeded(results["alone"])
    for way in ("ddp", "fsdp"):
        assert largest_difference(answer["plain"]["weights"], answer[way]["weights"]) <= 1e-12
        assert answer[way]["losses"] == pytest.approx(answer["plain"]["losses"], rel=1e-12)
        assert answer[way]["predicted"] == pytest.approx(answer["plain"]["predicted"], rel=1e-12)


@pytest.mark.parametrize("processes", [2, 3])
def test_each_process_keeps_its_share_of_weights_and_optimizer_state(results, processes):
    found = succeeded(results[f"memory-{processes}"])
    assert sum(answer["weights"] for answer in found) == found[0]["whole"]
    for answer in found:
        assert answer["parts"]
        assert answer["units"] == [f"net.{i}" for i in range(1, 13)]
        assert answer["states"] == 2 * answer["weights"]
        assert answer["weights"] / answer["whole"] == pytest.approx(1 / processes, abs=0.03)


# ---- MMEngine's FlexibleRunner ----


@pytest.mark.parametrize("name", ["flexible-2", "flexible-3-to-2"])
def test_flexible_runner_trains_in_parts_saves_whole_and_resumes(results, name):
    (expected,) = succeeded(results["flexible-1"])
    assert expected["kind"] == "SmallSegmenter"
    found = succeeded(results[name])
    for answer in found:
        assert answer["kind"] == "FSDPRemasteredFSDP"
        assert largest_difference(expected["weights"], answer["weights"]) <= 1e-12
    saved, wanted = found[0]["saved"], expected["saved"]
    for key in ("state_dict", "raw_state_dict"):
        assert largest_difference(wanted[key], saved[key]) <= 1e-12
    assert layout(saved["optimizer"]["state"]) == layout(wanted["optimizer"]["state"])
    assert saved["param_schedulers"] == wanted["param_schedulers"]
    assert saved["meta"]["iter"] == 6


# ---- refusals ----


@pytest.mark.parametrize(
    "name,kind,message",
    [
        ("inside", "TrainingError", "a weight was used that is not whole now: it lies in a unit of RemasteredFSDP"),
        ("twice", "ConfigError", "UpdatesTwice.train_step calls optim_wrapper.update_params more than once"),
        ("heads", "TrainingError", "of this start: the processes have not run the same units of ChoosesAHead"),
        ("fused", "ConfigError", "PyTorch's fused SGD does not know weights that are cut into parts"),
        ("compiled", "ConfigError", 'compile and parallel = "fsdp" exclude each other'),
        ("flexible-compiled", "ConfigError", "a model in parts is not compiled"),
        ("option", "ConfigError", "RemasteredFSDP has no option 'unit'. Did you mean units?"),
        ("fp16", "ConfigError", 'precision = "fp16" needs loss scaling, which OptimWrapper does not do'),
        ("optimizer", "ConfigError", "the optimizer trains 8 parameters whose gradients are not reduced"),
    ],
)
def test_what_cannot_be_trained_in_parts_is_refused_by_all_processes(results, name, kind, message):
    for answer in results[name]:
        assert isinstance(answer, Failed), answer
        assert answer.kind == kind
        assert message in answer.message
