"""`LoggerJSON`: what stands in result.json and the tables, with itkit's metrics, with others, and with odd numbers."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import numpy as np
import torch

from itkit.experiment.comparison import read_cases
from itkit.mm.hooks.logger_json import LoggerJSON, cases_as_csv, merge_case_rows, summarise_metrics
from itkit.registry import HOOKS

ROWS = [
    {"case_id": "b", "Dice/one": 0.5, "Dice/two": None},
    {"case_id": "a", "Dice/one": float("nan"), "Dice/two": 0.25},
]
SUMMARY = {"Dice": {"mean": 0.375, "per_class": {"one": 0.5, "two": 0.25}, "ci95": None}}


def _metric(**kwargs):
    return SimpleNamespace(**{"case_rows": ROWS, "summary": SUMMARY, "prefix": None, **kwargs})


def _runner(folder, metrics, **kwargs):
    loop = SimpleNamespace(evaluator=SimpleNamespace(metrics=metrics))
    return SimpleNamespace(work_dir=str(folder), val_loop=loop, test_loop=loop, logger=logging.getLogger("t"), **kwargs)


def test_it_is_registered():
    assert HOOKS.get("LoggerJSON") is LoggerJSON


def test_result_and_cases(tmp_path):
    folder = tmp_path / "test" / "1.0.Exp" / "net"
    loaded = {"path": "checkpoints/best_iter_5.pth", "step": 5, "sha256": "ab"}
    runner = _runner(tmp_path / "work", [_metric()], test_dir=folder, loaded_checkpoint=loaded)
    hook = LoggerJSON()
    hook.before_test(runner)
    hook.after_test_epoch(runner, {"Dice": 0.375, "Dice/one": 0.5, "Dice/two": 0.25})
    result = json.loads((folder / "result.json").read_text())
    assert 0 <= result.pop("cpu_minutes") < 1
    assert result == {
        "schema": 1,
        "experiment": "1.0.Exp",
        "model": "net",
        "checkpoint": "checkpoints/best_iter_5.pth",
        "step": 5,
        "sha256": "ab",
        "classes": ["one", "two"],
        "metrics": SUMMARY,
        "cases": 2,
    }
    assert read_cases(folder / "cases.csv") == [
        {"case_id": "b", "Dice/one": 0.5, "Dice/two": None},
        {"case_id": "a", "Dice/one": None, "Dice/two": 0.25},
    ]
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_a_plain_runner_has_no_checkpoint_and_its_own_folder(tmp_path):
    runner = _runner(tmp_path, [SimpleNamespace(prefix="acc", dataset_meta={"classes": ("bg", "x")})])
    runner.test_dataloader = SimpleNamespace(dataset=[1, 2, 3])
    LoggerJSON().after_test_epoch(runner, {"acc/top1": torch.tensor(0.5), "acc/bad": float("inf"), "names": ["a"]})
    result = json.loads((tmp_path / "test" / "result.json").read_text())
    assert result["metrics"] == {"acc/top1": {"mean": 0.5}, "acc/bad": {"mean": None}}
    assert (result["checkpoint"], result["classes"], result["cases"], result["cpu_minutes"]) == (None, ["x"], 3, None)
    assert not (tmp_path / "test" / "cases.csv").exists()


def test_out_dir_wins(tmp_path):
    runner = _runner(tmp_path / "work", [_metric()], test_dir=tmp_path / "given")
    LoggerJSON(out_dir=str(tmp_path / "mine")).after_test_epoch(runner, {})
    assert (tmp_path / "mine" / "result.json").exists()
    assert not (tmp_path / "given").exists()


def test_validation_writes_the_table_only(tmp_path):
    LoggerJSON().after_val_epoch(_runner(tmp_path, [_metric()]), {})
    assert [path.name for path in tmp_path.iterdir()] == ["val_cases.csv"]
    LoggerJSON().after_val_epoch(_runner(tmp_path / "other", [SimpleNamespace()]), {})
    assert not (tmp_path / "other").exists()


def test_numbers_are_finite_json(tmp_path):
    bad = {"HD95": {"mean": np.float64("nan"), "per_class": {"one": np.inf}, "ci95": [np.float32(1.0), float("nan")]}}
    runner = _runner(tmp_path, [_metric(summary=bad)], test_dir=tmp_path)
    LoggerJSON().after_test_epoch(runner, {})
    text = (tmp_path / "result.json").read_text()
    metrics = json.loads(text, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))["metrics"]
    assert metrics == {"HD95": {"mean": None, "per_class": {"one": None}, "ci95": [1.0, None]}}


def test_several_metrics_share_the_rows_of_a_case():
    other = _metric(case_rows=[{"case_id": "a", "HD95/one": 3.0}], summary={"HD95": {"mean": 3.0}})
    assert merge_case_rows([_metric(), other]) == [
        {"case_id": "b", "Dice/one": 0.5, "Dice/two": None},
        {"case_id": "a", "Dice/one": None, "Dice/two": 0.25, "HD95/one": 3.0},
    ]
    assert list(summarise_metrics([_metric(), other], {"Dice": 1, "HD95/one": 3.0, "loss": 2})) == [
        "Dice",
        "HD95",
        "loss",
    ]


def test_prefixed_metrics_do_not_appear_twice_nor_hide_each_other():
    summary = summarise_metrics(
        [_metric(), _metric(prefix="post")], {"Dice": 0.4, "post/Dice": 0.5, "post/Dice/one": 0.5}
    )
    assert list(summary) == ["Dice", "post/Dice"]


def test_csv_quotes_names(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text(cases_as_csv([{"case_id": 'a,"b"\nc', "Dice/x, y": 1.0}]), newline="")
    assert read_cases(path) == [{"case_id": 'a,"b"\nc', "Dice/x, y": 1.0}]
