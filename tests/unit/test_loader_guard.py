"""The guarded loader: dead workers, failing cases, waiting time, and samples that do not depend on the workers."""

from __future__ import annotations

import os
import signal
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from itkit.dataset.stream import sample_generator
from itkit.errors import DataError, TrainingError
from itkit.mm.loader import GuardedDataLoader, WorkerTraceback, guard_loader, memory_report
from itkit.mm.samplers import StreamSampler


class Cases(Dataset):
    """Twelve small cases; `bad` is treated as `deed` says."""

    def __init__(self, bad: int | None = None, deed=None, named: bool = True):
        self.bad, self.deed = bad, deed
        if named:
            self.get_data_info = self.info

    def info(self, index: int) -> dict:
        return {"case_id": f"patient_{int(index):02d}"}

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int):
        if index == self.bad:
            self.deed()
        return int(index), sample_generator(index).random()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


def damaged() -> None:
    raise DataError("is truncated", "/data/patient_05.nii")


def bug() -> None:
    raise ValueError("axes do not match")


class Unpicklable(Exception):
    def __init__(self):
        super().__init__("held a lambda")
        self.cause = lambda: None


def awkward() -> None:
    raise Unpicklable


def loader(dataset, workers: int = 0, **options) -> GuardedDataLoader:
    settings = {"batch_size": 2, "num_workers": workers, "collate_fn": list, **options}
    return guard_loader(DataLoader(dataset, **settings), seed=0)


@pytest.mark.parametrize(
    "deed, how", [(die, r"died of signal 9 \(SIGKILL\)"), (leave, "died of exit code 3")], ids=["killed", "exited"]
)
def test_dead_worker_is_named_with_case_and_memory_and_nothing_hangs(deed, how):
    begin = time.monotonic()
    with pytest.raises(TrainingError, match=how) as caught:
        list(loader(Cases(5, deed), workers=2))
    assert time.monotonic() - begin < 120, "it must not wait for what never comes"
    text = str(caught.value)
    assert "data loader worker 0 of 2 (pid " in text
    assert "while loading case patient_05 (index 5)" in text
    assert "GiB memory available" in text


def test_kill_that_surfaces_in_the_middle_of_a_step_is_explained_too():
    guarded = loader(Cases(), workers=1, sampler=StreamSampler(Cases(), seed=0))
    batches = iter(guarded)
    next(batches)

    def step() -> None:
        os.kill(guarded._iterator._workers[0].pid, signal.SIGKILL)
        for _ in range(1200):  # PyTorch's signal handler raises somewhere in here
            time.sleep(0.05)

    with pytest.raises(TrainingError, match="worker 0 of 1"), guarded.guarding():
        step()


def test_other_runtime_errors_pass_the_guard_unchanged():
    with pytest.raises(RuntimeError, match="^shapes differ$"), loader(Cases()).guarding():
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize("workers", [0, 1])
def test_error_of_ours_comes_out_as_it_is_with_the_case(workers):
    with pytest.raises(DataError) as caught:
        list(loader(Cases(5, damaged), workers))
    assert str(caught.value) == "/data/patient_05.nii: is truncated"
    assert caught.value.path == "/data/patient_05.nii"


@pytest.mark.parametrize("workers", [0, 1])
def test_case_is_added_where_the_message_does_not_name_it(workers):
    with pytest.raises(DataError, match=r"is truncated \(case index 5\)$"):
        list(loader(Cases(5, damaged, named=False), workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_foreign_error_names_the_case_and_keeps_its_traceback(workers):
    with pytest.raises(
        TrainingError, match=r"^loading case patient_05 \(index 5\) failed: ValueError: axes do not match$"
    ) as caught:
        list(loader(Cases(5, bug), workers))
    cause = caught.value.__cause__
    assert isinstance(cause, WorkerTraceback if workers else ValueError)
    if workers:
        assert "in bug" in str(cause)


def test_error_that_cannot_be_pickled_still_arrives():
    with pytest.raises(TrainingError, match="patient_05.*Unpicklable: held a lambda"):
        list(loader(Cases(5, awkward), workers=1))


def broken_collate(samples: list):
    raise TypeError("cannot stack")


@pytest.mark.parametrize("workers", [0, 1])
def test_error_while_collating_is_told(workers):
    with pytest.raises(TrainingError, match="loading a batch failed: TypeError: cannot stack"):
        list(loader(Cases(), workers, collate_fn=broken_collate))


def test_samples_are_equal_with_0_and_2_workers_and_after_a_jump():
    def draw(workers: int, start: int, count: int) -> list:
        sampler = StreamSampler(Cases(), seed=3, start=start)
        guarded = loader(Cases(), workers, sampler=sampler)
        batches = list(islice(guarded, count))
        guarded.close()
        return batches

    alone = draw(0, 0, 12)
    assert draw(2, 0, 12) == alone
    assert draw(2, 8, 8) == alone[4:]


def test_random_numbers_of_the_main_process_are_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    guarded = loader(Cases(), workers=1)
    list(guarded)
    guarded.close()
    assert torch.equal(torch.rand(3), expected)


class Worker(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int):
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        return torch.get_num_threads(), ignored, np.random.randint(2**31), os.getpid()


def test_workers_have_one_thread_ignore_ctrl_c_are_seeded_and_persist():
    def ask() -> list:
        guarded = loader(Worker(), workers=1, batch_size=1)
        first, second = list(guarded), list(guarded)
        guarded.close()
        assert first[0][0][3] == second[0][0][3]  # the same process
        return [sample[:3] for (sample,) in first]

    answers = ask()
    assert answers[0][:2] == (1, True)
    assert answers == ask()


class Slow(Cases):
    def __getitem__(self, index: int):
        time.sleep(0.02)
        return super().__getitem__(index)


def test_waiting_time_is_measured():
    guarded = loader(Slow())
    waits, begin = [], time.perf_counter()
    for _ in guarded:
        time.sleep(0.02)  # work of the step, which does not count
        waits.append(guarded.waited_s)
    assert min(waits) >= 0.04
    assert sum(waits) <= time.perf_counter() - begin - 6 * 0.02
    assert guarded.total_waited_s == pytest.approx(sum(waits))


def test_everything_else_is_the_wrapped_loaders():
    dataset = Cases()
    guarded = loader(dataset, workers=0)
    assert guarded.dataset is dataset
    assert guarded.batch_size == 2
    assert len(guarded) == 6
    assert guard_loader(guarded) is guarded
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        _ = guarded.colour


class Endless(IterableDataset):
    def __iter__(self):
        yield from range(4)


def test_iterable_datasets_pass_through():
    assert list(loader(Endless())) == [[0, 1], [2, 3]]


def test_worker_that_cannot_even_start_is_named(monkeypatch):
    monkeypatch.setattr("itkit.mm.loader._WorkerStart.__call__", lambda self, worker_id: os._exit(7))
    with pytest.raises(TrainingError, match="died of exit code 7 before its first case"):
        list(loader(Cases(), workers=1))


def test_spawned_workers_report_too(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))  # where the worker finds this module
    with pytest.raises(TrainingError, match="while loading case patient_05"):
        list(loader(Cases(5, die, named=True), workers=1, multiprocessing_context="spawn"))


def test_memory_report_tells_the_containers_limit(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text(str(8 * 2**30))
    (tmp_path / "memory.current").write_text(str(6 * 2**30))
    monkeypatch.setattr("itkit.mm.loader._CGROUP", tmp_path)
    assert memory_report().endswith("this container uses 6.0 of its 8.0 GiB.")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_report().endswith("GiB memory available.")
