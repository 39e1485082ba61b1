"""The optimizer's constructor: what is trained, in which groups, with which factors, and what is refused."""

from __future__ import annotations

import mmengine.optim
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from torch import nn

from itkit.errors import ConfigError
from itkit.mm.hooks.runtime_info import ScalarHistory
from itkit.mm.optim import OptimWrapper, mgam_OptimWrapperConstructor


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv3d(1, 4, 3)
        self.norm = nn.InstanceNorm3d(4, affine=True)
        self.depthwise = nn.Conv3d(4, 4, 3, groups=4)
        self.head = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(4))
        self.stem_again = self.stem


ADAM = {"type": "AdamW", "lr": 0.1, "weight_decay": 0.5}


def build(paramwise: dict | None = None, net: nn.Module | None = None, optimizer: dict | None = None, **wrapper):
    cfg = {
        "constructor": "itkit.mgam_OptimWrapperConstructor",
        "optimizer": dict(optimizer or ADAM),
        "paramwise_cfg": paramwise,
        **wrapper,
    }
    return build_optim_wrapper(net or Net(), cfg)


def settings(wrapper, net: nn.Module) -> dict[str, tuple[float, float]]:
    names = {id(p): name for name, p in net.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in wrapper.optimizer.param_groups
        for p in group["params"]
    }


def test_frozen_parameters_are_not_there_and_shared_ones_once():
    net = Net()
    net.head.requires_grad_(False)
    wrapper = build(net=net)
    assert set(settings(wrapper, net)) == {n for n, p in net.named_parameters() if not n.startswith("head")}
    assert len(wrapper.optimizer.param_groups) == 1


def test_factors_by_kind_of_parameter_in_few_groups():
    net = Net()
    factors = {
        "norm_decay_mult": 0.0,
        "bias_decay_mult": 0.2,
        "bias_lr_mult": 2.0,
        "dwconv_decay_mult": 0.4,
        "flat_decay_mult": 0.6,
    }
    wrapper = build(factors, net)
    assert settings(wrapper, net) == {
        "scale": (0.1, pytest.approx(0.3)),
        "stem.weight": (0.1, 0.5),
        "stem.bias": (0.2, pytest.approx(0.1)),
        "norm.weight": (0.1, 0.0),
        "norm.bias": (0.1, 0.0),
        "depthwise.weight": (0.1, pytest.approx(0.2)),
        "depthwise.bias": (0.2, pytest.approx(0.1)),
        "head.weight": (0.1, 0.5),
        "head.bias": (0.2, pytest.approx(0.1)),
    }
    assert len(wrapper.optimizer.param_groups) == 5


def test_custom_keys_go_first_and_the_longest_wins():
    net = Net()
    wrapper = build({"custom_keys": {"stem": {"lr_mult": 0.1}, "stem.bias": {"decay_mult": 0}}, "bias_lr_mult": 3}, net)
    found = settings(wrapper, net)
    assert found["stem.weight"] == (pytest.approx(0.01), 0.5)
    assert found["stem.bias"] == (0.1, 0.0)
    assert found["head.bias"] == (pytest.approx(0.3), 0.5)


def test_fused_is_the_default_where_the_optimizer_has_it():
    assert build().optimizer.defaults["fused"] is True
    assert build(optimizer={**ADAM, "foreach": True}).optimizer.defaults["fused"] is None
    assert build(optimizer={**ADAM, "fused": False}).optimizer.defaults["fused"] is False
    assert "fused" not in build(optimizer={"type": "Adadelta", "lr": 1.0}).optimizer.defaults


def test_fused_steps_equal_plain_ones():
    def train(**options) -> torch.Tensor:
        torch.manual_seed(0)
        net = nn.Linear(5, 3)
        wrapper = build({"bias_decay_mult": 0}, net, {**ADAM, **options})
        data = torch.randn(8, 5)
        for _ in range(5):
            wrapper.update_params(net(data).square().mean())
        return net.weight.detach()

    assert torch.allclose(train(), train(fused=False, foreach=False), atol=1e-6)


def test_arguments_of_the_wrapper_arrive():
    wrapper = build(clip_grad={"max_norm": 1.0}, accumulative_counts=2)
    assert wrapper.clip_grad_kwargs == {"max_norm": 1.0}
    assert wrapper._accumulative_counts == 2


@pytest.mark.parametrize("clip", [{"max_norm": 0.1}, {"type": "value", "clip_value": 0.01}, None])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_our_wrapper_trains_exactly_like_mmengines(clip, accumulate):
    def train(kind) -> tuple:
        torch.manual_seed(0)
        net = nn.Linear(5, 3)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        wrapper = kind(optimizer, accumulative_counts=accumulate, clip_grad=None if clip is None else dict(clip))
        wrapper.message_hub = MessageHub("wrapper")
        wrapper.initialize_count_status(net, 0, 5)
        data = torch.randn(8, 5)
        for _ in range(5):
            wrapper.update_params(net(data).square().mean())
        scalars = {name: history.data[0].tolist() for name, history in wrapper.message_hub.log_scalars.items()}
        return net.weight.detach(), scalars

    ours, theirs = train(OptimWrapper), train(mmengine.optim.OptimWrapper)
    assert torch.equal(ours[0], theirs[0])
    assert ours[1] == theirs[1]
    assert bool(ours[1]) == (clip is not None and "max_norm" in clip)


def test_norm_of_the_gradients_goes_to_a_fast_history():
    wrapper = OptimWrapper(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1), clip_grad={"max_norm": 9.0})
    wrapper.message_hub = MessageHub("fast")
    wrapper.message_hub.log_scalars["train/grad_norm"] = ScalarHistory()
    wrapper.update_params(wrapper.optimizer.param_groups[0]["params"][0].sum())
    assert wrapper.message_hub.get_scalar("train/grad_norm").current() == pytest.approx(2**0.5)


@pytest.mark.parametrize(
    "paramwise, message",
    [
        ({"norm_decay_mul": 0}, r"unknown key 'norm_decay_mul'.*Did you mean norm_decay_mult\?"),
        ({"custom_keys": {"stem": {"lr_mul": 1}}}, r"custom key 'stem' has the unknown option 'lr_mul'.*lr_mult\?"),
        ({"bias_lr_mult": -1}, "bias_lr_mult must be a number, 0 or more, got -1"),
        ({"norm_decay_mult": "0"}, "norm_decay_mult must be a number, 0 or more, got '0'"),
        ({"custom_keys": {"stam": {"lr_mult": 2}}}, "custom key 'stam' is part of no trained parameter's name"),
    ],
)
def test_wrong_options_are_refused(paramwise, message):
    with pytest.raises(ConfigError, match=message):
        build(paramwise)


def test_factor_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="norm_decay_mult multiplies `weight_decay`, which the optimizer's config"):
        build({"norm_decay_mult": 0}, optimizer={"type": "SGD", "lr": 0.1})


def test_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match="Linear has no parameter that needs a gradient"):
        build(net=nn.Linear(1, 1).requires_grad_(False))


def test_missing_optimizer_is_refused():
    with pytest.raises(ConfigError, match="`optimizer` is missing"):
        mgam_OptimWrapperConstructor({"type": "OptimWrapper"})
