"""The folder of checkpoints: killed before any of its file operations, `run.json` names only files that are there and whole."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from exact_runs import in_child

from itkit.errors import CheckpointError, UntrustedCheckpoint
from itkit.experiment.state import RunState
from itkit.mm import checkpoints
from itkit.mm.checkpoint_folder import CheckpointFolder, choose

EVENTS = ("open", "os.rename", "os.remove", "os.link", "os.chmod", "os.mkdir", "os.truncate", "shutil.copyfile")


def state_of(step: int) -> dict:
    return {"meta": {"iter": step, "epoch": 0}, "state_dict": {"w": torch.full((2000,), float(step))}}


def open_folder(run_dir: Path) -> CheckpointFolder:
    """The folder as a start of the run finds it."""
    state = RunState.load(run_dir)
    folder = CheckpointFolder(run_dir, state, lambda: state.save(run_dir), print)
    folder.tidy()
    return folder


def require_agreement(run_dir: Path) -> RunState:
    """Every file that run.json names is there and has the checksum that it names (if any); the newest can be loaded."""
    state = RunState.load(run_dir)
    for record in [state.best, state.last, *state.kept]:
        if record:
            digest = checkpoints.sha256(run_dir / record["checkpoint"])
            assert record.get("sha256", digest) == digest, record
    folder = CheckpointFolder(run_dir, state, lambda: None, print)
    newest = choose(folder, trusted=False, say=lambda text: pytest.fail(text))
    if state.last:
        assert newest[0]["meta"]["iter"] >= state.last["step"]
    return state


def prepared(run_dir: Path, with_best: bool = True) -> None:
    folder = open_folder(run_dir)
    folder.write(state_of(3), "iter_3.pth", step=3, keep=1)
    if with_best:
        folder.copy_best(folder.of_step(3), metric="Dice", value=0.5)
    folder.write(state_of(6), "iter_6.pth", step=6, keep=1)


def save_next(run_dir: Path) -> None:
    open_folder(run_dir).write(state_of(9), "iter_9.pth", step=9, keep=1)


def save_first(run_dir: Path) -> None:
    open_folder(run_dir).write(state_of(3), "iter_3.pth", step=3, keep=1)


def copy_best(run_dir: Path) -> None:
    folder = open_folder(run_dir)
    folder.copy_best(folder.of_step(6), metric="Dice", value=0.7)


def write_best(run_dir: Path) -> None:
    open_folder(run_dir).write_best(state_of(7), step=7, metric="Dice", value=0.7)


def best_of_the_same_step(run_dir: Path) -> None:
    open_folder(run_dir).write_best(state_of(3), step=3, metric="Dice", value=0.9)


def same_name_again(run_dir: Path) -> None:
    open_folder(run_dir).write(state_of(6), "iter_6.pth", step=6, keep=1)


def killing_before(operation: int, run_dir: Path, action) -> None:
    """Do `action`; die before its n-th file operation in the run folder."""
    seen = [0]

    def watch(event: str, arguments: tuple) -> None:
        if event in EVENTS and any(str(run_dir) in str(argument) for argument in arguments):
            seen[0] += 1
            if seen[0] == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    action(run_dir)


ACTIONS = [save_next, save_first, copy_best, write_best, best_of_the_same_step, same_name_again]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_killed_before_any_file_operation(tmp_path, action):
    values = {1: "before", 2: "after"}
    outcomes = set()
    for operation in range(1, 200):
        run_dir = tmp_path / str(operation)
        if action is not save_first:
            prepared(run_dir)
        before = RunState.load(run_dir)
        code = in_child(lambda n=operation, folder=run_dir: killing_before(n, folder, action))
        state = require_agreement(run_dir)
        outcomes.add(values[1] if state == before else values[2])
        folder = open_folder(run_dir)  # the next start
        require_agreement(run_dir)
        if folder.state.best:
            (only,) = folder.path.glob("best_*")
            assert only.name == Path(folder.state.best["checkpoint"]).name
        assert not list(folder.path.glob(".*"))
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert operation > 8
    assert outcomes == {"before", "after"}
    assert code == 0


def test_the_old_file_goes_only_when_the_new_one_is_proven_and_recorded(tmp_path, monkeypatch):
    """What is there at each moment of saving with max_keep_ckpts = 1."""
    prepared(tmp_path, with_best=False)
    folder, moments = open_folder(tmp_path), []
    names = lambda: sorted(p.name for p in folder.path.glob("[!.]*"))  # noqa: E731
    sha, save, unlink = checkpoints.sha256, RunState.save, Path.unlink

    def note(what: str, function):
        def noted(*args, **kwargs):
            moments.append((what, names(), json.loads((tmp_path / "run.json").read_text())["last"]["step"]))
            return function(*args, **kwargs)

        return noted

    monkeypatch.setattr(checkpoints, "sha256", note("read back", sha))
    monkeypatch.setattr(RunState, "save", note("record", save))
    noted_unlink = note("remove", unlink)

    def remove(self, **options):
        return (noted_unlink if self.suffix == ".pth" and self.name[0] != "." else unlink)(self, **options)

    monkeypatch.setattr(Path, "unlink", remove)
    folder.write(state_of(9), "iter_9.pth", step=9, keep=1)
    both = ["iter_6.pth", "iter_9.pth"]
    assert moments == [("read back", ["iter_6.pth"], 6), ("record", both, 6), ("remove", both, 9)]
    assert names() == ["iter_9.pth"]


@pytest.mark.parametrize("keep, left", [(1, [9]), (2, [6, 9]), (3, [3, 6, 9]), (-1, [3, 6, 9])])
def test_number_of_kept_checkpoints(tmp_path, keep, left):
    folder = open_folder(tmp_path)
    for step in (3, 6, 9):
        folder.write(state_of(step), f"iter_{step}.pth", step=step, keep=keep)
    assert [record["step"] for record in require_agreement(tmp_path).kept] == left
    assert sorted(p.name for p in folder.path.iterdir()) == sorted(f"iter_{step}.pth" for step in left)


def test_best_is_a_copy_and_survives_the_removal_of_the_first(tmp_path):
    folder = open_folder(tmp_path)
    folder.write(state_of(3), "iter_3.pth", step=3, keep=1)
    folder.copy_best(folder.of_step(3), metric="Dice", value=0.5)
    assert (folder.path / "iter_3.pth").read_bytes() == (folder.path / "best_iter_3.pth").read_bytes()
    folder.write(state_of(6), "iter_6.pth", step=6, keep=1)
    assert not (folder.path / "iter_3.pth").exists()
    best = require_agreement(tmp_path).best
    assert (best["step"], best["metric"], best["value"]) == (3, "Dice", 0.5)
    assert checkpoints.load(folder.file(best), sha256_expected=best["sha256"])["meta"]["iter"] == 3


def test_harm_to_the_checkpoint_of_the_best_step_is_none_to_the_best(tmp_path, monkeypatch):
    folder = open_folder(tmp_path)
    folder.write(state_of(3), "iter_3.pth", step=3, keep=1)
    folder.copy_best(folder.of_step(3), metric="Dice", value=0.5)
    (folder.path / "iter_3.pth").write_bytes(b"damaged")  # in place, as a broken disk does it
    assert choose(folder, trusted=False, say=lambda text: None)[1] == folder.state.best, "the last resort"
    monkeypatch.setattr("itkit._support.transient.WAITS_S", (0.0,))
    with pytest.raises(OSError, match="what is read back is not what was written"):
        folder.copy_best(folder.of_step(3), metric="Dice", value=0.6)
    best = RunState.load(tmp_path).best
    assert best["value"] == 0.5
    assert checkpoints.sha256(folder.file(best)) == best["sha256"]


def test_damaged_best_is_copied_anew_from_its_step(tmp_path):
    folder, said = open_folder(tmp_path), []
    folder._say = said.append
    folder.write(state_of(3), "iter_3.pth", step=3, keep=2)
    folder.copy_best(folder.of_step(3), metric="Dice", value=0.5)
    folder.mend_best(may_forget=True)
    assert not said
    folder.file(folder.state.best).write_bytes(b"damaged")
    folder.mend_best(may_forget=False)
    assert said == [f"{folder.path / 'best_iter_3.pth'}: was damaged, and is copied anew from iter_3.pth."]
    require_agreement(tmp_path)


def test_damaged_best_without_its_step_is_put_aside_by_a_training_and_named_to_a_test(tmp_path):
    prepared(tmp_path)
    folder, said = open_folder(tmp_path), []
    folder._say = said.append
    path = folder.file(folder.state.best)
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"best_iter_3\.pth: is damaged .*test another: --test-use-last-ckpt"):
        folder.mend_best(may_forget=False)
    assert path.is_file()
    folder.mend_best(may_forget=True)
    assert "best_iter_3.pth: is damaged" in said[0]
    assert "put aside as best_iter_3.pth.damaged; the best model is sought anew from here on." in said[0]
    assert RunState.load(tmp_path).best is None
    assert [p.name for p in folder.path.glob("best_*")] == ["best_iter_3.pth.damaged"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped"])
@pytest.mark.parametrize("is_known", [True, False], ids=["recorded", "unknown"])
def test_each_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage, is_known):
    """Two of three are damaged; a file whose checksum was never recorded is found out by those inside it."""
    folder, said = open_folder(tmp_path), []
    for step in (3, 6, 9):
        folder.write(state_of(step), f"iter_{step}.pth", step=step, keep=-1)
    if not is_known:
        (tmp_path / "run.json").unlink()
    for step in (6, 9):
        path = folder.path / f"iter_{step}.pth"
        data = path.read_bytes()
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
        path.write_bytes({"truncated": data[:middle], "empty": b"", "flipped": flipped}[damage])
    folder = open_folder(tmp_path)
    checkpoint, record, damaged = choose(folder, trusted=False, say=said.append)
    assert (checkpoint["meta"]["iter"], record["step"]) == (3, 3)
    assert [line.partition(": is damaged")[0].rpartition("/")[2] for line in said] == ["iter_9.pth", "iter_6.pth"]
    folder.resumed_from(record, damaged)
    assert [r["step"] for r in folder.state.kept] == [3]
    assert folder.state.last["sha256"] == checkpoints.sha256(folder.path / "iter_3.pth")
    assert sorted(p.name for p in folder.path.iterdir()) == ["iter_3.pth", "iter_6.pth.damaged", "iter_9.pth.damaged"]
    (folder.path / "iter_3.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of 1 checkpoints can be read"):
        choose(folder, trusted=False, say=said.append)


def test_best_is_the_last_resort(tmp_path):
    prepared(tmp_path)
    folder = open_folder(tmp_path)
    (folder.path / "iter_6.pth").write_bytes(b"")
    checkpoint, record, _ = choose(folder, trusted=False, say=lambda text: None)
    assert (checkpoint["meta"]["iter"], record["checkpoint"]) == (3, "checkpoints/best_iter_3.pth")
    folder.resumed_from(record, [])
    assert folder.state.step == 3


def test_best_between_two_steps_of_the_optimizer_is_no_state_to_go_on_from(tmp_path):
    folder = open_folder(tmp_path)
    state = state_of(5)
    state["meta"]["resumable"] = False
    folder.write_best(state, step=5, metric="Dice", value=0.5)
    assert choose(folder, trusted=False, say=pytest.fail) is None


def test_something_else_is_named(tmp_path):
    folder, said = open_folder(tmp_path), []
    folder.path.mkdir(parents=True)
    checkpoints.save({"w": torch.ones(1)}, folder.path / "iter_4.pth")
    with pytest.raises(CheckpointError, match="none of 1"):
        choose(folder, trusted=False, say=said.append)
    assert "iter_4.pth: holds no state of a training." in said[0]
    torch.save({"meta": {"iter": 5, "epoch": 0}, "state_dict": {}, "extra": Path("a")}, folder.path / "iter_5.pth")
    with pytest.raises(UntrustedCheckpoint, match=r"iter_5\.pth: holds Python objects .* --trust-checkpoint"):
        choose(folder, trusted=False, say=said.append)
    assert choose(folder, trusted=True, say=said.append)[0]["extra"] == Path("a")


def test_files_of_others_are_left_alone(tmp_path):
    folder = open_folder(tmp_path)
    folder.path.mkdir(parents=True)
    for name in ("iter_notes.pth", "notes.txt", "iter_2.pth.bak"):
        (folder.path / name).write_text("mine")
    for step in (3, 6):
        folder.write(state_of(step), f"iter_{step}.pth", step=step, keep=1)
    open_folder(tmp_path)
    assert sorted(p.name for p in folder.path.iterdir()) == [
        "iter_2.pth.bak",
        "iter_6.pth",
        "iter_notes.pth",
        "notes.txt",
    ]


def test_a_file_that_cannot_be_removed_ends_nothing(tmp_path, monkeypatch, capsys):
    prepared(tmp_path)
    folder = open_folder(tmp_path)

    def refuse(self, **kwargs):
        if self.suffix == ".pth" and not self.name.startswith("."):
            raise OSError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    folder.write(state_of(9), "iter_9.pth", step=9, keep=1)
    assert "iter_6.pth: cannot be removed (Permission denied); it is not needed any more." in capsys.readouterr().out
    monkeypatch.undo()
    assert require_agreement(tmp_path).last["step"] == 9
