"""Reading configs: pure Python with read_base, yaml, json, overrides, and errors with file and line."""

from __future__ import annotations

import json

import pytest

from itkit.errors import ConfigError
from itkit.experiment.names import find_experiment
from itkit.mm.config import load_config, parse_overrides

SHARED = "train_cfg = dict(by_epoch=False, max_iters=10)\nlr = 0.1\n"
MODEL = (
    "from mmengine.config import read_base\nwith read_base():\n    from .mgam import *\n"
    "model = dict(type='ToyModel', width=4)\n"
)


def experiment(tmp_path, shared=SHARED, **models):
    folder = tmp_path / "0.1.A"
    folder.mkdir(exist_ok=True)
    (folder / "mgam.py").write_text("from mmengine.config import read_base\n" + shared)
    for name, text in models.items():
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(text)
    return find_experiment("0.1", tmp_path)


def test_python_yaml_and_json_models_give_the_same_config(tmp_path):
    found = experiment(
        tmp_path,
        a_py=MODEL,
        b_yaml="model:\n  type: ToyModel\n  width: 4\n",
        c_json=json.dumps({"model": {"type": "ToyModel", "width": 4}}),
    )
    configs = [load_config(found, name) for name in "abc"]
    assert [dict(c.model) for c in configs] == [{"type": "ToyModel", "width": 4}] * 3
    assert all(c.train_cfg.max_iters == 10 for c in configs)


def test_overrides_are_literals_where_they_read_as_such(tmp_path):
    overrides = parse_overrides(
        ["train_cfg.max_iters=20", "lr=1e-3", "model.name=unet", "model.sizes=[1,2]", "model.on=true"]
    )
    config = load_config(experiment(tmp_path, a_py=MODEL), "a", overrides)
    assert (config.train_cfg.max_iters, config.lr, config.model.name) == (20, 1e-3, "unet")
    assert list(config.model.sizes) == [1, 2]
    assert config.model.on is True


def test_override_without_equal_sign():
    with pytest.raises(ConfigError, match="'lr': write key=value"):
        parse_overrides(["lr"])


def test_override_that_does_not_fit(tmp_path):
    with pytest.raises(ConfigError, match=r"--cfg-options lr\.x\.y=1: does not fit"):
        load_config(experiment(tmp_path, a_py=MODEL), "a", {"lr.x.y": 1})


@pytest.mark.parametrize(
    "files,place",
    [
        (dict(a_py=MODEL + "optimizer = dict(lr=0.1\n"), r"a\.py, line 5: '\(' was never closed"),
        (dict(shared="x = 1\ny = = 2\n", a_py=MODEL), r"mgam\.py, line 3: invalid syntax"),
        (dict(a_py=MODEL + "x = 1 / 0\n"), r"a\.py, line 5: ZeroDivisionError"),
        (dict(shared="x = undefined_name\n", a_py=MODEL), r"mgam\.py, line 2: NameError: name 'undefined_name'"),
        (dict(b_yaml="model: {type: X\nother: 1\n"), r"b\.yaml, line \d"),
        (dict(b_json='{"model": }'), r"b\.json, line 1: Expecting value"),
        (dict(b_yaml="just a word\n"), "holds str, not key: value pairs"),
    ],
)
def test_errors_name_file_and_line(tmp_path, files, place):
    found = experiment(tmp_path, **files)
    with pytest.raises(ConfigError, match=place):
        load_config(found, next(iter(found.models)))
