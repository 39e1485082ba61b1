"""Saving and resuming on two processes: every process takes the same decisions and gets its own generators back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from parallel_runs import Task, run_tasks, succeeded

RESUMED = [("ddp", 3), ("ddp", 5), ("fsdp", 5)]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    tasks = [
        Task(f"{parallel} {at}", 2, "resume_runs:stopped_and_resumed", {"parallel": parallel, "at": at})
        for parallel, at in RESUMED
    ]
    tasks += [Task("failed", 2, "resume_runs:failed_saving"), Task("damaged", 2, "resume_runs:damaged_and_changed")]
    return run_tasks(tasks, tmp_path_factory.mktemp("resume"))


def of(answers: dict, name: str) -> list[dict]:
    return succeeded(answers[name])


@pytest.mark.parametrize("parallel, at", RESUMED)
def test_stopped_and_resumed_is_the_uninterrupted_run_to_the_bit_on_each_process(answers, parallel, at):
    for answer in of(answers, f"{parallel} {at}"):
        assert answer["state"] == []
        assert answer["generators"] == []
        assert answer["different"], "the processes have generators of their own, or this would prove nothing"


def test_all_processes_hear_that_the_first_could_not_save(answers):
    for answer in of(answers, "failed"):
        assert answer["error"] == "[Errno 28] No space left on device: 'iter_3.pth'"
        assert answer["known"]
        assert answer["iter"] == 4, "the validation of step 4 waits for the checkpoint of step 3"


def test_all_processes_refuse_together_and_fall_back_together(answers):
    for answer in of(answers, "damaged"):
        assert answer == {"refused": ("ChangedRun", True), "first": 6, "iter": 9, "saved": 9}
