"""Files are whole, durable, and written in spite of errors that pass."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import threading

import pytest

from itkit._support import files, transient
from itkit._support.files import flush_file_system, flush_folder, replace_when_complete, write_json, write_text
from itkit._support.transient import retrying


def test_data_and_folder_are_flushed_in_their_order(tmp_path, monkeypatch):
    path, steps = tmp_path / "a.txt", []
    flush, replace = os.fsync, os.replace

    def noted_flush(handle):
        what = os.readlink(f"/proc/self/fd/{handle}") if os.path.isdir("/proc/self/fd") else ""
        steps.append("folder" if what == str(tmp_path) else "file")
        flush(handle)

    monkeypatch.setattr(os, "fsync", noted_flush)
    monkeypatch.setattr(os, "replace", lambda *a: (steps.append("rename"), replace(*a)))
    with replace_when_complete(path) as temporary:
        temporary.write_text("x")
    assert steps == ["file", "rename", "folder"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_folders_that_cannot_be_flushed_are_no_error(tmp_path, monkeypatch, number):
    flush = os.fsync

    def refuse_folders(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(number, "not for folders")
        flush(handle)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_text(tmp_path / "a.txt", "x")
    assert (tmp_path / "a.txt").read_text() == "x"


def test_error_while_flushing_a_folder_is_raised(tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        flush_folder(tmp_path)


def test_a_file_system_is_flushed_as_a_whole_or_says_why_not(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x")
    flush_file_system(tmp_path)

    class Broken:
        @staticmethod
        def syncfs(handle):
            assert os.readlink(f"/proc/self/fd/{handle}") == str(tmp_path)
            ctypes.set_errno(errno.EIO)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Broken)
    with pytest.raises(OSError, match="Input/output error") as caught:
        flush_file_system(tmp_path)
    assert caught.value.filename == str(tmp_path)
    done = []
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    monkeypatch.setattr(os, "sync", lambda: done.append("all"))
    flush_file_system(tmp_path)
    assert done == ["all"]


def test_json_is_written_in_spite_of_an_error_that_passes(tmp_path, monkeypatch):
    monkeypatch.setattr(transient, "WAITS_S", (0.0,))
    replace, failures = os.replace, [errno.ESTALE]

    def fail_once(*args):
        if failures:
            raise OSError(failures.pop(), "Stale file handle")
        replace(*args)

    monkeypatch.setattr(os, "replace", fail_once)
    write_json(tmp_path / "run.json", {"step": 3})
    assert json.loads((tmp_path / "run.json").read_text()) == {"step": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_attempts_are_bounded_and_their_waits_grow(monkeypatch):
    waits, calls = [], []

    def refuse():
        calls.append(1)
        raise OSError(errno.EIO, "Input/output error", "the/file")

    monkeypatch.setattr("time.sleep", waits.append)
    said = []
    with pytest.raises(OSError, match="the/file"):
        retrying(refuse, say=said.append)
    assert (len(calls), waits) == (5, [0.1, 0.5, 2.0, 8.0])
    assert said[-1] == "the/file: Input/output error; attempt 5 of 5 in 8 s"


def test_other_errors_are_not_waited_for(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda s: pytest.fail("waited"))
    for error in (OSError(errno.ENOSPC, "full"), ValueError("no")):

        def refuse(error=error):
            raise error

        with pytest.raises(type(error)):
            retrying(refuse)


def test_mode_of_files_does_not_depend_on_threads(tmp_path):
    """The mask of new files is a property of the process: asking for it sets it, so threads must not."""
    before = os.umask(0o027)
    os.umask(before)

    def write(number: int) -> None:
        for i in range(40):
            write_text(tmp_path / f"{number}_{i}.txt", "x")

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = os.umask(before)
    os.umask(before)
    assert after == before
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {0o666 & ~files._UMASK}
