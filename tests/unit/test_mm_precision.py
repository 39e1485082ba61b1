"""One value each for precision and parallel: made real where the machine can, a warning or a clear error where not."""

from __future__ import annotations

import warnings

import pytest
import torch
from mmengine.config import Config
from torch import nn

from itkit.errors import ConfigError
from itkit.mm import precision, processes
from itkit.mm.config_check import check_config
from itkit.mm.precision import AutocastOptimWrapper, apply_precision
from itkit.mm.processes import wrapper_config
from itkit.mm.strategies import RemasteredDDP, RemasteredFSDP

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU does")


@no_gpu
@pytest.mark.parametrize("value,in_hardware", [("bf16", False), ("fp16", False), ("fp16", True)])
def test_a_cpu_without_the_instructions_warns_and_stays_in_float32(monkeypatch, value, in_hardware):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: in_hardware)
    wrapper = {"optimizer": {"type": "SGD", "lr": 0.1}}
    with pytest.warns(UserWarning, match=f'precision = "{value}".*using float32'):
        apply_precision(wrapper, value)
    assert wrapper == {"optimizer": {"type": "SGD", "lr": 0.1}}


@no_gpu
def test_a_cpu_with_the_instructions_trains_in_bf16(monkeypatch):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    wrapper = {"type": "OptimWrapper"}
    apply_precision(wrapper, "bf16")
    assert wrapper["type"] is AutocastOptimWrapper


@pytest.mark.parametrize("value", [None, "fp32"])
def test_float32_changes_nothing_and_says_nothing(value):
    wrapper = {"type": "AnyWrapper"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_precision(wrapper, value)
    assert wrapper == {"type": "AnyWrapper"}


def test_two_decisions_on_precision_are_refused():
    with pytest.raises(ConfigError, match=r"optim_wrapper.type = AmpOptimWrapper both decide on the precision"):
        apply_precision({"type": "AmpOptimWrapper"}, "bf16")
    with pytest.raises(ConfigError, match="needs loss scaling"):
        AutocastOptimWrapper(dtype="float16", optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1))


def test_autocast_computes_in_bf16_and_keeps_weights_in_float32():
    layer = nn.Linear(4, 4)
    wrapper = AutocastOptimWrapper(optimizer=torch.optim.SGD(layer.parameters(), lr=0.1))
    with wrapper.optim_context(layer):
        out = layer(torch.ones(1, 4))
    assert out.dtype == torch.bfloat16
    wrapper.update_params(out.float().square().sum())
    assert layer.weight.dtype == torch.float32


@pytest.mark.parametrize("parallel", [None, "none", "ddp", "fsdp"])
def test_one_process_needs_no_wrapper(monkeypatch, parallel):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert wrapper_config(Config({"parallel": parallel})) is None
    assert processes.world_size() == 1


def test_several_processes_must_say_how_they_share_the_work(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert wrapper_config(Config({"parallel": "ddp"})) == {"type": RemasteredDDP}
    assert wrapper_config(Config({"parallel": "fsdp"}))["type"] is RemasteredFSDP
    for config in ({}, {"parallel": None}, {"parallel": "none"}):
        with pytest.raises(
            ConfigError, match=r'"none", but 2 processes were started\. Set parallel = "ddp" \(or "fsdp"\)'
        ):
            wrapper_config(Config(config))


def test_an_unknown_way_to_share_the_work_is_refused_on_one_process_too(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigError, match=r"parallel = 'dpp' is not one of none, ddp, fsdp\. Did you mean ddp\?"):
        wrapper_config(Config({"parallel": "dpp"}))


def test_options_of_the_wrapper(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    def options(**config):
        return wrapper_config(Config({"parallel": "ddp", **config}))

    assert options(find_unused_parameters=True) == {"type": RemasteredDDP, "find_unused_parameters": True}
    for kind in ("MMDistributedDataParallel", "itkit.RemasteredDDP", RemasteredDDP):
        given = {"type": kind, "bucket_cap_mb": 10}
        assert options(model_wrapper_cfg=given) == {"type": RemasteredDDP, "bucket_cap_mb": 10}
    assert options(model_wrapper_cfg={"type": "MyOwn", "x": 1}) == {"type": "MyOwn", "x": 1}
    with pytest.raises(
        ConfigError, match="RemasteredDDP has no option 'find_unused'. Did you mean find_unused_parameters"
    ):
        options(model_wrapper_cfg={"find_unused": True})
    fsdp = Config({"parallel": "fsdp", "precision": "bf16"})
    assert wrapper_config(fsdp) == {"type": RemasteredFSDP, "precision": "bf16"}


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("sync_bn", "mmcv", "sync_bn = 'mmcv' is not one of False, True, torch"),
        ("find_unused_parameters", "yes", "find_unused_parameters = 'yes' is not one of False, True"),
        ("sync_bm", True, 'unknown key "sync_bm". Did you mean sync_bn'),
    ],
)
def test_options_are_checked_before_anything_is_built(key, value, message):
    with pytest.raises(ConfigError, match=message):
        check_config(Config({key: value}))
    check_config(Config({"sync_bn": True, "find_unused_parameters": False}))
