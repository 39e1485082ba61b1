"""Several consecutive cases at once in one process: results, notes, failures, interruption, and that they do overlap."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from toy_operation import Toy, make_source

from itkit._support.heard import hearing
from itkit.errors import UsageError
from itkit.process.execution import run_operation
from itkit.process.operation import Product, Stage, Task


@dataclass(frozen=True)
class Threefold(Toy):
    """The toy, three cases at a time, the middle of each alone."""

    overlapped: ClassVar[int] = 3
    lock: ClassVar = threading.Lock()
    begun: ClassVar[list] = []
    seen: ClassVar[list] = []
    stop_at: ClassVar[str | None] = None
    began: ClassVar[list] = []

    def begin(self, *, here: bool) -> None:
        self.began.append(here)

    def process(self, task: Task, stage: Stage) -> Product:
        self.begun.append((task.case_id, time.monotonic()))
        deadline = time.monotonic() + 60
        while self.stop_at and task.case_id > self.stop_at and not stage.abandoned and time.monotonic() < deadline:
            time.sleep(0.005)  # a long case, which looks now and then whether it is still wanted
        with self.lock:
            self.seen.append((task.case_id, time.monotonic()))
            time.sleep(0.02)
            if task.case_id == self.stop_at:
                raise KeyboardInterrupt
            stage.require_wanted()
        return super().process(task, stage)


@pytest.fixture
def threefold(tmp_path):
    make_source(tmp_path / "src")
    Threefold.begun.clear(), Threefold.seen.clear(), Threefold.began.clear()
    yield Threefold(str(tmp_path / "src"), str(tmp_path / "dst"))
    Threefold.stop_at = None


def files(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*.txt")}


def test_results_are_those_of_one_case_at_a_time(threefold, tmp_path):
    summary, entries = run_operation(threefold)
    plain = Toy(str(tmp_path / "src"), str(tmp_path / "plain"))
    run_operation(plain)
    assert (summary.exit_code, len(summary.done), summary.workers) == (0, 4, 1)
    assert files(tmp_path / "dst") == files(tmp_path / "plain")
    assert {e["state"] for e in entries.values()} == {"done"}
    assert not (tmp_path / "dst" / ".itkit-staging").exists()
    again, _ = run_operation(threefold)
    assert (len(again.current), threefold.began) == (4, [True]), "nothing to do: nothing is got ready"


def test_the_next_case_begins_before_the_one_before_ends(threefold):
    run_operation(threefold)
    began, middle = dict(threefold.begun), dict(threefold.seen)
    order = sorted(middle, key=middle.get)
    assert began[order[1]] < middle[order[0]] + 0.02, "case two began while case one had the lock"


def test_failures_and_warnings_stay_with_their_case(threefold, tmp_path):
    (tmp_path / "src" / "c000.txt").write_text("warn about zero")
    (tmp_path / "src" / "c001.txt").write_text("break")
    (tmp_path / "src" / "c002.txt").write_text("warn about two")
    (tmp_path / "src" / "c003.txt").write_text("fail for a reason")
    summary, _ = run_operation(threefold)
    assert summary.notes == {"c000": ("about zero",), "c002": ("about two",)}
    assert summary.failed == {
        "c001": "ZeroDivisionError: broken",
        "c003": f"{tmp_path / 'src' / 'c003.txt'}: for a reason",
    }


def test_interrupted_it_leaves_nothing_half_and_goes_on_later(threefold, tmp_path):
    Threefold.stop_at = "c001"
    with pytest.raises(KeyboardInterrupt):
        run_operation(threefold)
    left = files(tmp_path / "dst")
    assert all(name.replace("image", "label") in left for name in left), "both files of a case, or none"
    assert {Path(name).stem for name in left} <= {"c000"}, "what was under way is abandoned"
    assert not (tmp_path / "dst" / ".itkit-staging").exists()
    Threefold.stop_at = None
    summary, _ = run_operation(threefold)
    assert len(summary.done) + len(summary.current) == 4
    assert "c001" in summary.done
    assert len(files(tmp_path / "dst")) == 8


def test_what_is_wrong_with_the_whole_run_is_said_once(threefold, monkeypatch, tmp_path):
    def refuse(self, *, here):
        raise UsageError("no model")

    monkeypatch.setattr(Threefold, "begin", refuse)
    with pytest.raises(UsageError, match="no model"):
        run_operation(threefold)
    assert not files(tmp_path / "dst")


def test_warnings_of_two_threads_do_not_mix():
    heard, gate = {}, threading.Barrier(2)

    def work(name):
        with hearing() as texts:
            gate.wait()
            for number in range(50):
                warnings.warn(f"{name} {number}", UserWarning, stacklevel=1)
                warnings.warn("not for users", RuntimeWarning, stacklevel=1)
        heard[name] = texts

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    before = warnings.showwarning
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {name: [f"{name} {number}" for number in range(50)] for name in "ab"}
    assert warnings.showwarning is before
    with pytest.warns(UserWarning, match="heard as ever"):
        warnings.warn("heard as ever", UserWarning, stacklevel=1)
