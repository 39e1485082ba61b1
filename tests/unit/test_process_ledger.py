"""The ledger: what is noted stays, torn lines and several writers do no harm, what changed is seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from itkit.errors import DataError, UsageError
from itkit.io.volumes import Volume, write_volume
from itkit.process import ledger as ledger_module
from itkit.process.contents import compare_output, describe_output, hash_input, is_same_input, measure_input
from itkit.process.ledger import Ledger, stamp


def entry(case, state="done", **facts):
    return {"case": case, "state": state, "operation": "itk_toy", "inputs": {}, "outputs": {}, **facts}


def test_the_last_line_of_a_case_counts_and_others_see_it(tmp_path):
    ledger, reader = Ledger(tmp_path, "itk_toy"), Ledger(tmp_path)
    assert dict(ledger.entries) == {}
    ledger.append(entry("a", "failed", reason="no"))
    ledger.append(entry("b", record={"n": 1}))
    ledger.append(entry("a", reason=None))
    assert "a" not in reader.entries
    before = reader.settled_at("a")
    reader.refresh()
    assert {case: e["state"] for case, e in reader.entries.items()} == {"a": "done", "b": "done"}
    assert reader.entries["b"]["record"] == {"n": 1}
    assert reader.settled_at("a") > before == 0
    assert reader.entry("c") is None
    with pytest.raises(KeyError):
        reader.entries["c"]


def test_torn_lines_are_passed_over_and_do_not_swallow_the_next(tmp_path):
    ledger = Ledger(tmp_path, "itk_toy")
    ledger.append(entry("a"))
    for before, after in ((["a"], ["a", "b"]), (["a", "b"], ["a", "b", "c"])):
        with open(ledger.path, "a") as stream:
            stream.write('{"case": "torn", "sta')
        assert list(Ledger(tmp_path).entries) == before
        ledger.append(entry(after[-1]))
        assert list(Ledger(tmp_path).entries) == after


def test_what_a_killed_run_was_moving_is_the_cases_own(tmp_path):
    ledger = Ledger(tmp_path, "itk_toy")
    ledger.append(entry("a", outputs={"x": {"size": 1}, "y": {"size": 2}}))
    ledger.begin("a", {"x": {"size": 3}})
    ledger.refresh()
    assert ledger.begun("a")["outputs"] == {"x": {"size": 3}}
    assert ledger.owned("a") == {"x": [{"size": 1}, {"size": 3}], "y": [{"size": 2}]}
    assert (ledger.owner(tmp_path / "x"), ledger.owner(tmp_path / "z")) == ("a", None)
    ledger.append(entry("b", outputs={"z": {"size": 2}}))
    ledger.append(entry("a", outputs={"x": {"size": 3}}))
    ledger.refresh()
    assert ledger.begun("a") is None
    assert ledger.owned("a") == {"x": [{"size": 3}]}
    assert ledger.owner(tmp_path / "z") == "b"


def test_foreign_ledgers_are_refused(tmp_path):
    Ledger(tmp_path, "itk_toy").append(entry("a"))
    with pytest.raises(UsageError, match=r"ledger.jsonl: is the ledger of itk_toy; .* destination for itk_orient"):
        Ledger(tmp_path, "itk_orient")
    (tmp_path / "ledger.jsonl").write_text("no json\n{}\n")
    with pytest.raises(DataError, match="line 1 is not an entry of a ledger; remove the file"):
        Ledger(tmp_path)
    (tmp_path / "ledger.jsonl").write_text('[1]\n{"case": "a"}\n')
    with pytest.raises(DataError, match="line 1 is not an entry"):
        Ledger(tmp_path)
    (tmp_path / "ledger.jsonl").unlink()
    (tmp_path / "ledger.jsonl").mkdir()
    with pytest.raises(DataError, match="ledger.jsonl: cannot be read"):
        Ledger(tmp_path)


def test_ledgers_of_the_first_version_are_understood(tmp_path):
    line = {
        "case": "a",
        "state": "done",
        "reason": None,
        "inputs": {"/x": [3, 5]},
        "outputs": {"a.mha": [7, 9]},
        "time": 1,
    }
    (tmp_path / "ledger.jsonl").write_text(json.dumps(line) + "\n")
    found = Ledger(tmp_path, "itk_toy").entry("a")
    assert found["inputs"] == {"/x": {"size": 3, "mtime_ns": 5}}
    assert found["record"] == {}


def test_several_processes_append_whole_lines(tmp_path):
    code = (
        "import sys; from itkit.process.ledger import Ledger\n"
        "ledger = Ledger(sys.argv[1], 'itk_toy')\n"
        "for n in range(200): ledger.append({'case': f'{sys.argv[2]}-{n}', 'state': 'done', 'record': 'x' * n * 37})\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(k)]) for k in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert len(lines) == 600
    assert all(json.loads(line)["case"] for line in lines)
    assert len(Ledger(tmp_path).entries) == 600


def test_compacting_keeps_the_last_word_and_writers_follow(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_module, "_SUPERFLUOUS_LINES", 10)
    ledger, other = Ledger(tmp_path, "itk_toy"), Ledger(tmp_path, "itk_toy")
    for number in range(20):
        ledger.append(entry("a", record={"n": number}))
    ledger.append(entry("b"))
    ledger.begin("b", {"x": {"size": 1}})
    ledger.refresh()
    other.refresh()
    ledger.compact()
    assert len(ledger.path.read_text().splitlines()) == 3
    assert (ledger.entry("a")["record"], ledger.begun("b")["outputs"]) == ({"n": 19}, {"x": {"size": 1}})
    other.append(entry("c"))
    other.refresh()
    assert (other.entry("a")["record"], list(other.entries)) == ({"n": 19}, ["a", "b", "c"])
    ledger.refresh()
    inode = os.stat(ledger.path).st_ino
    ledger.compact()
    assert os.stat(ledger.path).st_ino == inode, "three lines are not many"


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path, "itk_toy")
    ledger.append(entry("a"))
    original, calls = os.write, []

    def write(handle, data):
        calls.append(data)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return original(handle, data[:5])

    monkeypatch.setattr(ledger_module.os, "write", write)
    with pytest.raises(OSError, match="No space left.*ledger.jsonl"):
        ledger.append(entry("b"))
    monkeypatch.undo()
    assert ledger.path.read_bytes().count(b"\n") == 1
    assert ledger.path.read_bytes().endswith(b"\n")


def test_names_that_are_no_unicode_can_be_noted(tmp_path):
    name = os.fsdecode(b"caf\xe9.mha")
    ledger = Ledger(tmp_path, "itk_toy")
    ledger.append(entry(name, outputs={name: {"size": 1}}))
    ledger.append(entry("Zoë/患者"))
    ledger.refresh()
    assert list(ledger.entries) == [name, "Zoë/患者"]


def test_ten_thousand_cases_take_little_memory(tmp_path):
    line = json.dumps(entry("NAME", record={"text": "x" * 800}, time=1.0))
    with open(tmp_path / "ledger.jsonl", "w") as stream:
        stream.writelines(line.replace("NAME", f"case_{n:05}") + "\n" for n in range(10_000))
    tracemalloc.start()
    ledger = Ledger(tmp_path)
    now, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ledger.entries) == 10_000
    assert now < 4e6, "places only: about 300 bytes a case, not the kilobyte of its line"


def test_inputs_are_compared_by_content_where_time_differs(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    facts = {**measure_input(file), "sha256": hash_input(file)}
    os.utime(file, ns=(1, 1))
    assert is_same_input(file, facts)
    file.write_text("two")
    assert not is_same_input(file, facts)
    file.write_text("three")
    assert not is_same_input(file, facts)
    file.unlink()
    assert not is_same_input(file, facts)
    assert (measure_input(file), stamp(file)) == (None, None)
    with pytest.raises(DataError, match=r"a.txt: no such file"):
        hash_input(file)


def test_voxels_of_a_header_and_files_of_a_folder_belong_to_the_input(tmp_path):
    write_volume(tmp_path / "a.mhd", Volume(np.ones((2, 3, 4), np.uint8)), compress=False)
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "1.dcm").write_bytes(b"1")
    for path, changed in ((tmp_path / "a.mhd", tmp_path / "a.raw"), (folder, folder / "1.dcm")):
        facts = {**measure_input(path), "sha256": hash_input(path)}
        assert is_same_input(path, facts)
        changed.write_bytes(bytes(len(changed.read_bytes())))
        os.utime(changed, ns=(1, 1))
        assert not is_same_input(path, facts)
    (folder / "1.dcm").rename(folder / "2.dcm")
    (folder / "2.dcm").unlink()
    assert measure_input(folder) is None


def test_outputs_are_the_same_missing_or_changed(tmp_path):
    file, link = tmp_path / "a.txt", tmp_path / "link"
    file.write_text("one")
    link.symlink_to("nowhere")
    facts, of_link = describe_output(file), describe_output(link)
    os.utime(file, ns=(1, 1))
    assert compare_output(file, facts) == compare_output(link, of_link) == "same"
    file.write_text("eno")
    assert compare_output(file, facts) == "changed"
    link.unlink()
    link.symlink_to("elsewhere")
    assert compare_output(link, of_link) == "changed"
    file.write_text("o")
    assert compare_output(file, facts) == "changed"
    os.utime(file, ns=(0, facts["mtime_ns"]))
    assert compare_output(file, facts) == "lost", "nobody who changes a file leaves its time as it was"
    file.unlink()
    assert compare_output(file, facts) == "missing"
    file.mkdir()
    assert compare_output(file, facts) == "changed"
