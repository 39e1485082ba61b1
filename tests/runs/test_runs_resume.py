"""Resuming as a user sees it: what is asked for, with which words, and what `mmrun` does then."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_experiment import make_experiment, write_volume

LONGER = "train_cfg.max_iters=10"


def add_case(world, name: str) -> None:
    rng = np.random.default_rng(9)
    label = np.zeros((8, 12, 12), np.uint8)
    label[2:6, 3:8, 3:8] = 1
    folder = world.root / "data/Tiny"
    write_volume(folder / "image" / f"{name}.mha", (label * 100 + rng.normal(0, 20, label.shape)).astype(np.float32))
    write_volume(folder / "label" / f"{name}.mha", label)


def set_split(world, **parts) -> None:
    path = world.root / "data/Tiny/split.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))


def test_changed_data_are_named_case_by_case_and_asked_for(tiny):
    assert tiny.mmrun("0.1")[0] == 0
    before = tiny.state()
    assert set(json.loads((tiny.folder() / "dataset.json").read_text())["cases"]) == {"train", "val"}
    add_case(tiny, "case_90")
    add_case(tiny, "case_03")  # other voxels under an old name
    set_split(tiny, train=["case_01", "case_02", "case_03", "case_90"])
    code, _, err = tiny.mmrun("0.1", "--cfg-options", LONGER)
    assert code == 2
    assert "going on from step 8 would not be the training that began" in err
    assert "training data: 1 added (case_90); 1 removed (case_00); 1 changed (case_03)" in err
    assert "--resume-changed" in err
    assert "traceback" not in err
    assert tiny.state() == before, "what is refused leaves the run as it was"
    assert tiny.mmrun("0.1", "--test")[0] == 0

    code, _, err = tiny.mmrun("0.1", "--resume-changed", "--cfg-options", LONGER)
    assert code == 0, err
    assert "goes on with a change: training data: 1 added (case_90)" in err
    assert tiny.state()["changes"][0]["step"] == 8
    code, _, err = tiny.mmrun("0.1", "--cfg-options", "train_cfg.max_iters=12")
    assert code == 0, "agreed to once, it is the run's data"


def test_moved_data_are_the_same_data(tiny):
    assert tiny.mmrun("0.1")[0] == 0
    (tiny.root / "data/Tiny").rename(tiny.root / "data/Moved")
    path = tiny.root / "configs/0.1.Tiny/mgam.py"
    path.write_text(path.read_text().replace('data_root="Tiny"', 'data_root="Moved"'))
    code, _, err = tiny.mmrun("0.1", "--cfg-options", LONGER)
    assert code == 0, err


def test_changed_config_reads_key_by_key(tiny):
    assert tiny.mmrun("0.1")[0] == 0
    path = tiny.root / "configs/0.1.Tiny/mgam.py"
    path.write_text(path.read_text().replace("RandomFlip, axes=(2,)", "RandomFlip, axes=(1,)"))
    free = ["val_dataloader.batch_size=2", "train_dataloader.num_workers=1", "default_hooks.logger.interval=1"]
    words = ["--cfg-options", LONGER, "optim_wrapper.optimizer.lr=0.01", *free]
    code, _, err = tiny.mmrun("0.1", *words)
    assert code == 2
    assert "  optim_wrapper.optimizer.lr: 0.02 -> 0.01\n" in err
    assert "  train_dataloader.dataset.pipeline[2].axes: [2] -> [1]\n" in err
    assert "batch_size" not in err.partition("that began")[2]
    code, _, err = tiny.mmrun("0.1", "--resume-changed", *words)
    assert code == 0, err
    assert tiny.state()["step"] == 10


def test_refusal_is_no_failure_and_is_not_retried(tiny):
    assert tiny.mmrun("0.1")[0] == 0
    code, _, err = tiny.mmrun("0.1", "--auto-retry", "3", "--cfg-options", LONGER, "randomness.seed=1")
    assert code == 2
    assert "retry" not in err
    assert tiny.state()["failure"] is None
    assert tiny.state()["state"] == "trained"


def test_lost_run_json_says_so_and_comes_back(tiny):
    assert tiny.mmrun("0.1")[0] == 0
    before = tiny.state()
    (tiny.folder() / "run.json").unlink()
    code, _, err = tiny.mmrun("0.1", "--test")
    assert code == 1
    assert "There are checkpoints, so the file was lost: start the training" in err
    code, _, err = tiny.mmrun("0.1")
    assert code == 0, err
    assert (
        "run.json knows no checkpoint, although iter_8.pth is there; best model and cost so far are taken from" in err
    )
    after = tiny.state()
    assert {k: after["best"][k] for k in ("step", "value")} == {k: before["best"][k] for k in ("step", "value")}
    assert (after["state"], after["step"]) == ("trained", 8)
    assert tiny.mmrun("0.1", "--test")[0] == 0


def test_damaged_run_json_names_both_ways_out(tiny):
    assert tiny.mmrun("0.1", "--cfg-options", "train_cfg.max_iters=4")[0] == 0
    path = tiny.folder() / "run.json"
    path.write_text(path.read_text()[:100])
    code, _, err = tiny.mmrun("0.1")
    assert code == 1
    assert "remove this file alone: the next training takes the state from the newest checkpoint" in err
    path.unlink()
    code, _, err = tiny.mmrun("0.1")
    assert code == 0, err
    assert tiny.state()["step"] == 8


def test_foreign_weights_are_loaded_with_the_flag_that_the_refusal_names(tiny):
    assert tiny.mmrun("0.1", "--cfg-options", "train_cfg.max_iters=2")[0] == 0
    weights = torch.load(tiny.folder() / "checkpoints/iter_2.pth", weights_only=True)["raw_state_dict"]
    torch.save({"state_dict": weights, "from": Path("/somewhere")}, tiny.root / "foreign.pth")
    make_experiment(tiny.root, "0.2.Fine", extra=f'\nload_from = "{tiny.root / "foreign.pth"}"\n')
    code, _, err = tiny.mmrun("0.2")
    assert code == 1
    assert "foreign.pth: holds Python objects (pathlib" in err
    assert "If you trust its origin: --trust-checkpoint." in err
    code, _, err = tiny.mmrun("0.2", "--trust-checkpoint")
    assert code == 0, err


@pytest.mark.parametrize("number", [errno.EROFS, errno.EDQUOT])
def test_file_system_that_becomes_unwritable(tiny, monkeypatch, number):
    replace = os.replace

    def refuse(source, target):
        if Path(target).name == "iter_6.pth":
            raise OSError(number, os.strerror(number))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    code, _, err = tiny.mmrun("0.1")
    assert code == 1
    assert f"{tiny.folder() / 'checkpoints/iter_6.pth'}: {os.strerror(number)}." in err
    state = tiny.state()
    assert (state["state"], state["last"]["step"], state["best"]["step"]) == ("failed", 3, 4)
    assert sorted(p.name for p in (tiny.folder() / "checkpoints").iterdir()) == ["best_iter_4.pth", "iter_3.pth"]
    monkeypatch.setattr(os, "replace", replace)
    code, _, err = tiny.mmrun("0.1")
    assert code == 0, err
    assert tiny.state()["step"] == 8


def test_memory_of_the_state_is_not_shared_with_the_other_models(tiny):
    """Two models of one command: the checkpoint under way of the first is proven before the second begins."""
    (tiny.root / "configs/0.1.Tiny/other.py").write_text((tiny.root / "configs/0.1.Tiny/unet.py").read_text())
    code, _, err = tiny.mmrun("0.1")
    assert code == 0, err
    for model in ("unet", "other"):
        state = tiny.state(model)
        assert state["last"]["step"] == 8
        assert (tiny.folder(model) / state["last"]["checkpoint"]).is_file()
    assert "torch" in sys.modules
