"""Checkpoints: whole or not at all, plain data only, damage named."""

from __future__ import annotations

import os
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itkit._support.files import replace_when_complete, write_text
from itkit.errors import CheckpointError
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
    with pytest.raises(CheckpointError, match="could run foreign code"):
        checkpoints.load(path)
    path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(CheckpointError):
        checkpoints.load(path)


def test_failed_save_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "best.pth"
    checkpoints.save({"step": 1}, path)

    def full(obj, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save({"step": 2}, path)
    monkeypatch.undo()
    assert checkpoints.load(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["best.pth"]


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
