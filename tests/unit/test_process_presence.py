"""Of two runs only one gets a case; what a dead run held is free again, once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from itkit._support import leases
from itkit._support.leases import Lease, read_holder
from itkit.process import presence as presence_module
from itkit.process.presence import Claim, Presence

OTHER = """
import sys, time, pathlib
from itkit.process.presence import Presence
place = pathlib.Path(sys.argv[1])
presence = Presence(place, [place], {"operation": "itk_toy"})
print(presence.run_id, type(presence.claim("a")).__name__, flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the case ``a``."""
    process = subprocess.Popen([sys.executable, "-c", OTHER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    process.run_id, kind = process.stdout.readline().split()
    assert kind == "Claim"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(presence_module, "_TRUST_S", 0.0)
    presence = Presence(tmp_path, [tmp_path, tmp_path / "second"], {"operation": "itk_toy"})
    yield presence
    presence.close()


def test_a_case_is_claimed_once(tmp_path, here, other):
    assert here.claim("a")["pid"] == other.pid
    assert [run["pid"] for run in here.others()] == [other.pid]
    mine = here.claim("b")
    assert mine.holds()
    mine.release()
    assert not mine.holds()
    assert here.claim("b").holds(), "a released case can be had again"


def test_what_a_killed_run_held_is_taken_over_and_swept(tmp_path, here, other):
    unfinished = tmp_path / ".itkit-staging" / other.run_id / "half.mha"
    unfinished.write_text("half")
    assert not here.sweep()
    assert unfinished.exists(), "the other run lives"
    other.send_signal(signal.SIGKILL)
    other.wait()
    claim = here.claim("a")
    assert isinstance(claim, Claim)
    assert claim.holds()
    assert here.others() == []
    document = tmp_path / ".a1_b2c3d.part-meta.json"
    for path in (document, tmp_path / ".mine", tmp_path / "a.part-b"):
        path.write_text("half")
    assert here.sweep()
    assert not unfinished.parent.exists()
    assert not document.exists()
    assert {path.name for path in tmp_path.iterdir()} == {".itkit-staging", ".mine", "a.part-b", "second"}
    assert claim.holds(), "sweeping leaves the claims of the living"


def test_sweeping_frees_the_claims_of_the_dead(tmp_path, here, other):
    other.kill()
    other.wait()
    here.sweep()
    assert os.listdir(tmp_path / ".itkit-staging" / "claims") == []


def test_nothing_stays_after_close(tmp_path):
    presence = Presence(tmp_path, [tmp_path, tmp_path / "b"], {})
    presence.claim("x")
    presence.close()
    assert [path for path in tmp_path.rglob("*") if path != tmp_path / "b"] == []


def test_a_new_attempt_of_the_same_run_takes_the_right_from_the_old_one(here):
    first = here.claim("x")
    second = first.renewed()
    assert (first.holds(), second.holds()) == (False, True)
    first.release()
    assert second.holds()
    third = here.claim("x")
    assert (second.holds(), third.holds()) == (False, True)


def test_file_systems_without_links_do_too(here, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(presence_module.os, "link", refuse)
    claim = here.claim("x")
    assert claim.holds()
    with pytest.raises(FileExistsError):
        here._make(claim.path)


def test_of_many_who_take_over_one_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(presence_module, "_TRUST_S", 0.0)
    claims = tmp_path / ".itkit-staging" / "claims"
    claims.mkdir(parents=True)
    runs = [Presence(tmp_path, [tmp_path], {}) for _ in range(6)]
    try:
        for number in range(20):
            token = claims / presence_module.case_token(f"case {number}")
            token.write_text(json.dumps({"run": "dead-1-x"}))
            got, start = [], threading.Barrier(6)

            def take(run, name=f"case {number}", got=got, start=start):
                start.wait()
                got.append(run.claim(name))

            threads = [threading.Thread(target=take, args=(run,)) for run in runs]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sum(isinstance(claim, Claim) and claim.holds() for claim in got) == 1
            assert sum(isinstance(claim, Claim) for claim in got) == 1
    finally:
        for run in runs:
            run.close()


def test_a_claim_that_is_being_written_counts_for_a_while(tmp_path, here):
    token = tmp_path / ".itkit-staging" / "claims" / presence_module.case_token("x")
    token.write_text("")
    assert here.claim("x") == {}
    old = time.time() - presence_module._BEING_WRITTEN_S - 1
    os.utime(token, (old, old))
    assert isinstance(here.claim("x"), Claim)


def test_a_holder_on_another_machine_lives_while_its_heart_beats(tmp_path):
    file = tmp_path / "alive"
    file.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    assert read_holder(file)["host"] == "elsewhere"
    old = time.time() - leases.STALE_S - 1
    os.utime(file, (old, old))
    assert read_holder(file) is None
    assert read_holder(tmp_path / "nothing") is None


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.01)
    lease = Lease(tmp_path / "alive", {"what": "test"})
    os.utime(tmp_path / "alive", (1, 1))
    deadline = time.monotonic() + 10
    while os.stat(tmp_path / "alive").st_mtime < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert os.stat(tmp_path / "alive").st_mtime > 2
    lease.release()
    assert not (tmp_path / "alive").exists()
