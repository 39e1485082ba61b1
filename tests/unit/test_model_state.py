"""Whole states of models and optimizers on one process, and how a weight is cut into parts and put together."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from itkit.errors import CheckpointError
from itkit.mm import model_state
from itkit.registry import MODEL_WRAPPERS


class Net(nn.Module):
    """Tied weights, a frozen one, and a buffer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
        self.last.weight = self.first.weight
        self.frozen = nn.Linear(3, 1).requires_grad_(False)
        self.norm = nn.BatchNorm1d(3)

    @property
    def broken(self):
        return self.nothing.at_all

    def forward(self, x):
        return self.frozen(self.norm(self.last(self.first(x)))).square().mean()


class Shell(nn.Module):
    is_shell = True

    def __init__(self, module):
        super().__init__()
        self.module = module


@MODEL_WRAPPERS.register_module(force=True)
class PlainWrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


def train(net: nn.Module, wrapper: OptimWrapper, steps: int = 2) -> None:
    for seed in range(steps):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        wrapper.update_params(net(x))


def adam(net: nn.Module) -> OptimWrapper:
    return OptimWrapper(torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.1))


@pytest.fixture
def group():
    """Start a group of which only one member is there, as ``group(rank, size)``; it is left at the end."""

    def start(rank: int, size: int):
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
        return init_device_mesh("cpu", (size,))

    yield start
    if dist.is_initialized():
        dist.destroy_process_group()


# ---- plain models ----


@pytest.mark.parametrize("wrap", [lambda m: m, PlainWrapper, lambda m: PlainWrapper(Shell(m))])
def test_names_are_those_of_the_bare_model_and_values_are_copies(wrap):
    net = Net()
    wrapped = wrap(net)
    assert model_state.unwrap(wrapped) is net
    state = model_state.full_model_state(wrapped)
    assert list(state) == list(net.state_dict())
    before = {name: tensor.clone() for name, tensor in state.items()}
    train(net, adam(net))
    assert all(torch.equal(before[name], state[name]) for name in state)
    assert not torch.equal(state["first.weight"], net.first.weight)
    assert state["first.weight"] is state["last.weight"]
    model_state.load_model_state(wrapped, state)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert net.first.weight.data_ptr() != state["first.weight"].data_ptr()


def test_training_goes_on_from_states_as_if_nothing_had_happened():
    one = Net()
    wrapper = adam(one)
    train(one, wrapper)
    weights, optimizer = model_state.full_model_state(one), model_state.full_optimizer_state(one, wrapper)
    other = Net()
    resumed = adam(other)
    model_state.load_model_state(other, weights)
    model_state.load_optimizer_state(other, resumed, optimizer)
    kept = {key: value.clone() for key, value in optimizer["state"][0].items()}
    train(one, wrapper), train(other, resumed)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert all(torch.equal(kept[key], value) for key, value in optimizer["state"][0].items())


def test_several_optimizers_are_loaded_by_name():
    net = Net()
    wrappers = OptimWrapperDict(
        a=OptimWrapper(torch.optim.SGD(net.first.parameters(), lr=0.1, momentum=0.9)), b=adam(net)
    )
    for wrapper in wrappers.optim_wrappers.values():
        train(net, wrapper)
    state = model_state.full_optimizer_state(net, wrappers)
    other = OptimWrapperDict(a=OptimWrapper(torch.optim.SGD(net.first.parameters(), lr=0.1, momentum=0.9)), b=adam(net))
    model_state.load_optimizer_state(net, other, state)
    found = other.optim_wrappers["a"].optimizer.state[net.first.weight]["momentum_buffer"]
    assert torch.equal(found, state["a"]["state"][0]["momentum_buffer"])


def test_an_optimizer_of_another_model_is_refused():
    net = Net()
    state = model_state.full_optimizer_state(net, adam(net))
    with pytest.raises(
        CheckpointError, match=r"state is of 5 parameters in groups of \[5\], the optimizer has 2 in groups of \[2\]"
    ):
        model_state.load_optimizer_state(net, OptimWrapper(torch.optim.AdamW(net.last.parameters())), state)


def test_how_a_weight_is_computed_stays_a_matter_of_the_running_optimizer():
    net = Net()
    saved = OptimWrapper(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, fused=True))
    running = OptimWrapper(torch.optim.SGD(net.parameters(), lr=0.2, foreach=True))
    model_state.load_optimizer_state(net, running, model_state.full_optimizer_state(net, saved))
    (group,) = running.optimizer.param_groups
    assert (group["lr"], group["momentum"]) == (0.1, 0.9)
    assert (group["foreach"], group["fused"]) == (True, None)


@pytest.mark.parametrize("bad,finite", [(0.0, True), (float("nan"), False), (float("inf"), False)])
def test_is_finite(bad, finite):
    net = Net()
    with torch.no_grad():
        net.last.bias[1] = bad
    assert model_state.is_finite(net) is finite


def test_an_error_inside_a_property_is_not_hidden():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        model_state.attribute_of(Net(), "broken")
    with pytest.raises(AttributeError, match="has no attribute 'missing'"):
        model_state.attribute_of(Net(), "missing")


def test_a_plain_model_is_always_whole():
    net = Net()
    with model_state.as_trained(net), model_state.whole_to_change(net):
        assert model_state.whole(net.first.weight) is net.first.weight is model_state.local(net.first.weight)
        assert model_state.joined(net.first.weight, net.first.weight) is net.first.weight


# ---- parts ----


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(1, 6), st.integers(0, 2))
def test_parts_of_all_processes_are_the_tensor(shape, count, axis):
    tensor = torch.randn(shape)
    axis = min(axis, len(shape) - 1)
    parts = []
    try:
        for rank in range(count):
            dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=count)
            mesh = init_device_mesh("cpu", (count,))
            own = list(torch.chunk(tensor, count, dim=axis))
            own += [tensor.narrow(axis, 0, 0)] * (count - len(own))
            like = DTensor.from_local(
                own[rank], mesh, [Shard(axis)], run_check=False, shape=tensor.shape, stride=tensor.stride()
            )
            part = model_state.part_of(tensor, like)
            assert part.shape == model_state.local(like).shape
            assert model_state.joined(part, like).shape == tensor.shape
            parts.append(part)
            dist.destroy_process_group()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    assert torch.equal(torch.cat(parts, dim=axis), tensor)
    assert all(part.data_ptr() != tensor.data_ptr() for part in parts if part.numel())


def test_an_unknown_way_to_cut_is_refused(group):
    like = DTensor.from_local(torch.zeros(2, 2), group(0, 2), [Replicate()], run_check=False)
    with pytest.raises(CheckpointError, match="only one sharded axis can be read back"):
        model_state.part_of(torch.zeros(2, 2), like)
