"""A part of the fault table as a test, and what the table does not show: stops within a validation, messages, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from tiny_experiment import make_experiment

from itkit.errors import CheckpointError
from itkit.mm import checkpoints

TOOL = Path(__file__).resolve().parents[2] / "tools" / "fault_injection.py"


def table(*words):
    """Run rows of the fault table; return its lines as lists of cells."""
    command = [sys.executable, str(TOOL), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line.startswith("| ")
    ]
    assert done.returncode == 0, done.stdout + done.stderr
    return rows[1:]


def test_one_process_ends_as_the_undisturbed_run_whatever_happens_to_it():
    rows = table("--rows", "kill", "write", "stop", "damage", "disk", "worker", "--kills", "4", "--writes", "2")
    assert len(rows) == 13
    for fault, _, injected, outcome, equal in rows:
        assert int(injected) > 0, fault
        one, all_ = equal.split(" of ")
        assert int(one) == int(all_) > 0, (fault, outcome)


def test_several_processes_end_as_the_undisturbed_run_whatever_happens_to_them():
    kinds = ["group_stop", "group_fail", "group_kill", "torchrun"]
    rows = table("--rows", *kinds, "--group-kills", "1", "--signal-to", "rank 1", "--ranks", "1")
    faults = ["SIGTERM to rank 1", "exception on rank 1", "loader worker of rank 1 killed", "SIGKILL of one process"]
    assert [row[0] for row in rows] == [*faults, "SIGKILL of rank 1"]
    assert all(row[4] == "1 of 1" for row in rows), rows
    assert rows[0][3].startswith("exit 75")


def test_any_flipped_bit_in_the_directory_of_a_checkpoint_is_a_damage(tmp_path):
    path = tmp_path / "iter_1.pth"
    checkpoints.save({"state_dict": {"weight": torch.arange(4.0)}}, path)
    data = path.read_bytes()
    names = [match.start() for match in re.finditer(b"iter_1|archive", data)]
    assert len(names) > 4
    for place in names:
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x80]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match=r"iter_1\.pth: is damaged"):
            checkpoints.load(path)


STOPPER = """
import os, signal, time
from itkit.mm.stop_hook import StopHook
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module(force=True)
class StopperHook(Hook):
    def {stage}(self, runner, *args, **kwargs):
        if getattr(runner, "is_training", False) and runner.iter == {step} and os.environ.pop("STOP", None):
            os.kill(os.getpid(), signal.SIGTERM)
            control = next(hook for hook in runner.hooks if isinstance(hook, StopHook)).control
            end = time.monotonic() + 60
            while not control.is_over() and time.monotonic() < end:
                time.sleep(0.01)
"""


@pytest.mark.parametrize(
    "stage,step,saved", [("before_val_iter", 4, 4), ("after_val_epoch", 4, 5), ("after_train_iter", 5, 6)]
)
def test_stop_within_a_validation_or_a_step_is_made_up_for_to_the_bit(world, monkeypatch, stage, step, saved):
    (world.root / "stopper_part.py").write_text(STOPPER.format(stage=stage, step=step))
    monkeypatch.syspath_prepend(str(world.root))
    sys.modules.pop("stopper_part", None)
    extra = '\ncustom_imports = dict(imports=["stopper_part"])\ncustom_hooks += [dict(type="StopperHook")]\n'
    make_experiment(world.root, extra=extra)
    make_experiment(world.root, "0.2.Twin", extra=extra)
    monkeypatch.setenv("STOP", "1")
    code, _, err = world.mmrun("0.1")
    assert code == 75, err
    assert f"stopped by SIGTERM after step {saved} of 8; saved" in err
    assert "asked to end by SIGTERM; a later start resumes from the last checkpoint (exit code 75)" in err
    state = world.state()
    assert (state["state"], state["last"]["step"]) == ("partial", saved)
    assert state["stopped"] == {"by": "SIGTERM", "step": saved}
    assert (state["best"] is None) == (stage == "before_val_iter"), "a validation that was broken off has no result"
    assert world.mmrun("0.1")[0] == world.mmrun("0.2")[0] == 0
    assert world.state()["stopped"] is None
    mine, twin = (
        torch.load(world.folder(experiment=name) / "checkpoints/iter_8.pth", weights_only=True)
        for name in ("0.1.Tiny", "0.2.Twin")
    )
    assert all(torch.equal(value, twin["raw_state_dict"][name]) for name, value in mine["raw_state_dict"].items())
    assert world.state()["best"]["value"] == world.state(experiment="0.2.Twin")["best"]["value"]


def test_the_whole_command_stops_with_the_model_that_is_being_trained(world, monkeypatch):
    (world.root / "stopper_part.py").write_text(STOPPER.format(stage="after_train_iter", step=5))
    monkeypatch.syspath_prepend(str(world.root))
    sys.modules.pop("stopper_part", None)
    extra = '\ncustom_imports = dict(imports=["stopper_part"])\ncustom_hooks += [dict(type="StopperHook")]\n'
    make_experiment(world.root, models=("first", "second"), extra=extra)
    monkeypatch.setenv("STOP", "1")
    assert world.mmrun("0.1", "--all")[0] == 75
    assert world.state("first")["state"] == "partial"
    assert not world.folder("second").exists()
    assert not (world.root / "work/0.1.Tiny/report.html").exists()


def test_flags_for_several_processes_that_make_no_sense(tiny):
    for words, text in (
        (("--nproc", "0"), "neither a number of at least 1 nor gpu"),
        (("--max-restarts", "1"), "--max-restarts: is for several processes; give --nproc too, or use --auto-retry."),
        (("--nproc", "2", "--nnodes", "2"), "--nnodes: needs --nproc and --rdzv-endpoint HOST:PORT too"),
        (
            ("--nproc", "2", "--rdzv-endpoint", "localhost:1"),
            "--rdzv-endpoint: is for several machines; give --nnodes too.",
        ),
        (("--dist-timeout", "0"), "not a whole number of at least 1"),
    ):
        code, _, err = tiny.mmrun("0.1", *words)
        assert code == 2, words
        assert text in err
    assert not (tiny.root / "work").exists()
    assert tiny.mmrun("0.1", "--nproc", "1", "--cfg-options", "train_cfg.max_iters=2")[0] == 0, (
        "one process is a plain run"
    )
    code, _, err = tiny.mmrun("0.1", "--nproc", "2", "--check")
    assert code == 0, err
    assert 'parallel = "ddp", as the config does not say how several processes share the work' in err


FAULTY = """
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module(force=True)
class FaultyHook(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.rank == 1 and runner.iter == 4:
            raise ValueError("this process broke")
"""


def test_all_of_several_models_on_two_processes_one_fails_one_does_not(world, monkeypatch):
    """One start shows: first cause with its process, the next model goes on, one stdout, exit code, no orphans."""
    (world.root / "faulty_part.py").write_text(FAULTY)
    make_experiment(world.root, models=("good",))
    model = (world.root / "configs/0.1.Tiny/good.py").read_text()
    faulty = 'custom_imports = dict(imports=["faulty_part"])\ncustom_hooks = [*custom_hooks, dict(type="FaultyHook")]\n'
    (world.root / "configs/0.1.Tiny/bad.py").write_text(model + faulty)
    (world.root / "configs/0.1.Tiny/misspelt.py").write_text(model.replace("num_classes", "num_clases"))
    words = ["0.1", "--all", "--json", "--nproc", "2", "--config-root", "configs", "--work-dir-root", "work"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(world.root)}
    process = subprocess.Popen(
        [sys.executable, "-m", "itkit.mm.run", *words, "--test-work-dir-root", "test"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=600)
    finally:
        with_children = [p for p in psutil.process_iter(["environ"]) if _belongs_to(p, world.root)]
        for left in with_children:
            left.kill()
    assert process.returncode == 1, err
    assert not with_children, "orphans"
    assert "0.1.Tiny/bad: failed: process 1 of 2: ValueError: this process broke\n  traceback: " in err
    assert "1 of 3 models succeeded" in err
    assert 'SemSeg3D has no argument "num_clases". Did you mean num_classes?' in err
    assert err.count("trains on cpu") == 2, "one process speaks"
    assert "Traceback" not in err
    assert "onnection" not in err
    states = {model["name"]: model["state"] for model in json.loads(out)["experiments"][0]["models"]}
    assert states == {"bad": "failed", "good": "tested", "misspelt": "failed"}
    failure = world.state("bad")["failure"]
    assert failure["message"] == "ValueError: this process broke"
    assert "this process broke" in (world.folder("bad") / failure["traceback_file"]).read_text()
    assert not list(world.root.glob("work/0.1.Tiny/*/run.lock"))


def _belongs_to(process, root):
    try:
        return str(root) in (process.info["environ"] or {}).get("PYTHONPATH", "") and process.pid != os.getpid()
    except psutil.Error:
        return False


def test_processes_whose_launcher_is_killed_save_and_end(world):
    make_experiment(world.root, iterations=4000, workers=1)
    words = ["0.1", "--nproc", "2", "--config-root", "configs", "--work-dir-root", "work"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(world.root)}
    process = subprocess.Popen(
        [sys.executable, "-m", "itkit.mm.run", *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.time() + 300
    while not list(world.folder().glob("checkpoints/iter_*.pth")) and time.time() < deadline:
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, left = psutil.wait_procs(family, timeout=120)
    for orphan in left:
        orphan.kill()
    assert not left
    state = world.state()
    assert state["stopped"] == {"by": "the end of the launcher", "step": state["step"]}
