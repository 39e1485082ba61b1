"""The cases on a dask.distributed cluster: the same results, each case once, also when a worker is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

SUPPORT = str(Path(__file__).resolve().parent.parent / "support")
sys.path.insert(0, SUPPORT)

from toy_operation import Toy, make_source, results

from itkit.errors import MissingDependency, UsageError
from itkit.process.cluster import perform
from itkit.process.execution import RunOptions, run_operation

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler and two worker processes of one thread; yields (address, workers)."""
    folder = tmp_path_factory.mktemp("cluster")
    environment = {**os.environ, "PYTHONPATH": SUPPORT, "DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH": "0"}
    begin = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    processes = []

    def launch(log, *words):
        with open(folder / log, "w") as stream:
            processes.append(subprocess.Popen(words, stdout=stream, stderr=stream, cwd=folder, env=environment))
        return processes[-1]

    def said(log, pattern):
        deadline = time.monotonic() + 60
        while not (found := re.search(pattern, (folder / log).read_text())):
            assert time.monotonic() < deadline, (folder / log).read_text()
            time.sleep(0.05)
        return found

    try:
        launch("scheduler", *begin, "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        address = said("scheduler", r"Scheduler at:\s*(tcp://\S+)")[1]
        worker = [
            sys.executable,
            "-m",
            "distributed.cli.dask_worker",
            address,
            "--nthreads",
            "1",
            "--no-nanny",
            "--no-dashboard",
        ]
        workers = [launch(f"worker{n}", *worker, "--local-directory", str(folder)) for n in range(2)]
        for number in range(2):
            said(f"worker{number}", "Registered to")
        yield address, workers
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def go(toy, address):
    return run_operation(toy, RunOptions(scheduler=address))[0]


def test_a_cluster_gives_the_results_of_one_process(tmp_path, cluster, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_source(tmp_path / "src", 20, "sleep 0.01")
    (tmp_path / "src" / "c003.txt").write_text("warn of something")
    (tmp_path / "src" / "c004.txt").write_text("fail for a reason")
    one = run_operation(Toy("src", "one"))[0]
    summary = go(Toy("src", "dst", diary=str(tmp_path / "diary")), cluster[0])
    assert (summary.done, summary.failed, summary.notes) == (one.done, one.failed, one.notes)
    assert summary.workers == 2
    assert results(tmp_path / "dst") == results(tmp_path / "one")
    diary = [line.split() for line in (tmp_path / "diary").read_text().splitlines()]
    assert {pid for _, pid in diary} == {str(worker.pid) for worker in cluster[1]}
    assert Counter(case for case, _ in diary) == Counter(f"c{n:03}" for n in range(20))
    assert not (tmp_path / "dst" / ".itkit-staging").exists()
    assert len(go(Toy("src", "dst"), cluster[0]).current) == 19


def test_an_attempt_at_a_case_that_is_settled_does_nothing(tmp_path):
    class Claimed:
        path = tmp_path / "nothing"

    class Order:
        claim = Claimed

    assert perform(None, Order, str(tmp_path)) is None


def test_a_killed_worker_costs_no_case(tmp_path, cluster):
    address, workers = cluster
    source = make_source(tmp_path / "src", 30, "sleep 0.15")
    toy = Toy(str(source), str(tmp_path / "dst"), diary=str(tmp_path / "diary"))
    run_operation(Toy(str(source), str(tmp_path / "one")), RunOptions(workers=4))

    def kill(step):
        if step.number == 8:
            workers[0].send_signal(signal.SIGKILL)

    summary, _ = run_operation(toy, RunOptions(scheduler=address), progress=kill)
    assert (len(summary.done), summary.failed) == (30, {})
    assert workers[0].wait(10) == -signal.SIGKILL
    assert results(tmp_path / "dst") == results(tmp_path / "one")
    done = Counter(
        entry["case"]
        for entry in map(json.loads, (tmp_path / "dst" / "ledger.jsonl").read_text().splitlines())
        if entry["state"] == "done"
    )
    assert done == Counter(f"c{n:03}" for n in range(30)), "each case is recorded once"
    assert sum(Counter((tmp_path / "diary").read_text().split()[::2]).values()) <= 31, (
        "only the one in work was begun again"
    )


def test_no_scheduler_and_no_package_are_named(tmp_path, monkeypatch):
    toy = Toy(str(make_source(tmp_path / "src", 1)), str(tmp_path / "dst"))
    for address in ("tcp://127.0.0.1:1", "nonsense://x"):
        monkeypatch.setattr("itkit.process.cluster._CONNECT_S", 0.5)
        with pytest.raises(UsageError, match=f"no dask scheduler answers at '{address}'"):
            go(toy, address)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(
        MissingDependency, match=r"distributed is needed for --scheduler .* pip install 'itkit\[dask\]'"
    ):
        go(toy, "tcp://127.0.0.1:1")
