"""The main job, end to end: what a researcher does with `mmrun`, and what it answers."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_experiment import MODEL, make_experiment


def weights(path):
    return torch.load(path, weights_only=True)["raw_state_dict"]


def test_train_say_so_test_say_so_report_list(tiny):
    code, _, err = tiny.mmrun("0.1")
    assert code == 0, err
    assert "trains on" in err
    state = tiny.state()
    assert (state["state"], state["step"], state["max_steps"], state["failure"]) == ("trained", 8, 8, None)
    assert state["cpu_minutes"] > 0
    assert state["parameters"] > 100
    assert state["provenance"]["seed"] == 0
    assert state["provenance"]["packages"]["torch"] == torch.__version__
    assert state["provenance"]["dataset"]["cases"] == {"train": 4, "val": 2}
    assert state["provenance"]["dataset"]["fingerprint"]["train"]
    assert (tiny.folder() / "config.py").is_file()
    assert (tiny.folder() / state["best"]["checkpoint"]).is_file()
    assert len(list((tiny.folder() / "checkpoints").glob("best_*"))) == 1

    code, _, err = tiny.mmrun("0.1")
    assert code == 0
    assert "is trained already (8 steps, best Dice" in err

    code, _, err = tiny.mmrun("0.1", "--test")
    assert code == 0, err
    result = json.loads((tiny.root / "test/0.1.Tiny/unet/result.json").read_text())
    assert (result["checkpoint"], result["step"]) == (state["best"]["checkpoint"], state["best"]["step"])
    assert set(result["metrics"]) == {"Dice", "HD95"}
    assert set(result["metrics"]["Dice"]["per_class"]) == {"small", "large"}
    with open(tiny.root / "test/0.1.Tiny/unet/cases.csv") as stream:
        assert [row["case_id"] for row in csv.DictReader(stream)] == ["case_06", "case_07"]
    assert list((tiny.root / "test/0.1.Tiny/unet/overlays").glob("case_07*.png"))

    code, _, err = tiny.mmrun("0.1", "--test")
    assert code == 0
    assert "was tested with this very checkpoint" in err

    code, out, _ = tiny.mmrun("--list", "--json")
    model = json.loads(out)["experiments"][0]["models"][0]
    assert (code, model["state"], model["step"], model["best"]["step"]) == (0, "tested", 8, state["best"]["step"])
    assert model["test"]["Dice"]["mean"] == result["metrics"]["Dice"]["mean"]
    assert len(model["test"]["Dice"]["ci95"]) == 2

    code, out, err = tiny.mmrun("0.1", "--report", "--json")
    assert code == 0, err
    assert json.loads(out)["experiments"][0]["name"] == "0.1.Tiny"
    page = (tiny.root / "work/0.1.Tiny/report.html").read_text()
    assert "unet" in page
    assert 'src="http' not in page


def test_last_checkpoint_is_tested_when_asked(tiny):
    assert tiny.mmrun("0.1")[0] == 0
    code, _, err = tiny.mmrun("0.1", "--test-use-last-ckpt")
    assert code == 0, err
    assert json.loads((tiny.root / "test/0.1.Tiny/unet/result.json").read_text())["step"] == 8


def test_test_without_training_is_a_clear_error(tiny):
    code, _, err = tiny.mmrun("0.1", "--test")
    assert code == 1
    assert "no best checkpoint is recorded" in err
    assert "Train it first." in err


def test_all_is_train_test_report_with_the_table_on_stdout(tiny):
    code, out, err = tiny.mmrun("0.1", "--all")
    assert code == 0, err
    assert "Dice" in out
    assert "report.html" in err


def test_training_longer_goes_on_and_training_as_long_does_not(tiny):
    assert tiny.mmrun("0.1")[0] == 0
    code, _, err = tiny.mmrun("0.1", "--cfg-options", "train_cfg.max_iters=10")
    assert code == 0, err
    assert "resumes after step 8 of 10" in err
    assert tiny.state()["step"] == 10


def test_killed_at_any_moment_and_resumed_equals_uninterrupted_to_the_bit(world, monkeypatch):
    make_experiment(world.root, "0.1.Tiny", iterations=8)
    make_experiment(world.root, "0.2.Twin", iterations=8)
    assert world.mmrun("0.2")[0] == 0
    command = [sys.executable, "-m", "itkit.mm.run", "0.1", "--config-root", "configs", "--work-dir-root", "work"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 300
    while not list(world.folder().glob("checkpoints/iter_*.pth")) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_at = world.state()["step"]
    code, _, err = world.mmrun("0.1")
    assert code == 0, err
    assert world.state()["state"] == "trained"
    twin = weights(world.folder(experiment="0.2.Twin") / "checkpoints/iter_8.pth")
    for name, value in weights(world.folder() / "checkpoints/iter_8.pth").items():
        assert torch.equal(value, twin[name]), (name, killed_at)


def test_resume_from_each_checkpoint_gives_the_same_weights(tiny):
    assert tiny.mmrun("0.1", "--cfg-options", "default_hooks.checkpoint.max_keep_ckpts=-1")[0] == 0
    reference = weights(tiny.folder() / "checkpoints/iter_8.pth")
    state = tiny.state()
    for later, last in ((("iter_8.pth", "iter_6.pth"), 3), (("iter_8.pth",), 6)):
        for name in later:
            (tiny.folder() / "checkpoints" / name).unlink(missing_ok=True)
        state |= {
            "state": "partial",
            "step": last,
            "last": {"step": last, "checkpoint": f"checkpoints/iter_{last}.pth"},
        }
        (tiny.folder() / "run.json").write_text(json.dumps(state))
        code, _, err = tiny.mmrun("0.1", "--cfg-options", "default_hooks.checkpoint.max_keep_ckpts=-1")
        assert code == 0, err
        assert f"resumes after step {last} of 8" in err
        for name, value in weights(tiny.folder() / "checkpoints/iter_8.pth").items():
            assert torch.equal(value, reference[name])


def test_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tiny):
    assert tiny.mmrun("0.1", "--cfg-options", "default_hooks.checkpoint.max_keep_ckpts=-1")[0] == 0
    reference = weights(tiny.folder() / "checkpoints/iter_8.pth")
    newest = tiny.folder() / "checkpoints/iter_6.pth"
    (tiny.folder() / "checkpoints/iter_8.pth").unlink()
    newest.write_bytes(newest.read_bytes()[:1000])
    state = tiny.state() | {"state": "partial", "step": 6, "last": {"step": 6, "checkpoint": "checkpoints/iter_6.pth"}}
    (tiny.folder() / "run.json").write_text(json.dumps(state))
    code, _, err = tiny.mmrun("0.1")
    assert code == 0, err
    assert "iter_6.pth: is damaged" in err
    for name, value in weights(tiny.folder() / "checkpoints/iter_8.pth").items():
        assert torch.equal(value, reference[name])


def test_same_weights_with_and_without_workers(world):
    make_experiment(world.root, "0.1.Tiny", iterations=4, workers=0)
    make_experiment(world.root, "0.2.Two", iterations=4, workers=2)
    assert world.mmrun("0.1", "0.2")[0] == 0
    one = weights(world.folder() / "checkpoints/iter_4.pth")
    two = weights(world.folder(experiment="0.2.Two") / "checkpoints/iter_4.pth")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_one_failing_model_does_not_stop_the_others(tiny):
    folder = tiny.root / "configs/0.1.Tiny"
    (folder / "broken.py").write_text(MODEL.replace("out_channels=3", "out_channels=4"))
    (folder / "misspelt.py").write_text(MODEL.replace("num_classes", "num_clases"))
    code, _, err = tiny.mmrun("0.1")
    assert code == 1
    assert "1 of 3 models succeeded" in err
    assert "FAILED 0.1.Tiny/broken" in err
    assert 'SemSeg3D has no argument "num_clases". Did you mean num_classes?' in err
    assert tiny.state()["state"] == "trained"
    failed = tiny.state("broken")
    assert failed["state"] == "failed"
    trace = tiny.folder("broken") / failed["failure"]["traceback_file"]
    assert "Traceback" in trace.read_text()
    assert str(trace) in err
    assert not list(tiny.folder("misspelt").glob("checkpoints/*"))
    assert tiny.mmrun("0.1", "--models", "misspelt")[0] == 2


HOLDER = """
import pathlib, sys, time
from itkit.experiment import lock
with lock.hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

FLAKY = """
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module(force=True)
class FlakyHook(Hook):
    failures = 0

    def __init__(self, times=1):
        self.times = times

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 5 and FlakyHook.failures < self.times:
            FlakyHook.failures += 1
            raise OSError("the network file system was away")
"""


@pytest.mark.parametrize("retries,code", [("1", 1), ("2", 0)])
def test_auto_retry_goes_on_from_the_last_checkpoint(world, monkeypatch, retries, code):
    (world.root / "flaky_part.py").write_text(FLAKY)
    monkeypatch.syspath_prepend(str(world.root))
    extra = '\ncustom_imports = dict(imports=["flaky_part"])\ncustom_hooks = [dict(type="FlakyHook", times=2)]\n'
    make_experiment(world.root, extra=extra)
    sys.modules.pop("flaky_part", None)
    found, _, err = world.mmrun("0.1", "--auto-retry", retries)
    assert found == code, err
    assert "the network file system was away" in err
    assert "retry 1 of" in err
    assert "resumes after step 3 of 8" in err
    assert world.state()["state"] == ("trained" if code == 0 else "failed")


def test_second_start_on_the_same_folder_is_refused_with_the_holder_named(tiny):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tiny.folder())], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        code, _, err = tiny.mmrun("0.1")
        assert code == 1
        assert f"is in use by process {process.pid}" in err
    finally:
        process.kill()
        process.wait()
    code, _, err = tiny.mmrun("0.1")
    assert code == 0
    assert f"takes over from process {process.pid}" in err


def test_check_prints_the_plan_and_leaves_nothing(tiny):
    code, _, err = tiny.mmrun("0.1", "--check", "--cfg-options", "model.inference_config.patch_size=[8,12,12]")
    assert code == 0, err
    assert "parameters" in err
    assert "multiply-adds for a patch of 8 x 12 x 12" in err
    assert "4 train, 2 val, 2 test" in err
    assert not (tiny.root / "work").exists()


def test_smoke_runs_everything_aside(tiny):
    code, _, err = tiny.mmrun("0.1", "--smoke")
    assert code == 0, err
    assert "smoke test passed" in err
    assert not (tiny.root / "work/0.1.Tiny").exists()
    assert json.loads((tiny.root / "work/.smoke/0.1.Tiny/unet/run.json").read_text())["step"] == 3


def test_usage_errors_exit_2(tiny):
    for words, text in (
        ((), "name at least one experiment"),
        (("0.2",), 'no experiment matches "0.2"; found 0.1.Tiny. Did you mean 0.1?'),
        (("0.1", "--models", "unett"), "Did you mean unet?"),
        (("0.1", "--auto-retry", "-1"), "not a whole number"),
        (("0.1", "--no-such-flag"), "unrecognized arguments"),
        (("0.1", "--cfg-options", "lr"), "write key=value"),
    ):
        code, _, err = tiny.mmrun(*words)
        assert code == 2, words
        assert text in err
    assert not (tiny.root / "work").exists()


def test_yaml_model_trains_too(tiny):
    folder = tiny.root / "configs/0.1.Tiny"
    (folder / "segres.yaml").write_text(
        "model:\n  type: SemSeg3D\n  num_classes: 3\n  criterion: {type: DiceCELoss}\n"
        "  backbone: {type: monai.SegResNet, spatial_dims: 3, init_filters: 8, in_channels: 1, out_channels: 3,"
        " blocks_down: [1, 1], blocks_up: [1]}\n"
    )
    code, _, err = tiny.mmrun("0.1", "--models", "segres", "--cfg-options", "train_cfg.max_iters=2")
    assert code == 0, err
    assert tiny.state("segres")["step"] == 2


def test_early_stop_is_an_end(world):
    extra = (
        "\nfrom itkit.mm.hooks import EarlyStoppingHook\n"
        "custom_hooks = [dict(type=EarlyStoppingHook, monitor='Dice', patience=1, min_delta=1.0)]\n"
    )
    make_experiment(world.root, iterations=40, extra=extra)
    code, _, err = world.mmrun("0.1")
    assert code == 0, err
    assert (world.state()["state"], world.state()["step"]) == ("trained", 8)
    assert "is trained already" in world.mmrun("0.1")[2]


def test_command_as_script_and_light_start(tiny):
    script = Path(sys.modules["itkit.mm.run"].__file__) if "itkit.mm.run" in sys.modules else None
    from itkit.mm import run

    script = script or Path(run.__file__)
    done = subprocess.run([sys.executable, str(script), "--list"], capture_output=True, text=True, cwd=tiny.root)
    assert done.returncode == 0, done.stderr
    assert "0.1.Tiny" in done.stdout


def test_torchrun_starts_the_script(tiny):
    from itkit.mm import run

    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "1",
        "--master_port",
        "29617",
        run.__file__,
        "0.1",
    ]
    environment = {**os.environ, "mm_configdir": "configs", "mm_workdir": "work", "mm_testdir": "test"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=tiny.root, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert tiny.state()["state"] == "trained"


def test_plain_mmengine_config_runs_unchanged(world, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "support"))
    source = Path(__file__).resolve().parent.parent / "support" / "plain_config.py"
    folder = world.root / "configs/9.0.Plain"
    folder.mkdir(parents=True)
    (folder / "mgam.py").write_text("")
    shutil.copy(source, folder / "line.py")
    code, _, err = world.mmrun("9.0", "--all")
    assert code == 0, err
    state = world.state("line", "9.0.Plain")
    assert (state["state"], state["step"], state["best"]["metric"]) == ("trained", 24, "mae")
    result = json.loads((world.root / "test/9.0.Plain/line/result.json").read_text())
    assert result["metrics"]["mae"]["mean"] == pytest.approx(0.392, abs=0.05)
    single = world.root / "alone.py"
    shutil.copy(source, single)
    code, _, err = world.mmrun(str(single))
    assert code == 0, err
    assert world.state("alone", "alone")["state"] == "trained"


def test_full_disk_under_the_log_is_said_once_and_the_run_goes_on(tiny):
    (tiny.folder() / "logs").mkdir(parents=True)
    from itkit.mm import runner

    stamped = runner.ExperimentRunner.build_logger

    def full(self, *args, **kwargs):
        logger = stamped(self, *args, **kwargs)
        for handler in logger.handlers:
            if hasattr(handler, "baseFilename"):
                handler.setStream(open("/dev/full", "w"))  # noqa: SIM115 (the handler closes it)
        return logger

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.ExperimentRunner, "build_logger", full)
        code, _, err = tiny.mmrun("0.1")
    assert code == 0, err
    assert err.count("the log cannot be written") == 1
    assert tiny.state()["state"] == "trained"


def test_check_finds_wrong_channels_and_wrong_classes(tiny):
    patch = ["--cfg-options", "model.inference_config.patch_size=[8,12,12]"]
    code, _, err = tiny.mmrun("0.1", "--check", *patch, "model.backbone.out_channels=4")
    assert code == 2
    assert "num_classes" in err
    code, _, err = tiny.mmrun("0.1", "--check", *patch, "model.backbone.out_channels=5", "model.num_classes=5")
    assert code == 2
    assert "the model has num_classes = 5, the train dataset has 3 classes: background, small, large" in err


def test_report_beside_a_test_does_not_swallow_the_test(tiny):
    assert tiny.mmrun("0.1")[0] == 0
    code, _, err = tiny.mmrun("0.1", "--test-use-last-ckpt", "--report")
    assert code == 0, err
    assert json.loads((tiny.root / "test/0.1.Tiny/unet/result.json").read_text())["step"] == 8
    assert (tiny.root / "work/0.1.Tiny/report.html").is_file()
