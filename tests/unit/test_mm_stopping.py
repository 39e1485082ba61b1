"""Requests to stop: heard from signals, agreed on by all processes, and obeyed at the same point."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itkit.mm import stopping
from itkit.mm.board import Board
from itkit.mm.stopping import REQUEUE, StopControl, Stopped, StopRequest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from shared_store import SharedStore


def send(number):
    os.kill(os.getpid(), number)


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


# ---------------------------------------------------------------- one process


def test_without_a_request_every_point_is_passed():
    control = StopControl()
    with control.listening(), control.training():
        assert all(control.may_go_on() for _ in range(1000))
        assert not control.is_over()
    assert control.request is None


@pytest.mark.parametrize("number,code", [(signal.SIGTERM, REQUEUE), (signal.SIGUSR1, REQUEUE), (signal.SIGINT, 130)])
def test_signal_in_a_training_waits_for_the_next_point(number, code):
    done = []

    def train(control):
        with control.listening(), control.training():
            assert control.may_go_on()
            send(number)
            done.append("the step under way")
            wait_until(control.is_over)
            assert not control.may_go_on()
            assert not control.may_go_on()
            done.append("saved")

    with pytest.raises(Stopped) as stop:
        train(StopControl())
    assert done == ["the step under way", "saved"]
    assert (stop.value.request.exit_code, stop.value.request.reason) == (code, signal.Signals(number).name)
    assert stop.value.told


@pytest.mark.parametrize("begun", [False, True])
def test_signal_outside_of_a_training_or_before_its_first_point_ends_at_once(begun):
    def work(control):
        with control.listening():
            if begun:
                with control.training():
                    send(signal.SIGTERM)
                    pytest.fail("went on")
            send(signal.SIGTERM)
            pytest.fail("went on")

    with pytest.raises(Stopped):
        work(StopControl())


def test_handlers_are_as_before_afterwards():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with StopControl().listening():
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before
    old = signal.set_wakeup_fd(-1)
    assert old == -1


def test_an_echo_is_no_second_request(monkeypatch):
    monkeypatch.setattr(stopping, "ECHO_S", 3600.0)  # however slow this machine is
    ended, heard = [], []
    monkeypatch.setattr(StopControl, "end_process", lambda self, code, **options: ended.append(code))

    class Counting(StopControl):
        def _hear(self, number):
            super()._hear(number)
            heard.append(number)

    def train(control):
        with control.listening(), control.training():
            control.may_go_on()
            send(signal.SIGTERM)
            wait_until(lambda: heard.count(signal.SIGTERM) == 1 and control.is_over())
            send(signal.SIGTERM)
            wait_until(lambda: heard.count(signal.SIGTERM) == 2)

    with pytest.raises(Stopped):
        train(Counting())
    assert not ended


def test_a_signal_is_a_second_request_only_if_it_was_surely_sent_later(monkeypatch):
    """A watching thread that was held up reads a signal and its echo late; what counts is when it last knew of silence."""
    ended = []
    monkeypatch.setattr(StopControl, "end_process", lambda self, code, **options: ended.append(code))
    control = StopControl()
    control._hear(signal.SIGTERM)
    control._heard_at -= 100
    control._silent_at = control._heard_at - 1
    control._hear(signal.SIGTERM)
    control._silent_at = control._heard_at + stopping.ECHO_S
    control._hear(signal.SIGUSR1)
    assert not ended
    control._silent_at = control._heard_at + stopping.ECHO_S + 0.01
    control._hear(signal.SIGUSR1)
    assert ended == [128 + signal.SIGUSR1]


FOR_GOOD = """
import os, signal, sys
from itkit.mm.stopping import StopControl, Stopped
code = 1
try:
    with StopControl().listening(for_good=True):
        os.kill(os.getpid(), signal.SIGTERM)
except Stopped as stop:
    code = stop.request.exit_code
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    os.kill(os.getpid(), number)
sys.exit(code)
"""


def test_an_echo_after_the_end_does_not_change_the_exit_code():
    assert subprocess.run([sys.executable, "-c", FOR_GOOD], timeout=120).returncode == REQUEUE


SECOND = """
import os, signal, sys, time
from itkit.mm.stopping import StopControl
control = StopControl(leave=lambda code: print("left with", code, flush=True) or code)
with control.listening(), control.training():
    control.may_go_on()
    print("ready", flush=True)
    while True:
        getattr(signal, "pthread_sigmask")(signal.SIG_BLOCK, [])
        time.sleep(0.01)
"""


def test_second_signal_ends_at_once_with_the_code_of_the_signal():
    process = subprocess.Popen([sys.executable, "-c", SECOND], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:  # until one of them comes late enough to be no echo
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
        assert process.poll() == 143
        assert "left with 143" in process.stdout.read()
    finally:
        process.kill()
        process.wait()


def test_signal_to_a_forked_child_is_not_heard_by_the_parent():
    control = StopControl()
    with control.listening(), control.training():
        control.may_go_on()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, b"1")
            time.sleep(20)
            os._exit(0)
        os.read(reading, 1)
        os.close(reading), os.close(writing)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 143
        time.sleep(0.1)  # it would be heard by then on most machines, and on none it must be
        assert control.request is None


# ---------------------------------------------------------------- several processes


class Rank:
    """One process of a simulated group, whose watching thread and main thread take turns."""

    def __init__(self, rank, store, world):
        self.control = StopControl()
        self.board = Board(store, rank, world)
        self.control.connect(self.board, lambda failure: None)
        self.control._in_training = True
        assert self.control.may_go_on()
        self.points, self.stopped = 1, False

    def look(self):
        self.control._look(self.board)

    def ask(self):
        self.control._request = self.control._request or StopRequest("SIGTERM", self.board.rank)

    def step(self, slowest):
        """Pass a point, unless others have to come first (a collective) or the answer would have to be waited for."""
        waiting = self.control._held and self.control._target is None
        if self.stopped or waiting or self.points > slowest:
            return
        if self.control.may_go_on():
            self.points += 1
        else:
            self.stopped = True


@settings(deadline=None, max_examples=150)
@given(st.data(), st.integers(2, 4))
def test_all_processes_stop_at_the_same_point_whatever_the_order_of_events(data, world):
    store = SharedStore()
    ranks = [Rank(number, store, world) for number in range(world)]
    asked_at = None
    for _ in range(data.draw(st.integers(0, 40))):
        rank = ranks[data.draw(st.integers(0, world - 1))]
        what = data.draw(st.sampled_from(["step", "step", "look", "ask"]))
        if what == "step":
            rank.step(min(r.points for r in ranks))
        elif what == "look":
            rank.look()
        else:
            rank.ask()
            asked_at = asked_at or max(r.points for r in ranks)
    ranks[0].ask()
    for _ in range(6 * world):
        for rank in ranks:
            rank.look()
            rank.step(min(r.points for r in ranks))
    assert all(rank.stopped for rank in ranks)
    assert len({rank.points for rank in ranks}) == 1
    assert len({rank.control.request for rank in ranks}) == 1
    assert all(rank.control.is_known_to_all for rank in ranks)


def test_process_that_has_not_begun_is_ended_by_a_request_to_another(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # so that the watching thread looks at the board again and again
    monkeypatch.setattr(stopping, "ECHO_S", -1.0)  # so that the signal that it sends itself would be a second request
    ended, is_over = [], threading.Event()
    monkeypatch.setattr(StopControl, "end_process", lambda self, code, **options: ended.append(code))
    store = SharedStore()
    other = Rank(1, store, 2)
    other.ask()

    def look():
        while not is_over.wait(0.02):
            other.look()

    def start_up(control):
        with control.listening():
            threading.Thread(target=look, daemon=True).start()
            control.connect(Board(store, 0, 2), lambda failure: None)
            time.sleep(60)

    with pytest.raises(Stopped) as stop:
        start_up(StopControl())
    is_over.set()
    assert stop.value.request == StopRequest("SIGTERM", 1)
    assert stop.value.told
    assert not ended


LATE = """
import time
from itkit.mm import stopping
from itkit.mm.board import Board
from itkit.mm.stopping import StopControl, StopRequest
from shared_store import SharedStore
store, control = SharedStore(), StopControl()  # alone: its watching thread sleeps until it is woken
with control.listening():
    control.connect(Board(store, 0, 2), lambda failure: None)
    time.sleep(0.3)
    Board(store, 1, 2).propose("stop", {"reason": "SIGTERM", "rank": 1})
time.sleep(0.3)
print("ended by itself")
"""


def test_request_seen_after_the_end_of_listening_kills_nobody():
    support = Path(__file__).resolve().parent.parent / "support"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(support), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.run([sys.executable, "-c", LATE], env=environment, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (0, "ended by itself\n"), run.stderr


def test_failure_on_the_board_reaches_the_watching_thread_while_the_main_thread_waits(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # so that the watching thread looks at the board again and again
    store, seen = SharedStore(), []
    control = StopControl()
    with control.listening(), control.training():
        control.may_go_on()
        control.connect(Board(store, 0, 2), seen.append)
        assert Board(store, 1, 2).propose("failure", {"rank": 1}) == {"rank": 1}
        assert Board(store, 0, 2).propose("failure", {"rank": 0}) == {"rank": 1}, "the first one counts"
        wait_until(lambda: seen)
        assert seen[0] == {"rank": 1}
        control.disconnect()


def test_board_counts_signs_of_life():
    store = SharedStore()
    one, two = Board(store, 0, 2), Board(store, 1, 2)
    one.beat()
    two.beat()
    two.beat()
    assert one.beats() == two.beats() == [1, 2]
    assert one.signed("heard") is None
    two.sign("heard", 7)
    assert one.signed("heard", [1]) == [7]
    assert one.read("nothing") is None
