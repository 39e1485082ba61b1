"""Two processes never work in one run folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from itkit.errors import RunLocked
from itkit.experiment import lock

HOLDER = """
import sys, time, pathlib
from itkit.experiment import lock
with lock.hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def start_holder(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_second_is_refused_with_the_holder_named_and_a_killed_one_is_taken_over(tmp_path):
    process = start_holder(tmp_path)
    try:
        with pytest.raises(RunLocked, match=rf"is in use by process {process.pid} on "), lock.hold(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with lock.hold(tmp_path) as stale:
            assert stale["pid"] == process.pid
    finally:
        process.kill()
    assert not (tmp_path / lock.LOCK_FILE).exists()


def test_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.hold(tmp_path):
        1 / 0  # noqa: B018
    with lock.hold(tmp_path):
        pass


def test_holder_on_another_machine_counts_while_it_is_fresh(tmp_path):
    file = tmp_path / lock.LOCK_FILE
    file.write_text(json.dumps({"pid": 1, "host": "elsewhere", "command": "mmrun 0.1", "started": "now"}))
    with pytest.raises(RunLocked, match="process 1 on elsewhere"), lock.hold(tmp_path):
        pass
    old = time.time() - lock.FOREIGN_STALE_S - 1
    os.utime(file, (old, old))
    with lock.hold(tmp_path) as stale:
        assert stale["host"] == "elsewhere"


def test_forked_worker_that_outlives_the_holder_does_not_unlock(tmp_path):
    with lock.hold(tmp_path):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(RunLocked), lock.hold(tmp_path):
            pass


FORKING_HOLDER = """
import os, sys, time, pathlib
from itkit.experiment import lock
with lock.hold(pathlib.Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)  # from here, so that the child has begun to live when its parent is killed
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""


def test_lock_of_a_killed_process_is_free_while_its_workers_live_on(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", FORKING_HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        with lock.hold(tmp_path) as stale:
            assert stale["pid"] == process.pid
            os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_fresh_holder_elsewhere_of_the_same_start_of_several_processes_is_dead(tmp_path):
    file = tmp_path / lock.LOCK_FILE
    note = {"pid": 1, "host": "elsewhere", "command": "mmrun 0.1", "started": "now", "group": "7 in job 8"}
    file.write_text(json.dumps(note))
    for other in (None, "7 in job 9"):
        with pytest.raises(RunLocked, match="process 1 on elsewhere"), lock.hold(tmp_path, other):
            pass
    with lock.hold(tmp_path, "7 in job 8") as stale:
        assert stale["host"] == "elsewhere"


def test_process_that_is_about_to_start_anew_leaves_no_lock(tmp_path):
    with lock.hold(tmp_path):
        lock.let_go()
        assert not (tmp_path / lock.LOCK_FILE).exists()
        with lock.hold(tmp_path) as stale:
            assert stale is None
