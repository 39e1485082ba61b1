"""Golden numbers of SubvoxelUNet: parameter counts and outputs that published recipes rely on."""

from __future__ import annotations

import pytest
import torch

from itkit.models import SubvoxelUNet

SHUFFLE = {"upsample": "shuffle", "merge": "add"}


@pytest.mark.parametrize(
    "arguments, parameters",
    [
        ({}, 1_687_576),
        (SHUFFLE, 1_610_584),
        ({"widths": (24, 48, 96)}, 951_000),
        ({"widths": (24, 48, 96), **SHUFFLE}, 907_656),
    ],
    ids=str,
)
def test_parameter_counts(arguments, parameters):
    with torch.device("meta"):
        net = SubvoxelUNet(3, 1, 3, **arguments)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize(
    "arguments, value",
    [({}, [0.032491, 0.340392, 0.605616]), (SHUFFLE, [-0.049123, 0.272688, 0.078558])],
    ids=["cat", "shuffle"],
)
def test_output_for_a_seed(arguments, value):
    torch.manual_seed(0)
    net = SubvoxelUNet(3, 1, 3, **arguments).eval()
    x = torch.linspace(-1, 1, 16 * 24 * 16).reshape(1, 1, 16, 24, 16)
    with torch.no_grad():
        y = net(x)
    found = [y.mean().item(), y.std().item(), y[0, 2, 5, 7, 11].item()]
    assert found == pytest.approx(value, abs=1e-4)
