"""Worker processes: the same results for any number, dead ones replaced, memory minded, nobody left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

SUPPORT = str(Path(__file__).resolve().parent.parent / "support")
sys.path.insert(0, SUPPORT)

from toy_operation import Toy, make_source, results

from itkit._support import resources
from itkit.process import workers as workers_module
from itkit.process.execution import RunOptions, run_operation
from itkit.process.workers import plan_workers


@pytest.fixture
def toy(tmp_path):
    return Toy(str(make_source(tmp_path / "src", 12)), str(tmp_path / "dst"), diary=str(tmp_path / "diary"))


def go(toy, workers=2, **options):
    return run_operation(toy, RunOptions(workers=workers, **options))[0]


def diary(tmp_path):
    """Case -> how often it was worked on."""
    return Counter(line.split()[0] for line in (tmp_path / "diary").read_text().splitlines())


def start(tmp_path, *more, workers=2):
    """Start the toy as a command of its own."""
    words = [str(tmp_path / "src"), str(tmp_path / "dst"), str(tmp_path / "diary"), str(workers), *more]
    return subprocess.Popen(
        [sys.executable, str(Path(SUPPORT) / "toy_operation.py"), *words], stdout=subprocess.PIPE, text=True
    )


def test_results_do_not_depend_on_the_number_of_workers(toy, tmp_path):
    one = Toy(toy.source, str(tmp_path / "one"))
    first, second = go(one, workers=1), go(toy, workers=3)
    assert first.done == second.done
    assert second.workers == 3
    assert results(tmp_path / "one") == results(tmp_path / "dst")
    assert len({line.split()[1] for line in (tmp_path / "diary").read_text().splitlines()}) > 1, "in several processes"
    assert diary(tmp_path) == Counter(first.done)
    assert not (tmp_path / "dst" / ".itkit-staging").exists()
    assert go(toy).current == first.done


def test_a_killed_worker_is_named_and_its_case_done_alone(toy, tmp_path):
    (tmp_path / "src" / "c003.txt").write_text(f"kill-once {tmp_path / 'marker'}")
    (tmp_path / "src" / "c005.txt").write_text("kill")
    summary = go(toy)
    assert set(summary.failed) == {"c005"}
    assert len(summary.done) == 11
    how = r"the worker process was killed by signal 9 (SIGKILL), probably for want of memory (out of memory)"
    assert summary.failed["c005"] == f"{how}, also with no other case beside it"
    assert summary.notes == {"c003": (f"{how}; then done alone",)}
    counted = diary(tmp_path)
    assert (counted["c003"], counted["c005"]) == (2, 2)
    assert set(counted.values()) <= {1, 2}
    entries = [json.loads(line) for line in (tmp_path / "dst" / "ledger.jsonl").read_text().splitlines()]
    assert [e["reason"] for e in entries if e["case"] == "c005"] == [summary.failed["c005"]]


def test_a_case_short_of_memory_is_done_alone(toy, tmp_path):
    (tmp_path / "src" / "c003.txt").write_text(f"memory-once {tmp_path / 'marker'}")
    assert go(toy).notes == {"c003": ("there is not enough memory for it; then done alone",)}


def test_failures_and_warnings_come_back(toy, tmp_path):
    (tmp_path / "src" / "c001.txt").write_text("fail for a reason")
    (tmp_path / "src" / "c002.txt").write_text("warn of it")
    steps = []
    summary, _ = run_operation(toy, RunOptions(workers=2), progress=steps.append)
    assert summary.failed == {"c001": f"{tmp_path / 'src' / 'c001.txt'}: for a reason"}
    assert summary.notes == {"c002": ("of it",)}
    assert [step.number for step in steps] == list(range(1, 13))
    assert {step.case_id for step in steps if step.reason} == {"c001"}


def test_cases_that_do_not_fit_into_memory_together_follow_each_other(toy, tmp_path, monkeypatch):
    for file in (tmp_path / "src").iterdir():
        file.write_text("sleep 0.05")
    monkeypatch.setattr(workers_module, "usable_memory_bytes", lambda: 10 << 30)
    for needs, processes in ((1 << 40, 1), (6 << 30, 1), (1 << 20, 2)):
        (tmp_path / "diary").unlink(missing_ok=True)
        assert go(Toy(toy.source, toy.destination, diary=toy.diary, needs=needs), overwrite=True).failed == {}
        pids = {line.split()[1] for line in (tmp_path / "diary").read_text().splitlines()}
        assert len(pids) == processes
    monkeypatch.setattr(workers_module, "usable_cores", lambda: 64)
    assert plan_workers(1000) == int(0.8 * (10 << 30) / 2 / workers_module.WORKER_BYTES)
    assert plan_workers(3) == 3


def test_workers_use_one_thread(tmp_path):
    class Asking(Toy):
        pass

    workers_module.warm_up(Toy("a", "b"))
    before = dict(os.environ)
    context = workers_module.multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    with workers_module.one_thread():
        process = context.Process(target=_tell_environment, args=(theirs,))
        process.start()
    assert ours.recv() == workers_module.ONE_THREAD
    process.join()
    assert dict(os.environ) == before


def _tell_environment(pipe):
    pipe.send({name: os.environ.get(name) for name in workers_module.ONE_THREAD})


def test_a_bloated_worker_is_replaced(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(workers_module, "_RETIRE_BYTES", -(1 << 40))
    assert go(toy).failed == {}
    assert len({line.split()[1] for line in (tmp_path / "diary").read_text().splitlines()}) > 2


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_no_process(toy, tmp_path, sign):
    for file in (tmp_path / "src").iterdir():
        file.write_text("sleep 30")
    process = start(tmp_path)
    family = []
    deadline = time.monotonic() + 30
    while len((tmp_path / "diary").read_text().split() if (tmp_path / "diary").exists() else []) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3, "fork server and two workers"
    process.send_signal(sign)
    process.wait(20)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_killed_at_random_moments_then_run_again_gives_the_undisturbed_result(tmp_path):
    make_source(tmp_path / "src", 120, "sleep 0.002")
    undisturbed = Toy(str(tmp_path / "src"), str(tmp_path / "undisturbed"))
    go(undisturbed, workers=1)
    expected, draw = results(tmp_path / "undisturbed"), random.Random(7)
    for attempt in range(8):
        process = start(tmp_path, workers=1 + attempt % 2)
        time.sleep(draw.uniform(0.15, 0.55))
        process.kill()
        process.wait()
        for name, content in results(tmp_path / "dst").items():
            if not name.startswith(".itkit-staging"):
                assert expected[name] == content, "a file that is visible is whole"
    process = start(tmp_path)
    assert process.wait(60) == 0
    assert results(tmp_path / "dst") == expected
    assert start(tmp_path).communicate(timeout=60)[0] == "0 120 0 0\n"


def test_two_runs_at_once_do_no_case_twice(toy, tmp_path):
    make_source(tmp_path / "src", 60, "sleep 0.02")
    runs = [start(tmp_path, workers=workers) for workers in (1, 2)]
    told = [[int(word) for word in run.communicate(timeout=60)[0].split()] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert set(diary(tmp_path).values()) == {1}
    assert len(diary(tmp_path)) == 60
    assert sum(done for done, *_ in told) == 60
    assert all(done + current == 60 for done, current, *_ in told)
    assert len(json.loads((tmp_path / "dst" / "meta.json").read_text())) == 60


def test_what_a_killed_run_had_claimed_is_done_by_the_one_beside_it(toy, tmp_path):
    make_source(tmp_path / "src", 12, f"until {tmp_path / 'gate'}")
    runs = [start(tmp_path, workers=1) for _ in range(2)]
    deadline = time.monotonic() + 30
    while not (tmp_path / "diary").exists() or len({li.split()[1] for li in (tmp_path / "diary").open()}) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    runs[0].kill()
    runs[0].wait()
    (tmp_path / "gate").touch()
    assert runs[1].wait(60) == 0
    assert len(results(tmp_path / "dst")) == 25
    assert sum(diary(tmp_path).values()) <= 13, "at most the case that was in work is done again"
    assert not (tmp_path / "dst" / ".itkit-staging").exists()


def test_shards_at_once_make_one_whole(toy, tmp_path):
    make_source(tmp_path / "src", 30, "sleep 0.01")
    runs = [start(tmp_path, f"{number}/3", workers=1) for number in (1, 2, 3)]
    assert [run.wait(60) for run in runs] == [0, 0, 0]
    assert set(diary(tmp_path).values()) == {1}
    assert len(json.loads((tmp_path / "dst" / "meta.json").read_text())) == 30


def test_limits_of_control_groups_count(tmp_path, monkeypatch):
    free = resources.usable_memory_bytes()
    assert 0 < free <= psutil.virtual_memory().total
    assert 1 <= resources.usable_cores() <= os.cpu_count()
    for folder, files in {
        tmp_path / "new": {
            "memory.max": "1000000", "memory.current": "600000", "memory.stat": "anon 5\ninactive_file 50000\n",
            "cpu.max": "100000 100000",
        },
        tmp_path / "old": {
            "memory.limit_in_bytes": "1000000", "memory.usage_in_bytes": "600000",
            "memory.stat": "inactive_file 1\ntotal_inactive_file 50000\n", "cpu.cfs_quota_us": "50000",
            "cpu.cfs_period_us": "100000",
        },
        tmp_path / "none": {
            "memory.max": "max", "memory.current": "600000", "cpu.max": "max 100000", "cpu.cfs_quota_us": "-1",
        },
    }.items():  # fmt: skip
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        monkeypatch.setattr(resources, "_cgroup_folders", lambda controller, folder=folder: [folder])
        if folder.name == "none":
            assert resources.usable_memory_bytes() > 1_000_000
            assert resources.usable_cores() == len(os.sched_getaffinity(0))
        else:
            assert resources.usable_memory_bytes() == 450_000
            assert resources.usable_cores() == 1
    monkeypatch.undo()
    assert resources.memory_kills() >= 0
    assert resources.resident_bytes() > 1 << 20
