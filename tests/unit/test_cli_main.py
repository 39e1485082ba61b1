"""The one main of the data tools: what it prints where, what it exits with, and that asking for help is cheap."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

SUPPORT = str(Path(__file__).resolve().parent.parent / "support")
sys.path.insert(0, SUPPORT)

from toy_operation import make_source, results

from itkit.cli import progress as progress_module
from itkit.cli import table
from itkit.cli.__main__ import main as list_or_run
from itkit.cli.main import run_tool
from itkit.cli.parameters import DESTINATION, RUN_PARAMETERS, SOURCE, Parameter
from itkit.cli.progress import case_progress, duration
from itkit.cli.table import TOOL_MODULES, Tool, load_tool
from itkit.errors import UsageError
from itkit.process.execution import Step

HEAVY = ("torch", "mmengine", "monai", "numpy", "scipy", "pandas", "matplotlib", "SimpleITK", "rich", "psutil", "isal")
TOOL = Tool(
    name="itk_toy",
    summary="repeat texts",
    operation="toy_operation:Toy",
    description="First paragraph.\n\nSecond paragraph.",
    parameters=(SOURCE, DESTINATION, Parameter(("--factor",), "how often", "positive", default=2)),
    examples=(("itk_toy a b", "does it"),),
    documents=(("meta.json", "lengths"),),
)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Run the toy as a tool of the table; returns the exit code."""
    module = type(sys)("toy_tool_declaration")
    module.TOOL = TOOL
    monkeypatch.setitem(sys.modules, "toy_tool_declaration", module)
    monkeypatch.setitem(TOOL_MODULES, "itk_toy", "toy_tool_declaration")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_source(tmp_path / "src")
    return lambda *words: run_tool("itk_toy", [str(tmp_path / "src"), str(tmp_path / "dst"), *map(str, words)])


@pytest.mark.parametrize("name", TOOL_MODULES)
def test_help_is_cheap_and_worth_reading(name):
    code = (
        "import sys\nfrom itkit.cli import main\n"
        f"try: getattr(main, {name!r})(['--help'])\nexcept SystemExit as stop: assert not stop.code\n"
        f"print('LOADED', *(m for m in {HEAVY} if m in sys.modules), len(sys.modules) > 260)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, loaded = done.stdout.rpartition("LOADED")
    assert loaded.split() == ["False"]
    tool = load_tool(name)
    assert f"usage: {name}" in text
    for word in ("exit codes", "ledger.jsonl", *(variant.name for variant in tool.variants)):
        assert word in text
    for variant in (tool, *tool.variants):
        assert variant.summary[-1] != "."
        assert variant.operation or variant.action or variant.variants
        assert all(parameter.help and parameter.help[-1] != "." for parameter in variant.parameters)


def test_help_shows_everything_that_is_declared(toy, capsys):
    with pytest.raises(SystemExit) as stop:
        toy("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("Repeat texts.", "Second paragraph.", "itk_toy a b", "meta.json", "130, 143 interrupted", "--factor"):
        assert word in text
    for parameter in RUN_PARAMETERS:
        assert parameter.flags[-1] in text


def test_counts_and_results_go_to_their_streams(toy, capsys, tmp_path):
    (tmp_path / "src" / "c001.txt").write_text("fail for a reason")
    (tmp_path / "src" / "c002.txt").write_text("warn of it")
    assert toy() == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        f"  failed  c001: {tmp_path / 'src' / 'c001.txt'}: for a reason",
        "  note    c002: of it",
        f"  FAILED  c001: {tmp_path / 'src' / 'c001.txt'}: for a reason",
        f"itk_toy: 3 done, 0 up to date, 1 failed; {tmp_path / 'dst'}",
    ]
    assert toy("-q", "--overwrite") == 1
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["FAILED", "itk_toy:"]


def test_json_is_one_document_and_says_everything(toy, capsys, tmp_path):
    (tmp_path / "src" / "c001.txt").write_text("fail for a reason")
    assert toy("--json", "--workers", 2) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["done"] == ["c000", "c002", "c003"]
    assert document["failed"] == {"c001": f"{tmp_path / 'src' / 'c001.txt'}: for a reason"}
    assert document["why"]["c000"] == "not done yet"
    assert (document["tool"], document["workers"], document["exit_code"]) == ("itk_toy", 2, 1)
    assert document["parameters"] == {"factor": 2}
    assert document["documents"] == [str(tmp_path / "dst" / "meta.json")]
    assert run_tool("itk_toy", [str(tmp_path / "no"), str(tmp_path / "dst2"), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["error"], document["exit_code"]) == (f"{tmp_path / 'no'}: holds no text.", 1)


def test_a_dry_run_lists_what_and_why(toy, capsys, tmp_path):
    toy()
    (tmp_path / "dst" / "image" / "c000.txt").unlink()
    (tmp_path / "dst" / "image" / "c003.txt").write_text("by hand")
    capsys.readouterr()
    assert toy("--dry-run") == 1
    said = capsys.readouterr()
    assert said.out == "  to do   c000: the result image/c000.txt is gone\n"
    assert "FAILED  c003" in said.err
    assert said.err.endswith(f"itk_toy: 1 to do, 2 up to date, 1 failed; {tmp_path / 'dst'}\n")


def test_cases_that_the_source_does_not_have_any_more_are_mentioned(toy, capsys, tmp_path):
    toy()
    (tmp_path / "src" / "c000.txt").unlink()
    assert toy() == 0
    assert "the ledger holds 1 more, which the source does not have any more" in capsys.readouterr().err


def test_a_shard_says_that_others_are_open(toy, capsys):
    assert toy("--shard", "1/2") == 0
    assert "2 cases of other shards are not done yet; the shard that ends last writes" in capsys.readouterr().err
    assert toy("--shard", "3/2") == 2
    assert "--shard 3/2: write PART/PARTS" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--workers", "0"], ["--workers", "x"], ["--nonsense"], ["--factor", "0"]])
def test_usage_is_told(toy, words, capsys):
    with pytest.raises(SystemExit) as stop:
        toy(*words)
    assert stop.value.code == 2
    assert "usage: itk_toy" in capsys.readouterr().err


def test_the_list_of_tools_and_unknown_names(capsys, monkeypatch):
    assert list_or_run([]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed and summary in listed for name, summary in table.SUMMARIES.items())
    assert list_or_run(["itk_orientt"]) == 2
    assert "'itk_orientt' is no data tool" in (said := capsys.readouterr().err)
    assert "Did you mean itk_orient?" in said
    with pytest.raises(UsageError, match="is no data tool"):
        run_tool("nonsense", [])
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        __import__("itkit.cli.main").cli.main.nonsense  # noqa: B018
    with pytest.raises(SystemExit):
        list_or_run(["itk_orient", "--version"])
    assert capsys.readouterr().out.startswith("itkit ")
    assert list(table.SUMMARIES) == list(TOOL_MODULES)


RUN = """
import sys
sys.path.insert(0, {support!r})
module = type(sys)("toy_tool_declaration")
from itkit.cli.main import run_tool
from itkit.cli.parameters import DESTINATION, SOURCE
from itkit.cli.table import TOOL_MODULES, Tool
module.TOOL = Tool("itk_toy", "repeat texts", "toy_operation:Toy", (SOURCE, DESTINATION))
sys.modules["toy_tool_declaration"] = module
TOOL_MODULES["itk_toy"] = "toy_tool_declaration"
if __name__ == "__main__":
    sys.exit(run_tool("itk_toy"))
"""


def settled(folder):
    """How many cases the ledger of `folder` calls done."""
    ledger = folder / "ledger.jsonl"
    return ledger.read_text().count('"state": "done"') if ledger.exists() else 0


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("sign,code,word", [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")])
def test_a_stopped_run_says_so_and_leaves_nothing(tmp_path, sign, code, word, workers):
    make_source(tmp_path / "src", 8, f"until {tmp_path / 'gate'}")
    make_source(tmp_path / "src", 2, "long " * 200)  # the largest are done first
    words = [sys.executable, "-c", RUN.format(support=SUPPORT), str(tmp_path / "src"), str(tmp_path / "dst")]
    process = subprocess.Popen([*words, "--workers", workers], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not settled(tmp_path / "dst"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(sign)
    said = process.communicate(timeout=20)[1]
    assert (process.returncode, said) == (
        code, f"itk_toy: {word}; what is done is noted, run it again and it does what is left\n"
    )  # fmt: skip
    assert psutil.wait_procs(family, timeout=10)[1] == []
    assert not (tmp_path / "dst" / ".itkit-staging").exists()
    done = settled(tmp_path / "dst")  # of one that it moved just now, the end may not be noted any more
    assert 1 <= done <= 2
    (tmp_path / "gate").touch()
    again = subprocess.run([*words, "--workers", "4"], stderr=subprocess.PIPE, text=True, timeout=60)
    assert f"itk_toy: {8 - done} done, {done} up to date, 0 failed" in again.stderr
    assert len(results(tmp_path / "dst")) == 17


def test_whoever_has_read_enough_may_go(tmp_path):
    make_source(tmp_path / "src", 2000)
    words = [
        sys.executable,
        "-c",
        RUN.format(support=SUPPORT),
        str(tmp_path / "src"),
        str(tmp_path / "dst"),
        "--dry-run",
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(30) == 0
    assert b"Traceback" not in said
    assert b"BrokenPipe" not in said


def test_the_bar_shows_how_long_still(monkeypatch):
    main, other = pty.openpty()
    clock = iter([0.0, 10.0, 10.05, 20.0, 30.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    with open(other, "w") as terminal, case_progress("itk_toy", stream=terminal) as progress:
        for number, (case, reason) in enumerate([("a", None), ("b", None), ("c", "bad"), ("d", None)], 1):
            progress(Step(case, reason, number, 4, number / 4))
        terminal.flush()
        said = ""
        while not said.endswith("left  c\r\x1b[K") and select.select([main], [], [], 5)[0]:  # it comes in pieces
            said += os.read(main, 65536).decode()
    os.close(main)
    assert "[#######-----------------------] 1/4, 30 s left  a" in said
    assert "2/4" not in said, "not more than ten times a second"
    assert "  failed  c: bad" in said
    assert "3/4, 1 failed, 7 s left  c" in said
    assert said.endswith("left  c\r\x1b[K"), "the bar is gone when the last case is done"


def test_without_a_terminal_a_line_now_and_then(monkeypatch):
    stream = io.StringIO()
    clock = iter([0.0, 10.0, 40.0, 60.0, 75.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    with case_progress("itk_toy", stream=stream) as progress:
        for number, (case, reason) in enumerate([("a", None), ("b", None), ("c", "bad"), ("d", None)], 1):
            progress(Step(case, reason, number, 4, number / 4))
    assert stream.getvalue().splitlines() == [
        "itk_toy: 2 of 4 cases, 40 s left",
        "  failed  c: bad",
        "itk_toy: 4 of 4 cases, 1 failed, 0 s left",
    ]
    with case_progress("itk_toy", quiet=True) as progress:
        assert progress is None


def test_lengths_of_time_as_people_say_them():
    assert [duration(s) for s in (0.4, 89, 91, 600, 5400, 100_000)] == [
        "0 s",
        "89 s",
        "2 min",
        "10 min",
        "1 h 30 min",
        "27 h 47 min",
    ]


def test_a_planned_tool_says_so(capsys, monkeypatch):
    from itkit.cli import main
    from itkit.cli.table import PLANNED

    monkeypatch.setitem(PLANNED, "itk_dream", "what may come")
    assert main.itk_dream([]) == 2
    assert "itk_dream is planned and not built yet" in capsys.readouterr().err


ACTION_TOOL = replace(
    TOOL,
    variants=(
        Tool(
            name="measure",
            summary="say how long a text is",
            action="toy_operation:measure",
            parameters=(Parameter(("text",), "what to measure"), Parameter(("--unit",), "its unit", default="letters")),
        ),
    ),
)


@pytest.fixture
def action(toy, monkeypatch):
    """Run the toy's way of working that is no run over cases; returns the exit code."""
    monkeypatch.setattr(sys.modules["toy_tool_declaration"], "TOOL", ACTION_TOOL)
    return lambda *words: run_tool("itk_toy", list(words))


def test_an_action_is_called_by_its_word_and_says_what_it_did(action, capsys):
    assert action("measure", "four", "--unit", "signs") == 0
    said = capsys.readouterr()
    assert said.out == "4 signs\n"
    assert said.err == "itk_toy measure: counting\nitk_toy measure: texts are short\n"
    assert action("measure", "four", "-q") == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("4 letters\n", "itk_toy measure: texts are short\n")


def test_an_action_as_json_and_its_errors(action, capsys):
    assert action("measure", "four", "--json", "--overwrite") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["tool"] == "itk_toy measure"
    assert document["hints"] == ["texts are short"]
    assert (document["length"], document["overwrite"], document["exit_code"]) == (4, True, 0)
    assert action("measure", "", "--json") == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["error"] == "there is no text."
    assert said.err.endswith("itk_toy: there is no text.\n")


def test_the_tools_own_way_stays_and_the_word_counts_only_in_front(action, toy, capsys, tmp_path):
    assert toy() == 0
    assert results(tmp_path / "dst")
    with pytest.raises(SystemExit):
        action(str(tmp_path / "src"), "measure", "more")
    assert "unrecognized arguments: more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        action("measure", "--help")
    text = capsys.readouterr().out
    assert "usage: itk_toy measure" in text
    assert "--mp" not in text
    assert "ledger" not in text
