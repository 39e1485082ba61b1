"""Which modules of a network are gathered together when it is trained in parts, and what of a config is refused."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from monai.networks.nets import UNet
from torch import nn

from itkit.errors import ConfigError
from itkit.mm import precision as precision_module
from itkit.mm.processes import wrapper_config
from itkit.mm.strategies.fsdp import RemasteredFSDP, choose_units


def size(module: nn.Module) -> int:
    return sum({id(p): p.numel() for p in module.parameters()}.values())


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)


class Stack(nn.Module):
    """Blocks in a list, as a transformer has them, an embedding and a small head."""

    def __init__(self, depth: int = 10, width: int = 16):
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 1)


NETWORKS = {
    "stack": Stack(),
    "conv": nn.Sequential(*(nn.Conv3d(4, 4, 3) for _ in range(9))),
    "unet": UNet(3, 1, 2, channels=(4, 8, 16, 32), strides=(2, 2, 2), num_res_units=2),
    "one": nn.Sequential(nn.Linear(100, 100), nn.Linear(2, 2)),
    "line": nn.Linear(2, 2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_units_cover_most_weights_once_and_none_is_large_without_need(name):
    model = NETWORKS[name]
    units = choose_units(model)
    seen: set[int] = set()
    for unit in units:
        module = model.get_submodule(unit)
        assert not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
        inside = {id(p) for p in module.parameters()}
        assert not inside & seen
        seen |= inside
        is_layer = not any(size(child) for child in module.children())
        assert is_layer or size(module) <= size(model) / 8
        assert size(module) >= size(model) / 64
    rest = sum(p.numel() for p in model.parameters() if id(p) not in seen)
    assert name == "line" or rest < size(model) / 2


def test_blocks_of_a_list_are_units_whole():
    assert choose_units(NETWORKS["stack"]) == [f"blocks.{i}" for i in range(10)]
    assert choose_units(NETWORKS["one"]) == ["0"]
    assert choose_units(NETWORKS["line"]) == []


def test_modules_that_share_a_weight_with_others_stay_with_the_root():
    model = Stack()
    model.blocks[3].one.weight = model.blocks[7].two.weight
    assert choose_units(model) == [
        f"blocks.{i}" if i not in (3, 7) else f"blocks.{i}.{'two' if i == 3 else 'one'}" for i in range(10)
    ]


def test_a_module_that_stands_in_two_places_is_one_unit():
    model = Stack()
    model.blocks[4] = model.blocks[3]
    assert choose_units(model) == ["embed", *(f"blocks.{i}" for i in range(10) if i != 4)]


def test_a_module_used_from_outside_of_its_block_is_not_hidden_in_the_block():
    model = Stack()
    model.again = model.blocks[3].one
    units = choose_units(model)
    assert "blocks.3" not in units
    assert "blocks.3.one" in units


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_parallel_fsdp_chooses_the_wrapper_and_its_precision(monkeypatch, precision):
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = wrapper_config(
        Config({"parallel": "fsdp", "precision": precision, "model_wrapper_cfg": {"units": ["net"]}})
    )
    assert config["type"].__name__ == "RemasteredFSDP"
    assert {key: value for key, value in config.items() if key != "type"} == {"units": ["net"], "precision": precision}
    with pytest.raises(ConfigError, match='compile and parallel = "fsdp" exclude each other; remove compile, or use'):
        wrapper_config(Config({"parallel": "fsdp", "compile": {"mode": "default"}}))
    with pytest.raises(ConfigError, match='find_unused_parameters and parallel = "fsdp" exclude each other'):
        wrapper_config(Config({"parallel": "fsdp", "find_unused_parameters": True}))


class Trained(Stack):
    def train_step(self, data, optim_wrapper):
        return {}


def test_what_cannot_be_cut_is_refused_before_any_process_waits_for_another():
    model = Trained()
    with pytest.raises(
        ConfigError, match=r"units names 'block', which is no module of Trained\. Did you mean blocks\?"
    ):
        RemasteredFSDP(model, units=["block"])
    with pytest.raises(ConfigError, match="units names 'blocks', a container that is never called; name its modules"):
        RemasteredFSDP(model, units=["blocks"])
    with pytest.raises(ConfigError, match="precision: 'bf61' is none of fp32, bf16, fp16"):
        RemasteredFSDP(model, precision="bf61")
    with pytest.raises(ConfigError, match=r"Stack has no train_step\(data, optim_wrapper\)"):
        RemasteredFSDP(Stack())
    with pytest.raises(ConfigError, match="Trained has no parameter that needs a gradient"):
        RemasteredFSDP(Trained().requires_grad_(False))
    model.temperature = nn.Parameter(torch.tensor(1.0))
    message = r"the parameter temperature of Trained is a single number without axes.* Give it the shape \(1,\)"
    with pytest.raises(ConfigError, match=message):
        RemasteredFSDP(model)


@pytest.mark.parametrize(
    "precision,device,in_hardware,usable",
    [
        (None, "cpu", True, "fp32"),
        ("bf16", "cpu", True, "bf16"),
        ("bf16", "cpu", False, "fp32"),
        ("fp16", "cpu", True, "fp32"),
        ("bf16", "cuda", False, "bf16"),
        ("fp16", "cuda", False, "fp16"),
    ],
)
def test_the_precision_is_what_the_device_is_good_at(monkeypatch, precision, device, in_hardware, usable):
    monkeypatch.setattr(precision_module, "cpu_has_bf16", lambda: in_hardware)
    assert precision_module.usable_precision(precision, device) == usable


def test_the_documented_names_are_there():
    from mmengine.registry import STRATEGIES as engine_strategies

    from itkit.mm import mmeng_PlugIn
    from itkit.registry import MODEL_WRAPPERS, STRATEGIES

    assert MODEL_WRAPPERS.get("itkit.RemasteredFSDP") is mmeng_PlugIn.RemasteredFSDP
    assert STRATEGIES.get("itkit.RemasteredFSDP_Strategy") is mmeng_PlugIn.RemasteredFSDP_Strategy
    assert engine_strategies.get("RemasteredFSDP_Strategy") is mmeng_PlugIn.RemasteredFSDP_Strategy
    assert issubclass(mmeng_PlugIn.RemasteredFSDP, torch.nn.Module)
