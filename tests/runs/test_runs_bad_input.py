"""What really happens to runs: damaged files, full disks, dying workers, misspelt configs, Ctrl-C; each through `mmrun`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_experiment import MODEL, make_data, make_experiment, write_volume

CASE = "case_01"
SHAPE = (8, 12, 12)


def picture(world, case=CASE, kind="image", suffix=".mha") -> Path:
    return world.root / "data/Tiny" / kind / f"{case}{suffix}"


def refused(world, *words, code=1, model="unet"):
    """Run `mmrun`, which must fail; return its one clear line and all it said. The state on disk tells the same."""
    found, _, err = world.mmrun(*(words or ("0.1",)))
    assert found == code, err
    lines = [line for line in err.splitlines() if f"/{model}: failed: " in line]
    assert len(lines) == 1, err
    assert not any(line.startswith("Traceback") for line in err.splitlines())
    return lines[0].partition("failed: ")[2], err


def recorded_failure(world, model="unet"):
    state = world.state(model)
    assert state["state"] == "failed"
    assert "Traceback" in (world.folder(model) / state["failure"]["traceback_file"]).read_text()
    return state["failure"]["message"]


def weights(world, step, experiment="0.1.Tiny"):
    path = world.folder(experiment=experiment) / f"checkpoints/iter_{step}.pth"
    return torch.load(path, weights_only=True)["raw_state_dict"]


def assert_equals_an_undisturbed_run(world, step=8, **experiment):
    make_experiment(world.root, "0.2.Twin", **experiment)
    assert world.mmrun("0.2")[0] == 0
    twin = weights(world, step, "0.2.Twin")
    assert all(torch.equal(value, twin[name]) for name, value in weights(world, step).items())


def part(world, monkeypatch, name, source):
    """Write a module of the researcher's own beside the data, and return the config line that imports it."""
    (world.root / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(world.root))
    sys.modules.pop(name, None)
    return f'\ncustom_imports = dict(imports=["{name}"])\n'


# ---------------------------------------------------------------- files of cases


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def empty(path):
    path.write_bytes(b"")


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 0xFF
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "suffix,damage,text",
    [
        (".mha", truncate, "truncated"),
        (".nii", truncate, "truncated"),
        (".nii.gz", truncate, "the compressed data end after"),
        (".nrrd", truncate, "the compressed data end after"),
        (".mhd", lambda path: path.with_suffix(".zraw").unlink(), "which is not there"),
        (".mha", empty, "the file is empty"),
        (".nii.gz", empty, "the file is empty"),
        (".nii.gz", flip_a_byte, "the compressed data are corrupt"),
        (".nrrd", flip_a_byte, "the compressed data are corrupt"),
    ],
)
def test_damaged_image_is_named_and_recorded(tiny, suffix, damage, text):
    image = sitk.ReadImage(str(picture(tiny)))
    picture(tiny).unlink()
    path = picture(tiny, suffix=suffix)
    sitk.WriteImage(image, str(path), useCompression=suffix not in (".mha", ".nii"))
    damage(path)
    line, _ = refused(tiny)
    assert str(path) in line
    assert text in line
    assert recorded_failure(tiny) == line


def test_damaged_label_is_named(tiny):
    truncate(picture(tiny, kind="label"))
    assert str(picture(tiny, kind="label")) in refused(tiny)[0]


@pytest.mark.parametrize("what", ["size", "spacing", "origin", "direction"])
def test_label_on_another_grid(tiny, what):
    label = sitk.ReadImage(str(picture(tiny, kind="label")))
    if what == "size":
        label = label[:, :, 1:]
        label.SetOrigin((0, 0, 0))
    elif what == "spacing":
        label.SetSpacing((1, 1, 2.2))
    elif what == "origin":
        label.SetOrigin((0, 0.5, 0))
    else:
        label.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))
    sitk.WriteImage(label, str(picture(tiny, kind="label")))
    line, _ = refused(tiny)
    assert line.startswith(f"{picture(tiny, kind='label')}: label has {what} ")
    assert "image has" in line


def test_label_value_beyond_the_classes(tiny):
    label = np.zeros(SHAPE, np.uint8)
    label[3, 3, 3] = 7
    write_volume(picture(tiny, kind="label"), label)
    line, _ = refused(tiny)
    assert line.startswith(f"{picture(tiny, kind='label')}: label values [7] are impossible: they must lie in 0 .. 2.")


def test_case_without_a_label_and_the_remedy_that_is_offered(tiny):
    picture(tiny, kind="label").unlink()
    line, _ = refused(tiny)
    assert str(picture(tiny)) in line
    assert "has no label (1 of 4 cases of split 'train')" in line
    code, _, err = tiny.mmrun("0.1", "--cfg-options", "train_dataloader.dataset.unlabelled=skip")
    assert code == 0, err
    assert tiny.state()["provenance"]["dataset"]["cases"]["train"] == 3


def test_nan_in_an_image_and_the_remedy_that_is_offered(tiny):
    image = np.zeros(SHAPE, np.float32)
    image[0, 0, 0] = np.nan
    write_volume(picture(tiny), image)
    line, _ = refused(tiny)
    assert line.startswith(f"{picture(tiny)}: 1 voxels are NaN or infinite.")
    code, _, err = tiny.mmrun("0.1", "--cfg-options", "train_dataloader.dataset.pipeline.0.nonfinite=zero")
    assert code == 0, err


# ---------------------------------------------------------------- folders and splits


def test_empty_folders_and_missing_roots(tiny, monkeypatch):
    root = tiny.root / "data/Tiny"
    shutil.rmtree(root / "image")
    assert refused(tiny)[0] == f"{root}: has no folder image/; a dataset keeps its images there."
    (root / "image").mkdir()
    assert f"{root / 'image'}: holds no volume" in refused(tiny)[0]
    shutil.rmtree(root)
    assert f"{root}: no such folder" in refused(tiny)[0]
    monkeypatch.delenv("ITKIT_DATA")
    line, _ = refused(tiny, code=2)
    assert "ITKIT_DATA does not say where that is. Set it, e.g.: export ITKIT_DATA=" in line


@pytest.mark.parametrize(
    "change,text",
    [
        ({"train": ["case_00", "case_99"]}, "train names 1 case(s) that the dataset has not, first 'case_99'"),
        ({"train": ["case_00", "case_07"]}, "case 'case_07' is in train and in test"),
        ({"train": ["case_00", "case_00"]}, "names the case 'case_00' more than once"),
        ({"train": []}, "split 'train' has no case"),
        ({"trian": ["case_00"]}, "a split has the parts train, val, test; found"),
    ],
)
def test_split_that_does_not_fit_the_folder(tiny, change, text):
    path = tiny.root / "data/Tiny/split.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    line, _ = refused(tiny)
    assert text in line
    assert str(path.parent) in line


def test_patient_in_two_parts_of_a_split(world):
    make_experiment(
        world.root, extra='\nfor d in (train_dataloader, val_dataloader): d["dataset"]["patient"] = r"case_(\\d)"\n'
    )
    line, _ = refused(world)
    assert "patient '0' is in train and in val (cases 'case_00' and 'case_04')" in line
    assert "split.json" in line


def test_other_experiments_of_the_same_command_still_run_and_keep_their_logs_apart(tiny):
    make_data(tiny.root / "data2")
    other = f'\nfor d in (train_dataloader, val_dataloader): d["dataset"]["data_root"] = "{tiny.root / "data2/Tiny"}"\n'
    make_experiment(tiny.root, "0.2.Good", iterations=4, extra=other)
    truncate(picture(tiny, "case_00"))
    code, _, err = tiny.mmrun("0.1", "0.2")
    assert code == 1
    assert "1 of 2 models succeeded" in err
    assert f"FAILED 0.1.Tiny/unet: {picture(tiny, 'case_00')}" in err
    assert tiny.state(experiment="0.2.Good")["state"] == "trained"
    scalars = (tiny.folder(experiment="0.2.Good") / "scalars.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in scalars] == [2, 4, 4], "also when both start in the same second"


def test_failing_validation_loses_no_step_and_no_validation(tiny):
    path = picture(tiny, "case_04")
    whole = path.read_bytes()
    truncate(path)
    interval = ("--cfg-options", "default_hooks.checkpoint.interval=4")
    line, _ = refused(tiny, "0.1", *interval)
    assert str(path) in line
    assert tiny.state()["last"]["step"] == 4, "the four steps before the validation are kept"
    path.write_bytes(whole)
    code, _, err = tiny.mmrun("0.1", *interval)
    assert code == 2, "a file that was repaired is other data"
    assert "validation data: 1 changed (case_04)" in err
    code, _, err = tiny.mmrun("0.1", "--resume-changed", *interval)
    assert code == 0, err
    assert "resumes after step 4 of 8" in err
    assert tiny.state()["failure"] is None
    rows = [json.loads(row) for row in (tiny.folder() / "scalars.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "val"] == [4, 8], "the validation that failed is made up for"
    assert_equals_an_undisturbed_run(tiny)


# ---------------------------------------------------------------- full disks, unwritable folders


@pytest.mark.parametrize("place", ["file/work", "/proc/itkit"])
def test_unwritable_work_directory_is_one_line(tiny, place, monkeypatch):
    (tiny.root / "file").write_text("")
    from itkit.mm import run

    root = Path(place) if place.startswith("/") else tiny.root / place
    code = run.main(["0.1", "--config-root", str(tiny.root / "configs"), "--work-dir-root", str(root)])
    _, err = tiny.capture.readouterr()
    assert code == 1
    assert len(err.splitlines()) == 1
    assert f"{root}/0.1.Tiny/unet: the work directory cannot be written" in err
    assert "--work-dir-root" in err


def test_unwritable_test_directory_keeps_the_training(tiny):
    (tiny.root / "test").write_text("a file where the folder of results should be")
    line, _ = refused(tiny, "0.1", "--all")
    assert str(tiny.root / "test") in line
    assert tiny.state()["state"] == "trained"
    (tiny.root / "test").unlink()
    assert tiny.mmrun("0.1", "--test")[0] == 0


def test_unwritable_report_is_one_line(tiny):
    (tiny.root / "work").write_text("")
    code, _, err = tiny.mmrun("0.1", "--report")
    assert code == 1
    assert err.splitlines()[-1].startswith(f"mmrun: {tiny.root / 'work'}")


def test_full_disk_under_the_scalars_is_a_warning(tiny):
    tiny.folder().mkdir(parents=True)
    (tiny.folder() / "scalars.jsonl").symlink_to("/dev/full")
    code, _, err = tiny.mmrun("0.1")
    assert code == 0, err
    assert err.count("scalars cannot be written") == 1
    assert "No space left on device" in err
    assert tiny.state()["step"] == 8


def test_full_disk_under_tensorboard_and_tables_is_a_warning(tiny, monkeypatch):
    from tensorboard.summary.writer import record_writer

    from itkit.mm.hooks import logger_json

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "the/file")

    monkeypatch.setattr(logger_json, "write_text", full)
    inits = record_writer.RecordWriter.write
    monkeypatch.setattr(
        record_writer.RecordWriter, "write", lambda self, data: full() if b"train/" in data else inits(self, data)
    )
    monkeypatch.setattr("threading.excepthook", lambda problem: pytest.fail(f"a thread died of {problem.exc_value}"))
    code, _, err = tiny.mmrun("0.1")
    assert code == 0, err
    assert "the/file: cannot be written (No space left on device); training goes on." in err
    assert tiny.state()["step"] == 8


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64"),
    ],
    ids=["system", "torch"],
)
def test_full_disk_under_a_checkpoint_keeps_the_old_one(tiny, monkeypatch, error):
    save = torch.save

    def full(checkpoint, file, *args, **kwargs):
        if checkpoint["meta"]["iter"] < 6:
            return save(checkpoint, file, *args, **kwargs)
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    line, _ = refused(tiny)
    assert line.startswith(f"{tiny.folder() / 'checkpoints/iter_6.pth'}: ")
    assert recorded_failure(tiny) == line
    left = sorted(path.name for path in (tiny.folder() / "checkpoints").iterdir())
    assert left == ["best_iter_4.pth", "iter_3.pth"], "whole files only"
    monkeypatch.undo()
    monkeypatch.setenv("ITKIT_DATA", str(tiny.root / "data"))
    code, _, err = tiny.mmrun("0.1")
    assert code == 0, err
    assert "resumes after step 3 of 8" in err
    assert_equals_an_undisturbed_run(tiny)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB, which a training of the tiny experiment fills with its third checkpoint."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("a file system of its own cannot be mounted here (needs root)")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_disk_that_is_really_full(tiny, small_disk):
    (tiny.root / "work").symlink_to(small_disk)
    line, err = refused(tiny)
    assert "No space left on device. Free some space and start again; what was finished is kept." in line
    assert "Logging error" not in err
    kept = tiny.state()["last"]["step"]
    assert kept >= 3
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    code, _, err = tiny.mmrun("0.1")
    assert code == 0, err
    assert f"resumes after step {kept} of 8" in err
    assert tiny.state()["state"] == "trained"


# ---------------------------------------------------------------- configs


@pytest.mark.parametrize(
    "file,old,new,text",
    [
        (
            "mgam.py",
            "val_cfg = dict(type=ValLoop)",
            "val_cfg = dict(type=ValLoop",
            "mgam.py, line 29: '(' was never closed.",
        ),
        ("unet.py", "num_classes=3,", "num_classes=3 3,", "unet.py, line 9: invalid syntax"),
        ("mgam.py", "pack = ", "bag = ", "mgam.py, line 18: NameError: name 'pack' is not defined"),
        (
            "unet.py",
            "type=DiceCELoss",
            "type='DiceCELos'",
            'no component is called "DiceCELos". Did you mean DiceCELoss?',
        ),
        ("mgam.py", "dict(type=ZScore)", "dict(type='ZScor')", 'no component is called "ZScor". Did you mean ZScore?'),
        ("mgam.py", "ZScore", "ZScoree", "Failed to import ZScoree from itkit.transforms"),
        (
            "mgam.py",
            "batch_size=2",
            "batchsize=2",
            'a data loader has no argument "batchsize". Did you mean batch_size?',
        ),
        ("mgam.py", "optim_wrapper =", "optim_wraper =", 'unknown key "optim_wraper". Did you mean optim_wrapper?'),
        ("mgam.py", 'type="AdamW"', 'type="AdmW"', 'no component is called "AdmW". Did you mean AdamW?'),
    ],
)
def test_mistakes_in_a_config_are_found_before_anything_is_built(tiny, file, old, new, text):
    path = tiny.root / "configs/0.1.Tiny" / file
    source = path.read_text()
    assert old in source
    path.write_text(source.replace(old, new))
    _, err = refused(tiny, code=2)
    assert text in err
    assert str(path.parent) in err
    assert not (tiny.folder() / "checkpoints").exists()


@pytest.mark.parametrize(
    "name,source,text",
    [
        ("y.yaml", "model:\n  type: SemSeg3D\n num_classes: 3\n", "y.yaml, line 3: expected <block end>"),
        ("y.yaml", "- a\n", "y.yaml: holds list, not key: value pairs."),
        ("y.yaml", "model: {type: SemSeg3D, num_clases: 3}\n", 'y.yaml: model: SemSeg3D has no argument "num_clases"'),
        ("y.json", '{"model": }', "y.json, line 1: Expecting value."),
    ],
)
def test_mistakes_in_yaml_and_json_models(tiny, name, source, text):
    (tiny.root / "configs/0.1.Tiny" / name).write_text(source)
    line, _ = refused(tiny, "0.1", "--models", "y", code=2, model="y")
    assert text in line


def test_changed_model_is_refused_with_name_and_shapes_and_the_run_is_untouched(tiny):
    assert tiny.mmrun("0.1")[0] == 0
    before = {path: path.read_bytes() for path in (tiny.folder() / "checkpoints").iterdir()}
    state = tiny.state()
    options = ["model.num_classes=4", "model.backbone.out_channels=4", "train_cfg.max_iters=12"]
    code, _, err = tiny.mmrun("0.1", "--cfg-options", *options)
    assert code == 2
    assert "model.num_classes: 3 -> 4" in err
    assert "model.backbone.out_channels: 3 -> 4" in err
    assert tiny.state() == state
    line, _ = refused(tiny, "0.1", "--resume-changed", "--cfg-options", *options)
    assert "backbone.model.2.conv.weight" in line
    assert "(12, 4, 3, 3, 3)" in line
    assert "(12, 3, 3, 3, 3)" in line
    assert {path: path.read_bytes() for path in (tiny.folder() / "checkpoints").iterdir()} == before
    code, _, err = tiny.mmrun("0.1", "--test")
    assert code == 0, err


# ---------------------------------------------------------------- loader workers and numbers


KILLER = """
import os, signal
from mmcv.transforms import BaseTransform
from itkit.registry import TRANSFORMS

@TRANSFORMS.register_module(force=True)
class KillerTransform(BaseTransform):
    def transform(self, results):
        if results["case_id"] == "case_02":
            {action}
        return results
"""
FIRST = '\nfor d in (train_dataloader,): d["dataset"]["pipeline"] = [dict(type="KillerTransform")] + d["dataset"]["pipeline"]\n'


def test_dying_worker_is_named_with_its_case_and_the_memory_and_nothing_hangs(world, monkeypatch):
    source = KILLER.replace("{action}", "os.kill(os.getpid(), signal.SIGKILL)")
    make_experiment(world.root, workers=2, extra=part(world, monkeypatch, "killer_part", source) + FIRST)
    begin = time.monotonic()
    line, _ = refused(world)
    assert time.monotonic() - begin < 120, "it must not wait for what never comes"
    assert "data loader worker " in line
    assert "of 2 (pid " in line
    assert "died of signal 9 (SIGKILL) while loading case case_02 (index 2). The machine has " in line
    assert "lower num_workers" in line


def test_failing_transform_of_ones_own_is_named_with_the_case(world, monkeypatch):
    source = KILLER.replace("{action}", "results['no_such_key']")
    make_experiment(world.root, workers=1, extra=part(world, monkeypatch, "killer_part", source) + FIRST)
    line, _ = refused(world)
    assert f"{picture(world, 'case_02')}: case case_02: KeyError in the pipeline: 'no_such_key'" in line
    traceback_file = world.folder() / world.state()["failure"]["traceback_file"]
    assert "killer_part.py" in traceback_file.read_text()


POISON = """
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module(force=True)
class PoisonHook(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 4:
            next(runner.model.parameters()).data.fill_(torch.nan)
"""


def test_nan_loss_ends_the_run_and_no_broken_weights_replace_good_ones(world, monkeypatch):
    extra = part(world, monkeypatch, "poison_part", POISON)
    make_experiment(
        world.root, extra=extra + '\ncustom_hooks = custom_hooks + [dict(type="PoisonHook")]\n', iterations=16
    )
    line, err = refused(world)
    assert "the loss is nan at step 10, not finite 5 times in a row since step 6" in line
    assert "step 6: the weights are NaN or infinite and are not saved; the checkpoint before stays." in err
    assert world.state()["last"]["step"] == 3
    assert world.state()["best"]["step"] == 4
    for path in (world.folder() / "checkpoints").iterdir():
        saved = torch.load(path, weights_only=True)
        assert all(torch.isfinite(value).all() for value in saved["raw_state_dict"].values()), path.name
    shutil.rmtree(world.root / "configs")
    make_experiment(world.root, iterations=16)
    code, _, err = world.mmrun("0.1", "--resume-changed")
    assert code == 0, err
    assert "goes on with a change: hooks.PoisonHook: removed" in err
    assert_equals_an_undisturbed_run(world, 16, iterations=16)


# ---------------------------------------------------------------- stops, and folders that somebody touched


@pytest.mark.parametrize(
    "number,code,word",
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 75, "asked to end by SIGTERM")],
)
def test_stopped_from_outside_ends_orderly_and_goes_on_later(world, number, code, word):
    make_experiment(world.root, iterations=4000, workers=1)
    command = [sys.executable, "-m", "itkit.mm.run", "0.1", "--config-root", "configs", "--work-dir-root", "work"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    deadline = time.time() + 300
    while not list(world.folder().glob("checkpoints/iter_*.pth")) and time.time() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, number)  # the terminal and batch systems send it to all processes of the run
    _, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert err.splitlines()[-1] == f"mmrun: {word}; a later start resumes from the last checkpoint (exit code {code})"
    assert "Traceback" not in err
    assert not (world.folder() / "run.lock").exists()
    state = world.state()
    assert state["state"] == "partial"
    assert state["stopped"] == {"by": signal.Signals(number).name, "step": state["step"]}
    assert state["last"]["step"] == state["step"]
    done, _, err = world.mmrun("0.1", "--cfg-options", f"train_cfg.max_iters={state['step'] + 4}")
    assert done == 0, err
    assert "takes over" not in err


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"state": "trained", "best": "x"}', '{"step": "8"}', '{"last": {"step": 3}}']
)
def test_broken_run_json_is_named_and_nothing_is_guessed(tiny, text):
    assert tiny.mmrun("0.1", "--cfg-options", "train_cfg.max_iters=4")[0] == 0
    path = tiny.folder() / "run.json"
    path.write_text(text)
    line, _ = refused(tiny)
    assert str(path) in line
    assert "Repair it, or remove the run folder to start anew." in line
    assert path.read_text() == text
    code, out, _ = tiny.mmrun("--list", "--json")
    assert code == 0
    assert json.loads(out)["experiments"][0]["models"][0]["state"] == "failed"


def test_removed_checkpoints(tiny):
    assert tiny.mmrun("0.1")[0] == 0
    best = tiny.folder() / tiny.state()["best"]["checkpoint"]
    best.unlink()
    line, _ = refused(tiny, "0.1", "--test")
    assert line.startswith(f"{best}: the best checkpoint recorded in run.json is not there.")
    assert tiny.mmrun("0.1", "--test-use-last-ckpt")[0] == 0
    code, _, err = tiny.mmrun("0.1", "--cfg-options", "train_cfg.max_iters=12")
    assert code == 0, err
    assert (tiny.folder() / tiny.state()["best"]["checkpoint"]).is_file(), "a best that is gone is no best"
    shutil.rmtree(tiny.folder() / "checkpoints")
    code, _, err = tiny.mmrun("0.1", "--cfg-options", "train_cfg.max_iters=16")
    assert code == 0, err
    assert "the checkpoints up to step 12 are gone, so it begins anew" in err
    assert tiny.state()["step"] == 16
    assert (tiny.folder() / tiny.state()["best"]["checkpoint"]).is_file()


def test_fewer_iterations_than_done(tiny):
    assert tiny.mmrun("0.1", "--cfg-options", "train_cfg.max_iters=6")[0] == 0
    state = tiny.state()
    (tiny.folder() / "run.json").write_text(json.dumps(state | {"state": "partial"}))
    code, _, err = tiny.mmrun("0.1", "--cfg-options", "train_cfg.max_iters=4")
    assert code == 0, err
    assert "is at step 6 already, beyond the 4 asked for; nothing to train" in err


# ---------------------------------------------------------------- what is said, and where


def test_json_is_pure_in_every_mode(tiny):
    (tiny.root / "configs/bad.name").mkdir()
    (tiny.root / "configs/0.9.Empty").mkdir()
    for words in ((), ("--test",), ("--all",), ("--report",), ("--list",), ("--check",)):
        code, out, err = tiny.mmrun("0.1", *words, "--json")
        assert code == 0, err
        assert [model["name"] for model in json.loads(out)["experiments"][0]["models"]] == ["unet"]
    for words in (("--list",), ("--report",)):
        code, out, err = tiny.mmrun(*words, "--json")
        assert code == 0, err
        assert [e["name"] for e in json.loads(out)["experiments"]] == ["0.1.Tiny"]
        assert "bad.name" in err
        assert "0.9.Empty: mgam.py is missing" in err
    assert tiny.mmrun("0.9", "--list")[0] == 2


def test_names_as_people_type_them(tiny):
    (tiny.root / "configs/0.1.Tiny/other.py").write_text(MODEL)
    for words in (("configs/0.1.Tiny",), ("configs/0.1.Tiny/",), ("0.1.Tiny/",), ("0.1", "0.1.Tiny")):
        code, out, err = tiny.mmrun(*words, "--list", "--json")
        assert code == 0, err
        assert [len(e["models"]) for e in json.loads(out)["experiments"]] == [2]
    (tiny.root / "configs/0.1.Tiny/third.py").write_text(MODEL)
    for words in (["unet,other"], ["unet", "other"], ["unet", "--models", "other"], ["unet", "unet", "other"]):
        code, out, err = tiny.mmrun("0.1", "--models", *words, "--list", "--json")
        assert code == 0, err
        assert [model["name"] for model in json.loads(out)["experiments"][0]["models"]] == ["other", "unet"]


def test_spaces_and_other_letters_in_every_path(world, monkeypatch):
    data = world.root / "Daten für MR 日本"
    shutil.move(world.root / "data", data)
    monkeypatch.setenv("ITKIT_DATA", str(data))
    make_experiment(world.root, "0.1.Größe zwei", iterations=4)
    code, out, err = world.mmrun("0.1", "--all")
    assert code == 0, err
    assert world.state(experiment="0.1.Größe zwei")["state"] == "trained"
    assert "0.1.Größe zwei" in out


def test_all_without_a_test_set_trains_and_reports(world):
    make_experiment(world.root, iterations=4, extra="\ndel test_dataloader, test_cfg, test_evaluator\n")
    code, _, err = world.mmrun("0.1", "--all")
    assert code == 0, err
    assert "defines no test_dataloader, so it is not tested" in err
    line, _ = refused(world, "0.1", "--test", code=2)
    assert "defines no test_dataloader" in line


def test_without_validation_the_last_checkpoint_is_tested(world):
    make_experiment(world.root, iterations=4, extra="\ndel val_dataloader, val_cfg, val_evaluator\n")
    code, _, err = world.mmrun("0.1", "--all")
    assert code == 0, err
    assert "testing the last one" in err
    assert world.state()["best"] is None


def test_reader_that_stops_reading_is_no_failure(tiny):
    command = [sys.executable, "-m", "itkit.mm.run", "--list", "--config-root", "configs"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0
