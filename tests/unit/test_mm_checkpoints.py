"""Checkpoints: whole or not at all, plain data only, damage named."""

from __future__ import annotations

import errno
import os
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itkit._support import transient
from itkit._support.files import replace_when_complete, write_text
from itkit.errors import CheckpointError, UntrustedCheckpoint
from itkit.mm import checkpoints


def test_round_trip_with_checksum(tmp_path):
    path = tmp_path / "a.pth"
    digest = checkpoints.save({"state_dict": {"w": torch.arange(3.0)}, "meta": {"iter": 3}}, path)
    assert digest == checkpoints.sha256(path)
    loaded = checkpoints.load(path, sha256_expected=digest)
    assert loaded["meta"] == {"iter": 3}
    torch.testing.assert_close(loaded["state_dict"]["w"], torch.arange(3.0))


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "missing"])
def test_damage_is_named_with_the_file(tmp_path, damage):
    path = tmp_path / "iter_3.pth"
    digest = checkpoints.save({"state_dict": {"w": torch.arange(1000.0)}}, path)
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        flipped = data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]
        path.write_bytes({"empty": b"", "truncated": data[: len(data) // 2], "flipped": flipped}[damage])
    with pytest.raises(CheckpointError, match=r"iter_3\.pth: (is damaged|there is no such)"):
        checkpoints.load(path, sha256_expected=digest)
    if damage in ("empty", "truncated"):
        with pytest.raises(CheckpointError, match="is damaged or incomplete"):
            checkpoints.load(path)


class Bomb:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_foreign_pickle_is_refused_and_not_run(tmp_path):
    path = tmp_path / "foreign.pth"
    torch.save({"state_dict": {}, "extra": Bomb()}, path)
    with pytest.raises(UntrustedCheckpoint, match=r"holds Python objects \(posix\.system\) .* --trust-checkpoint"):
        checkpoints.load(path)
    path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(UntrustedCheckpoint, match=r"posix\.system"):
        checkpoints.load(path)


def test_trusted_pickle_is_loaded(tmp_path):
    path = tmp_path / "foreign.pth"
    torch.save({"state_dict": {"w": torch.ones(2)}, "where": Path("/data")}, path)
    assert checkpoints.load(path, trusted=True)["where"] == Path("/data")
    path.write_bytes(b"\x80\x02cno_such_package\nThing\nq\x00.")
    with pytest.raises(CheckpointError, match="holds objects of a package that is not here"):
        checkpoints.load(path, trusted=True)


def test_damage_is_not_taken_for_a_foreign_pickle(tmp_path):
    """A flipped letter in the name of a class makes it a foreign one; the checksums inside the file tell."""
    path = tmp_path / "a.pth"
    checkpoints.save({"w": torch.ones(3)}, path)
    data = path.read_bytes()
    place = data.index(b"torch._utils") + 2
    path.write_bytes(data[:place] + b"x" + data[place + 1 :])
    with pytest.raises(
        CheckpointError, match=r"is damaged \(the checksum of its part .*data\.pkl is wrong\)"
    ) as caught:
        checkpoints.load(path)
    assert not isinstance(caught.value, UntrustedCheckpoint)
    path.write_bytes(b"garbage" * 100)
    with pytest.raises(CheckpointError, match="is damaged, or is no checkpoint"):
        checkpoints.load(path)


def test_flipped_bit_is_found_without_a_recorded_checksum(tmp_path):
    """PyTorch itself loads such a file without a word."""
    path = tmp_path / "a.pth"
    checkpoints.save({"w": torch.zeros(5000)}, path)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        (entry,) = (i for i in archive.infolist() if i.filename.endswith("data/0"))
    data[entry.header_offset + 8000] ^= 16
    path.write_bytes(data)
    assert torch.load(path, weights_only=True)["w"].count_nonzero() == 1
    with pytest.raises(CheckpointError, match=r"the checksum of its part .*data/0 is wrong"):
        checkpoints.load(path)


def test_failed_save_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "best.pth"
    checkpoints.save({"step": 1}, path)

    def full(obj, target):
        target.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save({"step": 2}, path)
    monkeypatch.undo()
    assert checkpoints.load(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["best.pth"]


def test_file_is_read_back_and_compared_before_it_replaces_the_old_one(tmp_path, monkeypatch):
    """The checksum is that of the bytes that were produced: a disk that keeps others is found out, and the old file stays."""
    path = tmp_path / "a.pth"
    checkpoints.save({"step": 1}, path)
    monkeypatch.setattr(transient, "WAITS_S", (0.0, 0.0))
    to_disk, attempts = checkpoints._to_disk, []

    def lose_a_bit(stream):
        to_disk(stream)
        attempts.append(stream.name)
        with open(stream.name, "r+b") as other:
            other.seek(100)
            byte = other.read(1)
            other.seek(100)
            other.write(bytes([byte[0] ^ 1]))

    monkeypatch.setattr(checkpoints, "_to_disk", lose_a_bit)
    with pytest.raises(OSError, match="what is read back is not what was written") as caught:
        checkpoints.save({"step": 2}, path)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))
    assert len(attempts) == 3, "tried again a bounded number of times"
    assert checkpoints.load(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("what", ["write", "fsync", "replace", "open"])
def test_error_that_passes_is_waited_out(tmp_path, monkeypatch, number, what):
    path, said, failures = tmp_path / "a.pth", [], []
    checkpoints.save({"step": 1}, path)
    monkeypatch.setattr(transient, "WAITS_S", (0.0, 0.0))

    def once(function):
        def fails_once(*args, **kwargs):
            if not failures:
                failures.append(1)
                raise OSError(number, os.strerror(number))
            return function(*args, **kwargs)

        return fails_once

    if what == "write":
        monkeypatch.setattr(checkpoints._Digesting, "write", once(checkpoints._Digesting.write))
    elif what == "open":
        monkeypatch.setattr("tempfile.mkstemp", once(__import__("tempfile").mkstemp))
    else:
        monkeypatch.setattr(os, what, once(getattr(os, what)))
    digest = checkpoints.save({"step": 2}, path, say=said.append)
    assert checkpoints.load(path, sha256_expected=digest) == {"step": 2}
    assert said[0].endswith(f"{os.strerror(number)}; attempt 2 of 3 in 0 s")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_error_that_stays_is_raised_at_once(tmp_path, monkeypatch, number):
    calls = []

    def refuse(*args):
        calls.append(1)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr("time.sleep", lambda s: pytest.fail("waited"))
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        checkpoints.save({"step": 1}, tmp_path / "a.pth")
    assert (caught.value.errno, len(calls)) == (number, 1)


def test_disk_that_is_full_in_the_middle_of_a_file(tmp_path):
    """A limit on the size of files is refused as a full disk is: in the middle of a tensor."""
    import resource
    import signal

    path, limits = tmp_path / "a.pth", resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints.save({"step": 1}, path)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            checkpoints.save({"step": 2, "w": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.filename == str(path)
    assert checkpoints.load(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_frozen_state_does_not_change_with_the_training():
    weight, tied = torch.zeros(3), torch.arange(4.0)
    mine, marked = torch.ones(3), checkpoints.copy_to_keep(weight)
    state = {"a": weight, "b": [tied, tied], "mine": mine, "marked": marked, "n": np.arange(2), "t": (1, 2)}
    kept = checkpoints.frozen(state, own={"x": [mine]})
    for tensor in (weight, tied, mine):
        tensor += 7
    assert kept["a"].tolist() == [0, 0, 0]
    assert kept["b"][0] is kept["b"][1], "what is one thing stays one thing"
    assert kept["b"][0].tolist() == [0, 1, 2, 3]
    assert kept["mine"].data_ptr() == mine.data_ptr(), "what is a copy already is not copied again"
    assert kept["marked"].data_ptr() == marked.data_ptr()
    assert (kept["n"].tolist(), kept["t"]) == ([0, 1], [1, 2])


def test_no_reader_sees_a_half_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with replace_when_complete(path) as temporary:
        temporary.write_text("ne")
        assert path.read_text() == "old"
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_random_state_restores_every_generator():
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    np.random.standard_normal()
    state = checkpoints.random_state()

    def draw():
        return random.random(), np.random.standard_normal(), float(torch.rand(1)), random.gauss(0, 1)

    first = draw()
    assert draw() != first
    checkpoints.set_random_state(state)
    assert draw() == first


def test_random_state_survives_a_file(tmp_path):
    state = checkpoints.random_state()
    expected = np.random.rand(), float(torch.rand(1))
    checkpoints.save({"random": state}, tmp_path / "a.pth")
    checkpoints.set_random_state(checkpoints.load(tmp_path / "a.pth")["random"])
    assert (np.random.rand(), float(torch.rand(1))) == expected


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=50, deadline=None)
@given(values)
def test_plain_data_stay_as_they_are(value):
    assert checkpoints.plain(value) == value


def test_plain_turns_everything_else_into_loadable_data(tmp_path):
    odd = {"a": np.float32(2.5), "f": np.float64(1.5), "b": np.arange(3), "c": (1, {2}), "d": tmp_path, ("k", 1): Bomb}
    checkpoints.save(checkpoints.plain(odd), tmp_path / "a.pth")
    loaded = checkpoints.load(tmp_path / "a.pth")
    assert (loaded["a"], loaded["f"]) == (2.5, 1.5)
    assert loaded["b"].tolist() == [0, 1, 2]
    assert loaded["c"] == [1, [2]]
    assert loaded["d"] == str(tmp_path)


def test_wrong_bits_anywhere_are_damage_or_nothing(tmp_path):
    """Without a recorded checksum the file's own ones decide; nothing but our error may come out of reading it."""
    path = tmp_path / "a.pth"
    content = {"meta": {"iter": 3, "cfg": "x" * 200}, "state_dict": {f"w{i}": torch.randn(5, 3) for i in range(4)}}
    checkpoints.save(content, path)
    data, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(500):
        wrong = bytearray(data)
        wrong[draw.randrange(len(wrong))] ^= 1 << draw.randrange(8)
        path.write_bytes(wrong)
        try:
            loaded = checkpoints.load(path)
        except CheckpointError:
            refused += 1
        else:  # a bit between the parts, which nobody reads
            assert all(torch.equal(loaded["state_dict"][k], v) for k, v in content["state_dict"].items())
    assert refused > 200
