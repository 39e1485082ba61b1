"""DconnNet costs what its original does; and its votes are those of a plain loop."""

from __future__ import annotations

import math

import pytest
import torch
from zoo_figures import (
    card_of,
    gmacs,
    network_gmacs,
)

from itkit.errors import ConfigError
from itkit.models import DconnNet
from itkit.models.dconnnet import DIRECTIONS, connectivity_logits
from itkit.models.zoo import reference

MODULE = "dconnnet"
CARD = card_of(MODULE)


@pytest.mark.parametrize("name", CARD.configurations)
def test_operations(name):
    assert gmacs(MODULE, name) == pytest.approx(CARD.configurations[name].gmacs, rel=0.03)


def test_operations_as_fvcore_counts_them_on_a_sixteenth_of_the_image():
    found = network_gmacs(reference("DconnNet_c4"), torch.zeros(1, 3, 64, 64))
    assert 16 * found == pytest.approx(6.2566, rel=0.03)


def test_votes_are_those_of_a_plain_loop():
    torch.manual_seed(0)
    connectivity = torch.randn(2, 16, 3, 4, dtype=torch.float64)
    probability = connectivity.sigmoid()
    found = connectivity_logits(connectivity)
    assert found.shape == (2, 2, 3, 4)
    for n, k, y, x in ((0, 0, 0, 0), (0, 1, 1, 2), (1, 1, 2, 3), (1, 0, 0, 1)):
        votes = [
            probability[n, 8 * k + i, y, x] * probability[n, 8 * k + 7 - i, y + dy, x + dx]
            for i, (dy, dx) in enumerate(DIRECTIONS)
            if 0 <= y + dy < 3 and 0 <= x + dx < 4
        ]
        mean = sum(votes).item() / len(votes)
        assert found[n, k, y, x].item() == pytest.approx(math.log(mean / (1 - mean)), rel=1e-9)


def test_extreme_connectivity_gives_finite_votes_and_gradients():
    connectivity = torch.tensor([-200.0, 200.0]).reshape(1, 1, 2, 1).repeat(1, 8, 1, 3).requires_grad_()
    votes = connectivity_logits(connectivity)
    votes.sum().backward()
    assert torch.isfinite(votes).all()
    assert torch.isfinite(connectivity.grad).all()


def test_classes_are_voted_from_the_connectivity_of_the_original():
    torch.manual_seed(0)
    arguments = {"in_channels": 1, "num_classes": 3, "width": 8, "blocks": (1, 1, 1, 1)}
    ours, original = DconnNet(**arguments).eval(), DconnNet(**arguments, connectivity=True).eval()
    original.load_state_dict(ours.state_dict())
    x = torch.randn(2, 1, 64, 64)
    main, prior = original(x)
    assert main.shape == prior.shape == (2, 24, 64, 64)
    assert torch.equal(ours(x), connectivity_logits(main))
    assert [tuple(y.shape) for y in ours.train()(x)] == [(2, 3, 64, 64)] * 2


def test_impossible_arguments_are_refused():
    with pytest.raises(ConfigError, match="width must be a multiple of 8, found 20"):
        DconnNet(width=20)
    with pytest.raises(ConfigError, match=r"blocks must be four positive numbers, found \(3, 4, 6\)"):
        DconnNet(blocks=(3, 4, 6))
    with pytest.raises(ConfigError, match=r"multiples of 32, found \(32, 48\)"):
        DconnNet()(torch.zeros(1, 3, 32, 48))
