"""One job beside the training, and no error of it lost."""

from __future__ import annotations

import threading

import pytest

from itkit.mm.background import OneAtATime
from itkit.mm.saving import Saving


def test_job_runs_beside_and_is_waited_for():
    jobs, may_end, done = OneAtATime(), threading.Event(), []
    jobs.start(lambda: (may_end.wait(10), done.append(threading.current_thread())))
    assert not done
    may_end.set()
    assert jobs.wait() is None
    assert done[0] is not threading.main_thread()
    assert jobs.wait() is None, "waiting for nothing is no error"


def test_at_most_one_job():
    jobs, may_end = OneAtATime(), threading.Event()
    jobs.start(lambda: may_end.wait(10))
    with pytest.raises(RuntimeError, match="the job before is not over"):
        jobs.start(lambda: None)
    may_end.set()
    jobs.wait()


def test_error_waits_until_somebody_asks_and_is_given_once():
    jobs = OneAtATime()

    def fail() -> None:
        raise OSError(28, "No space left on device", "a.pth")

    jobs.start(fail)
    jobs._thread.join()
    assert jobs.has_failed
    assert isinstance(jobs.wait(), OSError)
    assert not jobs.has_failed
    assert jobs.wait() is None


def test_saving_raises_at_the_next_look_or_at_the_end():
    saving = Saving()

    def fail() -> None:
        raise OSError(28, "No space left on device", "a.pth")

    saving.start(fail)
    saving._jobs._thread.join()
    with pytest.raises(OSError, match=r"a\.pth"):
        saving.raise_if_failed()
    saving.raise_if_failed()
    saving.start(fail)
    with pytest.raises(OSError, match=r"a\.pth"):
        saving.finish()
    with pytest.raises(OSError, match=r"a\.pth"):
        saving.start(fail, beside=False)
    saving.start(fail)
    assert isinstance(saving.finish_quietly(), OSError)
