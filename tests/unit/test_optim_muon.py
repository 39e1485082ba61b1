"""Muon: its updates are orthogonal, its AdamW half is PyTorch's, and its state survives a checkpoint."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from itkit.errors import ConfigError
from itkit.mm import checkpoints
from itkit.mm.muon import Muon, MuonOptimWrapperConstructor, orthogonalise


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 60), st.integers(0, 1000))
def test_orthogonalised_has_the_singular_vectors_of_the_matrix_and_values_near_one(rows, columns, seed):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    in_basis = u.T @ orthogonalise(matrix) @ v.T
    off_diagonal = in_basis - torch.diag(in_basis.diagonal())
    assert off_diagonal.abs().max() < 1e-6
    strong = s > 0.02 * s.norm()
    assert ((in_basis.diagonal()[strong] - 1).abs() < 0.35).all()


def test_size_of_an_update_is_the_learning_rate():
    weight = nn.Parameter(torch.randn(8, 4, 3, 3, 3))
    before = weight.detach().clone()
    optimizer = Muon([weight], lr=0.1)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    values = torch.linalg.svdvals((weight.detach() - before).flatten(1))
    assert values.max() < 0.1 * 1.35
    assert values.min() > 0.1 * 0.65


def test_adamw_half_equals_pytorch():
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(7)), None
    theirs = nn.Parameter(ours.detach().clone())
    a = Muon([{"params": [ours], "method": "adamw"}], adamw_lr=0.01, weight_decay=0.1, betas=(0.8, 0.95))
    b = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, betas=(0.8, 0.95))
    for step in range(5):
        gradient = torch.randn(7, generator=torch.Generator().manual_seed(step))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step(), b.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1))


def test_resumed_from_a_file_equals_uninterrupted_to_the_bit(tmp_path):
    def train(model, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            model(torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            optimizer.step()

    one = network()
    train(one, Muon(one.parameters()), range(6))
    two = network()
    first = Muon(two.parameters())
    train(two, first, range(3))
    checkpoints.save(checkpoints.plain(first.state_dict()), tmp_path / "o.pth")
    three = copy.deepcopy(two)
    second = Muon(three.parameters())
    second.load_state_dict(checkpoints.load(tmp_path / "o.pth"))
    train(three, second, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), three.parameters(), strict=True))


def test_constructor_sends_each_parameter_its_way():
    model = nn.ModuleDict(
        {"stem": nn.Conv2d(1, 4, 3), "body": nn.Conv2d(4, 4, 3), "norm": nn.GroupNorm(2, 4), "head": nn.Conv2d(4, 2, 1)}
    )
    wrapper = MuonOptimWrapperConstructor(dict(optimizer=dict(type="Muon", lr=0.04, weight_decay=0.02, adamw_lr=1e-3)))(
        model
    )
    ways = {id(p): g for g in wrapper.optimizer.param_groups for p in g["params"]}
    assert {
        n: (ways[id(p)]["method"], ways[id(p)]["lr"], ways[id(p)]["weight_decay"]) for n, p in model.named_parameters()
    } == {
        "stem.weight": ("adamw", 1e-3, 0.02),
        "stem.bias": ("adamw", 1e-3, 0.0),
        "body.weight": ("muon", 0.04, 0.02),
        "body.bias": ("adamw", 1e-3, 0.0),
        "norm.weight": ("adamw", 1e-3, 0.0),
        "norm.bias": ("adamw", 1e-3, 0.0),
        "head.weight": ("adamw", 1e-3, 0.02),
        "head.bias": ("adamw", 1e-3, 0.0),
    }


def test_impossible_arguments_are_refused():
    weight = nn.Parameter(torch.zeros(3))
    with pytest.raises(ConfigError, match=r"lr = -1 is negative"):
        Muon([weight], lr=-1)
    with pytest.raises(ConfigError, match="method 'sgd' of a parameter group"):
        Muon([{"params": [weight], "method": "sgd"}])
    with pytest.raises(ConfigError, match="fewer than two axes is no matrix"):
        Muon([{"params": [weight], "method": "muon"}])
