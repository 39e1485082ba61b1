"""A run does what is missing, failed or stale, says why, and never replaces what is not its own."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from toy_operation import Toy, make_source, results

from itkit.errors import DataError, UsageError
from itkit.process import execution, publication
from itkit.process.execution import RunOptions, Shard, run_operation
from itkit.process.ledger import Ledger
from itkit.process.operation import Operation, Product, Stage, Task
from itkit.process.presence import Presence


@pytest.fixture
def toy(tmp_path):
    return Toy(str(make_source(tmp_path / "src")), str(tmp_path / "dst"))


def go(toy, **options):
    return run_operation(toy, RunOptions(**options))[0]


def why(toy):
    return go(toy, dry_run=True).why


def test_a_run_writes_everything_and_leaves_nothing_else(toy, tmp_path):
    steps = []
    summary, entries = run_operation(toy, progress=steps.append)
    assert (summary.done, summary.exit_code) == (["c000", "c001", "c002", "c003"], 0)
    assert summary.documents == [tmp_path / "dst" / "meta.json"]
    assert set(os.listdir(tmp_path / "dst")) == {"image", "label", "ledger.jsonl", "meta.json"}
    assert (tmp_path / "dst" / "image" / "c000.txt").read_text() == "\ncase 0\n" * 2
    assert [(step.number, step.total) for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert steps[-1].share == pytest.approx(1)
    entry = entries["c001"]
    assert entry["parameters"] == {"factor": 2}
    facts = entry["inputs"][str(tmp_path / "src" / "c001.txt")]
    assert set(facts) == {"size", "mtime_ns", "sha256"}
    assert set(entry["outputs"]) == {"image/c001.txt", "label/c001.txt"}
    assert (entry["state"], entry["reason"], entry["record"], entry["operation"]) == (
        "done",
        None,
        {"length": 8},
        "itk_toy",
    )
    assert entry["seconds"] > 0


def test_a_second_run_does_only_what_is_left_and_says_why(toy, tmp_path):
    go(toy)
    assert go(toy).current == ["c000", "c001", "c002", "c003"]
    (tmp_path / "dst" / "label" / "c000.txt").unlink()
    (tmp_path / "src" / "c001.txt").write_text("new")
    (tmp_path / "src" / "c004.txt").write_text("fail on purpose")
    os.utime(tmp_path / "src" / "c002.txt", ns=(5, 5))
    assert why(toy) == {
        "c000": "the result label/c000.txt is gone",
        "c001": f"the input {tmp_path / 'src' / 'c001.txt'} has changed",
        "c004": "not done yet",
    }
    before = results(tmp_path / "dst")
    summary = go(toy)
    assert (summary.done, summary.current) == (["c000", "c001"], ["c002", "c003"])
    assert summary.failed == {"c004": f"{tmp_path / 'src' / 'c004.txt'}: on purpose"}
    assert results(tmp_path / "dst")["image/c003.txt"] == before["image/c003.txt"]
    assert why(toy) == {"c004": f"failed before: {tmp_path / 'src' / 'c004.txt'}: on purpose"}
    assert why(replace(toy, factor=3))["c000"] == "factor was 2, is 3"
    assert go(replace(toy, factor=3)).done == ["c000", "c001", "c002", "c003"]
    assert (tmp_path / "dst" / "image" / "c001.txt").read_text() == "newnewnew"
    assert set(go(toy, overwrite=True, dry_run=True).why.values()) == {"all cases are done again (--overwrite)"}


def test_a_dry_run_writes_nothing(toy, tmp_path):
    assert go(toy, dry_run=True).done == ["c000", "c001", "c002", "c003"]
    assert not (tmp_path / "dst").exists()


def test_a_source_that_was_moved_is_still_the_same(toy, tmp_path):
    go(toy)
    (tmp_path / "src").rename(tmp_path / "moved")
    assert go(replace(toy, source=str(tmp_path / "moved"))).current == ["c000", "c001", "c002", "c003"]


def test_another_source_with_the_same_names_does_not_replace(toy, tmp_path):
    go(toy)
    other = replace(toy, source=str(make_source(tmp_path / "other", 1, "else")))
    before = results(tmp_path / "dst")
    for _ in range(2):
        summary = go(other)
        assert "the destination holds the results of another case of this name" in summary.failed["c000"]
        assert summary.gone == 3
    assert results(tmp_path / "dst")["image/c000.txt"] == before["image/c000.txt"]
    assert go(other, overwrite=True).done == ["c000"]
    assert (tmp_path / "dst" / "image" / "c000.txt").read_text().startswith("else")


def test_a_case_that_gets_another_file_is_done_again(tmp_path):
    class Pair(Toy):
        def tasks(self):
            files = tuple(sorted(Path(self.source).iterdir()))
            return [Task("all", files, (Path(self.destination) / "image" / "all.txt",) * 2)]

    pair = Pair(str(make_source(tmp_path / "src", 1)), str(tmp_path / "dst"))
    go(pair)
    make_source(tmp_path / "src", 2)
    assert why(pair) == {"all": "it consists of other files than before"}
    assert go(pair).done == ["all"]


def test_changed_results_are_named_and_kept(toy, tmp_path):
    go(toy)
    mine = tmp_path / "dst" / "image" / "c001.txt"
    mine.write_text("edited by hand")
    for _ in range(2):
        summary = go(toy)
        assert summary.failed == {
            "c001": f"{mine}: was changed since it was written. Keep it elsewhere and remove it here, or use --overwrite."
        }
        assert mine.read_text() == "edited by hand"
    (tmp_path / "src" / "c001.txt").write_text("new")
    assert "image/c001.txt: exists and was written by this tool, and changed since" in go(toy).failed["c001"]
    assert mine.read_text() == "edited by hand"
    mine.unlink()
    assert go(toy).done == ["c001"]
    mine.write_text("again")
    assert go(toy, overwrite=True).exit_code == 0
    assert mine.read_text() == "newnew"


def test_results_that_never_reached_the_disk_are_made_again(toy, tmp_path):
    """After a loss of power a file has its time, but not all of its bytes; nothing tells it from a whole one but its size."""
    go(toy)
    whole = results(tmp_path / "dst")
    lost = tmp_path / "dst" / "label" / "c001.txt"
    times = lost.stat().st_mtime_ns
    lost.write_bytes(b"")
    os.utime(lost, ns=(times, times))
    assert why(toy) == {"c001": "the result label/c001.txt is not whole: the machine stopped before it was on the disk"}
    summary = go(toy)
    assert (summary.done, summary.current, summary.failed) == (["c001"], ["c000", "c002", "c003"], {})
    assert results(tmp_path / "dst") == whole


def test_a_run_waits_once_until_all_is_on_the_disk(toy, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(execution, "flush_file_system", waited.append)
    go(toy)
    assert waited == [toy.destination]
    go(toy)
    assert len(waited) == 1, "nothing was written"

    def broken(folder):
        raise OSError(errno.EIO, "Input/output error", folder)

    monkeypatch.setattr(execution, "flush_file_system", broken)
    summary = go(toy, overwrite=True)
    assert summary.exit_code == 1
    assert summary.problems == [f"{toy.destination}: some results may not have reached the disk (Input/output error)."]


def test_foreign_files_are_not_replaced_unless_they_are_what_would_be_written(toy, tmp_path):
    go(toy)
    (tmp_path / "dst" / "ledger.jsonl").unlink()
    foreign = tmp_path / "dst" / "label" / "c002.txt"
    foreign.write_text("mine")
    summary = go(toy)
    assert "exists and was not written by this tool; remove it or use --overwrite" in summary.failed["c002"]
    assert foreign.read_text() == "mine"
    shutil.rmtree(tmp_path / "dst")
    foreign.parent.mkdir(parents=True)
    foreign.symlink_to("nowhere")
    assert set(go(toy).failed) == {"c002"}, "a broken link is somebody's too"


def test_after_a_crash_what_is_equal_is_taken_as_done(toy, tmp_path):
    go(toy)
    (tmp_path / "dst" / "ledger.jsonl").unlink()
    (tmp_path / "dst" / "label" / "c002.txt").write_text("mine")
    dead = tmp_path / "dst" / Stage.FOLDER / "host-1-x"
    dead.mkdir(parents=True)
    (dead / "half.mha").write_text("half")
    summary = go(toy)
    assert summary.done == ["c000", "c001", "c003"]
    assert "was not written by this tool" in summary.failed["c002"]
    assert not (tmp_path / "dst" / Stage.FOLDER).exists()


def test_results_that_a_case_does_not_have_any_more_are_removed(tmp_path):
    class Several(Toy):
        def process(self, task: Task, stage: Stage) -> Product:
            for number in range(self.factor):
                stage.path(Path(self.destination) / f"{task.case_id}_{number}.txt").write_text("x")
            return Product()

        def tasks(self):
            return [Task(task.case_id, task.inputs) for task in super().tasks()]

    several = Several(str(make_source(tmp_path / "src", 2)), str(tmp_path / "dst"), factor=3)
    go(several)
    (tmp_path / "dst" / "c001_2.txt").write_text("edited")
    assert go(replace(several, factor=1)).failed.keys() == set()
    assert sorted(results(tmp_path / "dst")) == ["c000_0.txt", "c001_0.txt", "c001_2.txt", "meta.json"]


def test_a_failure_leaves_the_earlier_result_and_it_stays_the_cases_own(toy, tmp_path):
    go(toy)
    (tmp_path / "src" / "c001.txt").write_text("fail now")
    assert set(go(toy).failed) == {"c001"}
    assert (tmp_path / "dst" / "image" / "c001.txt").read_text() == "\ncase 1\n" * 2
    (tmp_path / "src" / "c001.txt").write_text("well again")
    assert go(toy).done == ["c001"]
    assert (tmp_path / "dst" / "image" / "c001.txt").read_text() == "well again" * 2


def test_one_bad_case_does_not_stop_the_others(toy, tmp_path):
    (tmp_path / "src" / "c000.txt").write_text("break")
    (tmp_path / "src" / "c001.txt").write_text("warn of something")
    (tmp_path / "src" / "c002.txt").write_text("touch-source")
    (tmp_path / "src" / "c003.txt").write_text("vanish")
    summary = go(toy)
    assert summary.failed == {
        "c000": "ZeroDivisionError: broken",
        "c002": f"{tmp_path / 'src' / 'c002.txt'}: changed while it was read.",
        "c003": f"{tmp_path / 'src' / 'c003.txt'}: changed while it was read.",
    }
    assert (summary.done, summary.notes) == (["c001"], {"c001": ("of something",)})
    assert sorted(results(tmp_path / "dst")) == ["image/c001.txt", "label/c001.txt", "meta.json"]


def test_a_source_that_vanishes_before_its_turn_is_named(toy, tmp_path):
    class Removing(Toy):
        def process(self, task, stage):
            (tmp_path / "src" / "c003.txt").unlink(missing_ok=True)
            return super().process(task, stage)

    summary = go(Removing(toy.source, toy.destination))
    assert summary.failed == {"c003": f"{tmp_path / 'src' / 'c003.txt'}: no such file."}


def test_two_cases_that_become_one_file_both_fail(toy, tmp_path):
    class Flat(Toy):
        def tasks(self):
            tasks = super().tasks()
            return [*tasks[:2], replace(tasks[2], outputs=tasks[1].outputs), tasks[3]]

    summary = go(Flat(toy.source, toy.destination))
    assert summary.failed == {
        "c001": "it and c002 would become the same file; rename one.",
        "c002": "it and c001 would become the same file; rename one.",
    }
    assert summary.done == ["c000", "c003"]

    class Secret(Toy):
        def tasks(self):
            return [Task(task.case_id, task.inputs) for task in super().tasks()]

        def process(self, task, stage):
            stage.path(Path(self.destination) / "same.txt").write_text(task.case_id)
            return Product()

    secret = Secret(toy.source, str(tmp_path / "secret"))
    for overwrite in (False, True):
        summary = go(secret, overwrite=overwrite)
        assert set(summary.failed) == {"c001", "c002", "c003"}
        assert "same.txt: is there already, made from the case c000; rename one" in summary.failed["c001"]


def test_two_files_of_one_name_are_refused(toy):
    class Twice(Toy):
        def tasks(self):
            return super().tasks() * 2

    with pytest.raises(DataError, match="two files make one case, c000"):
        go(Twice(toy.source, toy.destination))


def test_nothing_is_written_into_the_source(toy, tmp_path):
    class Astray(Toy):
        @property
        def roots(self):
            return (Path(self.destination), Path(self.source) / "below")

        def process(self, task, stage):
            stage.path(Path(self.source) / "below" / "x.txt").write_text("x")
            return Product()

    summary = go(Astray(toy.source, toy.destination))
    assert "where nothing is ever written" in summary.failed["c000"]
    with pytest.raises(UsageError, match="nothing is ever written into a source"):
        Toy(toy.source, str(tmp_path / "src" / "out"))
    with pytest.raises(UsageError, match="lies outside of"):
        Stage([tmp_path / "dst"], "x").path(tmp_path / "elsewhere")


def test_a_failure_with_a_record_publishes_nothing(toy, tmp_path):
    class Judging(Toy):
        def process(self, task, stage):
            return replace(super().process(task, stage), failure="it is no good")

    summary, entries = run_operation(Judging(toy.source, toy.destination))
    assert summary.failed["c000"] == "it is no good"
    assert entries["c000"]["record"] == {"length": 8}
    assert list(results(tmp_path / "dst")) == ["meta.json"]


def test_documents_that_cannot_be_written_do_not_hide_the_cases(toy):
    class Clumsy(Toy):
        def finish(self, entries, ask):
            raise OSError(errno.ENOSPC, "No space left on device")

    summary = go(Clumsy(toy.source, toy.destination))
    assert (len(summary.done), summary.exit_code) == (4, 1)
    assert summary.problems == ["the documents could not be written: [Errno 28] No space left on device"]


def test_a_full_disk_fails_each_case_by_name_and_leaves_no_half(toy, tmp_path, monkeypatch):
    def full(self, task, stage):
        raise OSError(errno.ENOSPC, "No space left on device", str(task.outputs[0]))

    monkeypatch.setattr(Toy, "process", full)
    summary = go(toy)
    assert summary.failed["c002"] == (
        f"{tmp_path / 'dst' / 'image' / 'c002.txt'}: No space left on device. Make room and run it again."
    )
    monkeypatch.undo()
    assert len(go(toy).done) == 4


def test_a_ledger_that_cannot_be_written_fails_the_case(toy, tmp_path, monkeypatch):
    original = Ledger.append

    def append(self, entry):
        if entry["case"] == "c001" and entry["state"] != "failed":
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, entry)

    monkeypatch.setattr(Ledger, "append", append)
    summary = go(toy)
    assert summary.failed == {"c001": "No space left on device. Make room and run it again."}
    assert not (tmp_path / "dst" / "image" / "c001.txt").exists()
    monkeypatch.setattr(Ledger, "append", lambda self, e: None if e["state"] == "done" else original(self, e))
    monkeypatch.undo()
    assert go(toy).done == ["c001"]


def test_a_failing_move_leaves_no_half_pair(toy, tmp_path, monkeypatch):
    original = os.replace

    def replace_(source, target):
        if str(target).endswith("label/c001.txt"):
            raise PermissionError(13, "Permission denied", str(target))
        original(source, target)

    monkeypatch.setattr(publication.os, "replace", replace_)
    assert "Permission denied" in go(toy).failed["c001"]
    assert not (tmp_path / "dst" / "image" / "c001.txt").exists()
    monkeypatch.undo()
    assert go(toy).done == ["c001"]


def test_stopped_between_two_moves_the_next_run_knows_its_own(toy, tmp_path, monkeypatch):
    go(toy)
    original = os.replace

    def replace_(source, target):
        if str(target).endswith("label/c001.txt"):
            raise KeyboardInterrupt
        original(source, target)

    monkeypatch.setattr(publication.os, "replace", replace_)
    with pytest.raises(KeyboardInterrupt):
        go(replace(toy, factor=3))
    monkeypatch.undo()
    assert (tmp_path / "dst" / "image" / "c001.txt").read_text() == "\ncase 1\n" * 3
    other = replace(toy, factor=4)
    assert why(other)["c001"] == "an earlier run was stopped while it moved the results"
    assert go(other).failed == {}
    assert (tmp_path / "dst" / "image" / "c001.txt").read_text() == "\ncase 1\n" * 4


def test_a_folder_of_the_destination_may_lie_on_another_device(toy, tmp_path, monkeypatch):
    original = os.replace

    def replace_(source, target):
        if str(target).startswith(str(tmp_path / "dst" / "label")) and ".itkit-staging" in str(source):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        original(source, target)

    monkeypatch.setattr(publication.os, "replace", replace_)
    assert go(toy).failed == {}
    monkeypatch.undo()
    assert go(toy).current == ["c000", "c001", "c002", "c003"]


def test_places_that_cannot_be_written_are_named(toy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file.*: cannot be written .Not a directory"):
        go(replace(toy, destination=str(tmp_path / "file" / "dst")))
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst" / "image").write_text("a file where a folder should be")
    assert "File exists" in go(toy).failed["c000"]


def test_other_tools_and_other_parameters_at_the_same_time_are_refused(toy, tmp_path):
    class Other(Toy):
        name = "itk_other"

    (tmp_path / "dst").mkdir()
    presence = Presence(tmp_path / "dst", [], {"operation": "itk_toy", "parameters": {"factor": 9}})
    with pytest.raises(UsageError, match=f"process {os.getpid()} on .* works there with itk_toy and other parameters"):
        go(toy)
    presence.close()
    go(toy)
    with pytest.raises(UsageError, match="is the ledger of itk_toy"):
        go(Other(toy.source, toy.destination))


def test_shards_divide_the_cases_and_the_last_writes_the_documents(toy, tmp_path):
    make_source(tmp_path / "src", 7)
    parts = [Shard(number, 3) for number in (1, 2, 3)]
    assert [len(part.of(range(7))) for part in parts] == [3, 2, 2]
    assert sorted(sum((part.of(range(7)) for part in parts), [])) == list(range(7))
    left = []
    for part in parts:
        assert not (tmp_path / "dst" / "meta.json").exists()
        summary = go(toy, shard=part)
        left.append((len(summary.done), summary.elsewhere, len(summary.documents)))
    assert left == [(3, 4, 0), (2, 2, 0), (2, 0, 1)]
    assert len(json.loads((tmp_path / "dst" / "meta.json").read_text())) == 7
    assert go(toy).current == [f"c{n:03}" for n in range(7)]
    (tmp_path / "src" / "c000.txt").write_text("fail")
    assert go(toy, shard=Shard(2, 3)).elsewhere == 1
    summary = go(toy, shard=Shard(1, 3))
    assert (set(summary.failed), summary.elsewhere) == ({"c000"}, 0)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", ""])
def test_senseless_shards_are_refused(text):
    with pytest.raises(UsageError, match="write PART/PARTS with 1 <= PART <= PARTS"):
        Shard.parse(text)
    assert Shard.parse("2/3") == Shard(2, 3)


def test_memory_that_cannot_be_had_is_a_reason(toy, tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "src" / "c001.txt").write_text(f"memory-once {marker}")
    summary = go(toy)
    assert summary.failed == {}
    assert summary.notes == {"c001": ("there is not enough memory for it; then done alone",)}


def test_what_an_operation_must_say():
    operation = Operation()
    for call in (operation.tasks, lambda: operation.process(None, None)):
        with pytest.raises(NotImplementedError):
            call()
    assert (tuple(operation.finish({}, None)), operation.describe({}), operation.sources) == ((), None, ())
