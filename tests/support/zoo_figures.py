"""Compare networks of the zoo with the figures of the originals: keys, shapes, parameters, operations, outputs.

The figures lie in ``tests/golden/networks/<module>.json``, made by ``tools/copy_network_figures.py``. The parameters and the
inputs behind the outputs follow a rule on names and shapes alone, so that a network with the original's keys gets the same
numbers whatever its order or its initialisation.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

FOLDER = Path(__file__).resolve().parents[1] / "golden/networks"
REFERENCE = Path(os.environ.get("ITKIT_SHARED", FOLDER.parents[3] / "shared")) / "networks"
SAMPLES = 16
CONVOLUTIONS_AND_PRODUCTS = ("conv", "linear", "matmul", "bmm", "baddbmm", "addmm", "einsum")


def card_of(module: str):
    """Return the card of ``itkit.models.<module>``."""
    return importlib.import_module(f"itkit.models.{module}").CARD


def figures_of(module: str) -> dict[str, dict]:
    """Return the figures of a module's configurations: parameters, state (a checksum), golden where there is one."""
    return json.loads((FOLDER / f"{module}.json").read_text(encoding="utf-8"))


def with_outputs(module: str) -> list[str]:
    """Return the names of the configurations whose outputs are known."""
    return [name for name, figures in figures_of(module).items() if "golden" in figures]


def state_checksum(shapes: dict[str, list[int]]) -> str:
    """Return the SHA-256 of the sorted lines ``key shape``."""
    lines = sorted(f"{key} {list(map(int, shape))}" for key, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def shapes_of(net: nn.Module) -> dict[str, list[int]]:
    """Return the shape of every entry of the state dict."""
    return {key: list(value.shape) for key, value in net.state_dict().items()}


def build_without_memory(module: str, name: str) -> nn.Module:
    """Return a configuration on the meta device."""
    card = card_of(module)
    with torch.device("meta"):
        return card.build(card.configurations[name].arguments)


def check_state(module: str, name: str) -> None:
    """Assert that a configuration has the original's keys, shapes and number of parameters."""
    net, figures = build_without_memory(module, name), figures_of(module)[name]
    made = card_of(module).configurations[name]
    manifest = REFERENCE / f"{figures['network']}.json"
    if manifest.exists():
        stated = json.loads(manifest.read_text(encoding="utf-8"))[name]
        assert shapes_of(net) == stated["tensors"]
        assert figures["parameters"] == stated["params"]
        cost = stated.get("macs_G")
        assert not cost or made.gmacs == pytest.approx(cost["conv_matmul_GMACs"], rel=1e-6)
    assert state_checksum(shapes_of(net)) == figures["state"]
    assert sum(p.numel() for p in net.parameters()) == figures["parameters"] == made.parameters


def check_all_configurations_are_there(module: str) -> None:
    """Assert that the card knows the configurations of the figures, and of the reference where it is here."""
    figures = figures_of(module)
    assert set(card_of(module).configurations) == set(figures)
    for network in {entry["network"] for entry in figures.values()}:
        manifest = REFERENCE / f"{network}.json"
        if manifest.exists():  # some families of the reference are two modules here
            known = {name for path in FOLDER.glob("*.json") for name in figures_of(path.stem)}
            assert set(json.loads(manifest.read_text(encoding="utf-8"))) <= known


def rule_values(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the float32 values of the entry `key` of a state dict."""
    normal = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(math.prod(shape)).reshape(shape)
    last = key.rpartition(".")[2]
    if last == "running_var":
        normal = 1.0 + 0.1 * np.abs(normal)
    elif last.endswith("weight") and len(shape) == 1:
        normal = 1.0 + 0.1 * normal
    elif last.endswith("weight") and len(shape) > 1:
        normal = normal / math.sqrt(math.prod(shape[1:]))
    else:
        normal = 0.1 * normal
    return normal.astype(np.float32)


def fill(net: nn.Module) -> nn.Module:
    """Give every parameter and every running mean and variance the value of the rule; return `net`."""
    for key, value in sorted(net.state_dict(keep_vars=True).items()):
        running = key.rpartition(".")[2] in ("running_mean", "running_var")
        if value.is_floating_point() and (isinstance(value, nn.Parameter) or running):
            value.data.copy_(torch.from_numpy(rule_values(key, tuple(value.shape))))
    return net


def image(shape: list[int], seed: int = 0) -> torch.Tensor:
    """Return the input number `seed` of a golden run."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32))


def flat(answer) -> list[torch.Tensor]:
    """Return the tensors of an answer, depth first."""
    if isinstance(answer, torch.Tensor):
        return [answer]
    return [tensor for part in (answer.values() if isinstance(answer, dict) else answer) for tensor in flat(part)]


def check_outputs(module: str, name: str) -> None:
    """Assert that a configuration, filled by the rule, answers like the original."""
    card = card_of(module)
    compare_outputs(card.build(card.configurations[name].arguments), figures_of(module)[name]["golden"])


def compare_outputs(net: nn.Module, golden: dict) -> None:
    """Assert that `net`, filled by the rule, gives the stated outputs; tolerance in parts of their standard deviation."""
    fill(net).eval()
    with torch.no_grad():
        answers = flat(net(*(image(shape, i) for i, shape in enumerate(golden["inputs"]))))
    assert [list(answer.shape) for answer in answers] == [stated["shape"] for stated in golden["outputs"]]
    for place, (answer, stated) in enumerate(zip(answers, golden["outputs"], strict=True)):
        values = answer.double().flatten()
        index = np.random.RandomState(1).randint(0, values.numel(), SAMPLES)
        found = [*values[index].tolist(), values.mean().item(), values.std(correction=0).item()]
        tolerance = max(2e-4, 20 * golden["noise"]) * max(stated["std"], 1e-6)
        expected = [*stated["values"], stated["mean"], stated["std"]]
        assert found == pytest.approx(expected, abs=tolerance, rel=0), f"output {place}"


def gmacs(module: str, name: str) -> float:
    """Return 10^9 multiply-adds of a configuration at its canonical input, as torch counts them, without memory."""
    net, size = build_without_memory(module, name).eval(), card_of(module).configurations[name].input_size
    with FlopCounterMode(display=False) as count, torch.no_grad():
        net(torch.empty(1, *size, device="meta"))
    return count.get_total_flops() / 2e9


def network_gmacs(net: nn.Module, images: torch.Tensor) -> float:
    """Return 10^9 multiply-adds of convolutions and matrix products, as fvcore counts them."""
    from fvcore.nn import FlopCountAnalysis

    count = FlopCountAnalysis(net.eval(), images).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_operator = count.by_operator()
    return sum(by_operator[operator] for operator in CONVOLUTIONS_AND_PRODUCTS) / 1e9
