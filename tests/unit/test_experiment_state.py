"""`run.json`: nothing is guessed, nothing is lost."""

from __future__ import annotations

import json

import pytest

from itkit.errors import CheckpointError
from itkit.experiment.state import RunState, is_tested


def folder_of(tmp_path):
    folder = tmp_path / "0.1.A" / "unet"
    folder.mkdir(parents=True)
    return folder


def test_blank_state_is_new_and_knows_its_name(tmp_path):
    state = RunState.load(folder_of(tmp_path))
    assert (state.experiment, state.model, state.state) == ("0.1.A", "unet", "new")


def test_round_trip_and_unknown_keys_of_a_later_version(tmp_path):
    folder = folder_of(tmp_path)
    state = RunState(
        "0.1.A", "unet", state="partial", step=7, best={"step": 5, "metric": "Dice", "value": 0.5, "checkpoint": "x"}
    )
    state.save(folder)
    document = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**document, "from_the_future": 1}))
    assert RunState.load(folder) == state


def test_damaged_state_is_not_taken_for_a_new_run(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "run.json").write_text('{"state": "trai')
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        RunState.load(folder)


def test_checkpoint_must_be_recorded_and_there(tmp_path):
    folder = folder_of(tmp_path)
    state = RunState("0.1.A", "unet")
    with pytest.raises(CheckpointError, match="no best checkpoint is recorded"):
        state.checkpoint(folder)
    state.last = {"step": 3, "checkpoint": "checkpoints/iter_3.pth"}
    with pytest.raises(CheckpointError, match="Test with --test-use-last-ckpt"):
        state.checkpoint(folder)
    with pytest.raises(CheckpointError, match=r"iter_3\.pth: the last checkpoint recorded in run\.json is not there"):
        state.checkpoint(folder, last=True)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "iter_3.pth").write_text("")
    assert state.checkpoint(folder, last=True) == (folder / "checkpoints/iter_3.pth", 3)


def test_result_of_a_replaced_checkpoint_does_not_count():
    state = RunState(
        "e", "m", state="trained", best={"step": 5, "checkpoint": "b5"}, last={"step": 9, "checkpoint": "l9"}
    )
    assert is_tested(state, {"step": 5, "checkpoint": "b5"})
    assert is_tested(state, {"step": 9, "checkpoint": "l9"})
    assert not is_tested(state, {"step": 4, "checkpoint": "b4"})
    assert not is_tested(state, None)
