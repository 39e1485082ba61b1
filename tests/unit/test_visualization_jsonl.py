"""The scalar log under a real MMEngine runner, through resumes, odd values and a full disk."""

from __future__ import annotations

import json
import logging
import math
import sys

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.registry import VISBACKENDS as ROOT_VISBACKENDS
from mmengine.runner import Runner

from itkit.errors import MissingDependency
from itkit.experiment.comparison import read_scalars
from itkit.mm.visualization import JSONLinesVisBackend, MLflowVisBackend, WandbVisBackend
from itkit.mm.visualization.jsonl_backend import finite_number
from itkit.registry import VISBACKENDS


class TinyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, x, mode="tensor"):
        x = torch.stack(list(x)) if isinstance(x, list) else x
        out = self.layer(x)
        return {"loss": out.square().mean()} if mode == "loss" else [out]


class TinyEvaluator(Evaluator):
    def __init__(self):
        super().__init__([])

    def process(self, data_samples, data_batch):
        pass

    def evaluate(self, size):
        return {"Dice": 0.25, "Dice/one": float("nan")}


@pytest.fixture(autouse=True)
def clean_hub(monkeypatch):
    monkeypatch.setattr(MessageHub, "_instance_dict", type(MessageHub._instance_dict)())


def _loader():
    data = [torch.ones(1) * k for k in range(4)]
    return torch.utils.data.DataLoader(data, batch_size=2, collate_fn=list)


@pytest.mark.parametrize("by_epoch", [False, True])
def test_steps_and_splits_under_a_plain_runner(tmp_path, by_epoch):
    class Model(TinyModel):
        def train_step(self, data, optim_wrapper):
            return super().train_step({"x": data}, optim_wrapper)

        def val_step(self, data):
            return [0]

    evaluator = TinyEvaluator()
    train = {"by_epoch": True, "max_epochs": 3} if by_epoch else {"by_epoch": False, "max_iters": 6, "val_interval": 2}
    runner = Runner(
        model=Model(),
        work_dir=str(tmp_path),
        train_dataloader=_loader(),
        val_dataloader=_loader(),
        train_cfg=train,
        val_cfg={},
        val_evaluator=evaluator,
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01}},
        default_hooks={
            "logger": {"type": "LoggerHook", "interval": 1, "log_metric_by_epoch": by_epoch},
            "checkpoint": None,
        },
        log_processor={"by_epoch": by_epoch},
        visualizer={
            "type": "Visualizer",
            "vis_backends": [{"type": "itkit.JSONLinesVisBackend", "save_dir": str(tmp_path)}],
        },
        experiment_name=f"jsonl_{by_epoch}",
        log_level="WARNING",
    )
    runner.train()
    rows = read_scalars(tmp_path / "scalars.jsonl")
    train_rows = [row for row in rows if row["split"] == "train"]
    val_rows = [row for row in rows if row["split"] == "val"]
    assert [row["step"] for row in train_rows] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in val_rows] == [2, 4, 6]
    assert {"loss", "lr", "iter_time", "data_time"} <= set(train_rows[0])
    assert not {"iter", "Dice"} & set(train_rows[0])
    assert (val_rows[0]["Dice"], val_rows[0]["Dice/one"]) == (0.25, None)
    assert all(abs(row["time"] - rows[0]["time"]) < 600 and row["time"] > 1.5e9 for row in rows)


def test_it_is_registered():
    assert VISBACKENDS.get("JSONLinesVisBackend") is JSONLinesVisBackend
    assert ROOT_VISBACKENDS.get("itkit.WandbVisBackend") is WandbVisBackend


def test_odd_values_become_null_and_non_numbers_are_left_out(tmp_path):
    backend = JSONLinesVisBackend(str(tmp_path))
    values = {
        "a": math.nan, "b": math.inf, "c": 1e300, "d": 10**400, "e": np.float32(0.5), "f": torch.tensor([2.0]),
        "g": np.array([3]), "h": "text", "i": [1, 2], "j": None, "k": torch.ones(2), "l": True, "iter": 7,
    }  # fmt: skip
    backend.add_scalars(values, step=7, file_path="ignored.json")
    backend.close()
    (row,) = read_scalars(tmp_path / "scalars.jsonl")
    del row["time"]
    assert row == {"step": 7, "split": "train", "a": None, "b": None, "c": None, "d": None, "e": 0.5, "f": 2.0, "g": 3}
    assert finite_number("x") is None


def test_prefixes_tell_the_split(tmp_path):
    backend = JSONLinesVisBackend(str(tmp_path))
    backend.add_scalars({"val/Dice": 0.5, "val/time": 1.0}, step=4)
    backend.add_scalar("train/loss", 1.0, step=5)
    rows = read_scalars(tmp_path / "scalars.jsonl")
    assert [(row["split"], row["step"]) for row in rows] == [("val", 4), ("train", 5)]
    assert (rows[0]["Dice"], rows[0]["iter_time"], rows[1]["loss"]) == (0.5, 1.0, 1.0)


def test_it_appends_and_closes_a_line_that_a_crash_cut_short(tmp_path):
    path = tmp_path / "scalars.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    backend = JSONLinesVisBackend(str(tmp_path))
    backend.add_scalars({"loss": 1.0, "iter": 3}, step=3)
    backend.close()
    backend.add_scalars({"loss": 1.0, "iter": 4}, step=4)
    assert [row["step"] for row in read_scalars(path)] == [1, 3, 4]


@pytest.fixture
def warnings_logged(monkeypatch):
    from mmengine.logging import MMLogger

    messages = []
    logger = logging.Logger("test")
    monkeypatch.setattr(logger, "warning", messages.append)
    monkeypatch.setattr(MMLogger, "get_current_instance", classmethod(lambda cls: logger))
    return messages


def test_a_full_disk_warns_once_and_never_stops_training(tmp_path, warnings_logged):
    if sys.platform != "linux":
        pytest.skip("needs /dev/full")
    (tmp_path / "scalars.jsonl").symlink_to("/dev/full")
    backend = JSONLinesVisBackend(str(tmp_path))
    for step in range(5):
        backend.add_scalars({"loss": 1.0, "iter": step}, step=step)
    backend.close()
    (message,) = warnings_logged
    assert "No space left" in message
    assert "training goes on without them" in message


def test_a_file_that_the_network_forgot_is_opened_again(tmp_path, warnings_logged):
    backend = JSONLinesVisBackend(str(tmp_path))
    backend.add_scalars({"loss": 1.0}, step=1)

    class Stale:
        def write(self, data):
            raise OSError(116, "Stale file handle")

        def close(self):
            raise OSError(116, "Stale file handle")

    backend._stream.close()
    backend._stream = Stale()
    backend.add_scalars({"loss": 2.0}, step=2)
    backend.close()
    assert [row["step"] for row in read_scalars(tmp_path / "scalars.jsonl")] == [1, 2]
    assert not warnings_logged


def test_an_unusable_folder_warns_once(tmp_path, warnings_logged):
    (tmp_path / "file").write_text("")
    backend = JSONLinesVisBackend(str(tmp_path / "file"))
    for step in range(3):
        backend.add_scalar("loss", 1.0, step)
    assert len(warnings_logged) == 1
    assert str(tmp_path / "file" / "scalars.jsonl") in warnings_logged[0]


def test_each_line_is_on_disk_at_once(tmp_path):
    backend = JSONLinesVisBackend(str(tmp_path))
    backend.add_scalar("loss", 1.0, 1)
    assert json.loads((tmp_path / "scalars.jsonl").read_text())["loss"] == 1.0


@pytest.mark.parametrize("backend, package", [(WandbVisBackend, "wandb"), (MLflowVisBackend, "mlflow")])
def test_a_missing_tracker_names_its_extra(tmp_path, monkeypatch, backend, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=rf"{package} is needed for logging.*pip install 'itkit\[{package}\]'"):
        backend(str(tmp_path))


def test_wandb_offline_reaches_init(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", type(sys)("wandb"))
    backend = WandbVisBackend(str(tmp_path), offline=True, init_kwargs={"project": "p"})
    assert backend._init_kwargs == {"project": "p", "mode": "offline"}
