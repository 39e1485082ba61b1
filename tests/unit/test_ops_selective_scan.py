"""The selective scan: gradients by finite differences, memory, precision, extreme steps, kernels of others, refusals."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from sequential_scan import scan_tensors, sequential_scan

from itkit.errors import ConfigError
from itkit.ops import causal_convolution as convolution
from itkit.ops import selective_scan as module
from itkit.ops.cross_scan import cross_scan, cross_selective_scan
from itkit.ops.scan_parameters import initial_decays, initial_step_biases, initial_step_weights
from itkit.ops.selective_scan import selective_scan


@pytest.mark.parametrize("size", [(2, 1, 2, 3, 7), (1, 2, 1, 1, 33)])
def test_gradients_by_finite_differences(size):
    u, delta, *rest = scan_tensors(*size, seed=0)

    def scan(*inputs):
        return selective_scan(*inputs, delta_softplus=True, return_last_state=True)

    assert torch.autograd.gradcheck(scan, [part.requires_grad_() for part in (u, delta, *rest)])


def test_the_operation_keeps_what_pytorch_asks_of_operations():
    inputs = [part.requires_grad_() for part in scan_tensors(2, 2, 3, 4, 20, seed=0, dtype=torch.float32)[:5]]
    inputs[0] = torch.randn(2, 20, 6).transpose(1, 2).requires_grad_()
    assert set(torch.library.opcheck(module._scan, inputs).values()) == {"SUCCESS"}


def test_nothing_of_the_size_of_all_states_is_kept():
    batch, channels, states, length = 1, 96, 16, 2048
    inputs = [part.requires_grad_() for part in scan_tensors(batch, 1, channels, states, length, 0, torch.float32)]
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        selective_scan(*inputs, delta_softplus=True)
    of_an_input, of_all_states = 4 * channels * length, 4 * channels * length * states
    assert sum(kept.values()) < 8 * of_an_input < of_all_states
    states_kept = module._scan(*[part.detach() for part in inputs[:5]])[2]
    assert states_kept.numel() * 4 < of_all_states / 32


@pytest.mark.parametrize("size", [(1, 1, 96, 16, 4096), (1, 4, 96, 1, 3136)], ids=["16 states", "1 state"])
def test_single_precision_is_exact_to_its_rounding(size):
    single = scan_tensors(*size, seed=1, dtype=torch.float32)[:5]
    found = selective_scan(*single, delta_softplus=True)
    expected, _ = sequential_scan(*(part.double() for part in single), delta_softplus=True)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (found - expected).abs().mean() < 1e-6 * expected.std()


@pytest.mark.parametrize("step", [0.0, 1e-6, 50.0, 1e4])
def test_steps_of_any_length_stay_finite(step):
    u, delta, A, B, C = scan_tensors(1, 1, 4, 3, 300, seed=2)[:5]
    inputs = [part.requires_grad_() for part in (u, torch.full_like(delta, step), A, B, C)]
    y = selective_scan(*inputs)
    torch.testing.assert_close(y, sequential_scan(*inputs)[0])
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(y.sum(), inputs))
    torch.testing.assert_close(module._scan_as_graph(*inputs)[0], y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype):
    half = [part.to(dtype) for part in scan_tensors(2, 2, 3, 4, 200, seed=3)[:5]]
    found = selective_scan(*half, delta_softplus=True)
    assert found.dtype == dtype
    expected, _ = sequential_scan(*(part.double() for part in half), delta_softplus=True)
    torch.testing.assert_close(found, expected.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=1e-2)


def test_step_sizes_are_not_rounded_to_half_precision():
    u, delta, A, B, C = (part.bfloat16() for part in scan_tensors(1, 1, 8, 3, 200, seed=3)[:5])
    inputs = (u, torch.full_like(delta, -2.5), A, B, C)  # softplus(-2.5), rounded to bfloat16, is 0.27 % too small
    found = selective_scan(*inputs, delta_softplus=True)
    expected, _ = sequential_scan(*(part.double() for part in inputs), delta_softplus=True)
    assert ((found * expected).sum() / expected.square().sum()).item() == pytest.approx(1, abs=0.0005)


def test_autocast_does_not_reach_into_the_scan():
    inputs = [part.requires_grad_() for part in scan_tensors(1, 2, 3, 4, 100, seed=4, dtype=torch.float32)[:5]]
    expected = selective_scan(*inputs, delta_softplus=True)
    gradients = torch.autograd.grad(expected.sum(), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = selective_scan(*inputs, delta_softplus=True)
        for one, other in zip(torch.autograd.grad(found.sum(), inputs), gradients, strict=True):
            torch.testing.assert_close(one, other)
    torch.testing.assert_close(found, expected)


def test_coefficients_may_serve_all_channels():
    u, delta, A, B, C = scan_tensors(2, 1, 4, 3, 9, seed=5)[:5]
    assert torch.equal(selective_scan(u, delta, A, B[:, 0], C[:, 0]), selective_scan(u, delta, A, B, C))


def test_a_plan_for_a_gpu_gives_the_same(monkeypatch):
    plan = module._plan
    inputs = scan_tensors(1, 1, 8, 2, 3000, seed=6)[:5]
    expected = selective_scan(*inputs, delta_softplus=True)
    monkeypatch.setattr(module, "_plan", lambda *sizes: plan(*sizes[:-1], "cuda"))
    assert module._plan_of(*inputs[::2][:2], inputs[3]).lanes > 100
    torch.testing.assert_close(selective_scan(*inputs, delta_softplus=True), expected)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("size", [(1, 1, 1, 1, 1), (8, 4, 1536, 16, 100), (1, 1, 96, 1, 262144), (1, 1, 96, 300, 5)])
def test_plans_cover_the_work(device, size):
    batch, groups, channels, states, length = size
    plan = module._plan(*size, device)
    assert plan.lanes >= 1
    assert plan.steps >= 1
    seen = torch.zeros(batch, groups, channels, dtype=torch.uint8)
    for tile in module._tiles((batch, groups, channels), plan.tile):
        seen[tile] += 1
    assert seen.unique().tolist() == [1]
    assert plan.block < length + plan.lanes


class OnGPU(torch.Tensor):
    """A tensor that says it lies on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("dtype, called", [(torch.float32, True), (torch.float64, False)])
def test_mamba_ssm_is_called_where_it_can(monkeypatch, dtype, called):
    calls = []

    def kernel(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state):
        calls.append((A.dtype, D, delta_softplus, return_last_state))
        return u

    monkeypatch.setattr(module, "_mamba_kernel", lambda: kernel)
    monkeypatch.setattr(module, "_plan_of", lambda u, A, B: module._Plan((1, 1, 2), 1, 4))
    u, *rest = scan_tensors(1, 1, 2, 3, 4, seed=0, dtype=dtype)[:5]
    selective_scan(u.as_subclass(OnGPU), *rest, delta_softplus=True)
    assert calls == [(torch.float32, None, True, False)] * called


def test_causal_conv1d_is_called_where_it_can(monkeypatch):
    calls = []

    def kernel(x, weight, bias, activation):
        calls.append(activation)
        return x

    monkeypatch.setattr(convolution, "_causal_kernel", lambda: kernel)
    x = torch.randn(1, 3, 5).as_subclass(OnGPU)
    convolution.causal_convolution(x, torch.randn(3, 4), silu=True)
    convolution.causal_convolution(x, torch.randn(3, 4))
    convolution.causal_convolution(x, torch.randn(3, 5))
    assert calls == ["silu", None]


@pytest.mark.parametrize("finder, package, inside", [
    (module._mamba_kernel, "mamba_ssm", "mamba_ssm.ops.selective_scan_interface"),
    (convolution._causal_kernel, "causal_conv1d", "causal_conv1d"),
])  # fmt: skip
def test_kernels_are_looked_up_once(monkeypatch, finder, package, inside):
    function = SimpleNamespace()
    for name in {package, inside}:
        fake = ModuleType(name)
        fake.__spec__ = SimpleNamespace()
        fake.selective_scan_fn = fake.causal_conv1d_fn = function
        monkeypatch.setitem(sys.modules, name, fake)
    finder.cache_clear()
    try:
        assert finder() is function
        monkeypatch.delitem(sys.modules, package)
        assert finder() is function
    finally:
        finder.cache_clear()


def test_an_image_is_scanned_along_rows_and_columns_both_ways():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert cross_scan(x)[0, :, 0].tolist() == [
        [0, 1, 2, 3, 4, 5],
        [0, 3, 1, 4, 2, 5],
        [5, 4, 3, 2, 1, 0],
        [5, 2, 4, 1, 3, 0],
    ]


def test_four_scans_are_four_sequential_ones():
    torch.manual_seed(0)
    channels, states, rank, size = 3, 2, 2, (4, 5)
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    weight, steps, bias = (
        torch.randn(4, rank + 2 * states, channels),
        torch.randn(4, channels, rank),
        torch.randn(4, channels),
    )
    logarithms, skip = torch.randn(4 * channels, states), torch.randn(4 * channels)
    parts = [part.double() for part in (weight, steps, bias, logarithms, skip)]
    found = cross_selective_scan(x, *parts)
    expected = torch.zeros_like(x)
    for i, (turned, backwards) in enumerate([(False, False), (True, False), (False, True), (True, True)]):
        image = x.transpose(2, 3) if turned else x
        sequence = image.flatten(2).flip(-1) if backwards else image.flatten(2)
        low, B, C = torch.einsum("pc,ncl->npl", parts[0][i], sequence).split([rank, states, states], 1)
        delta = torch.einsum("cr,nrl->ncl", parts[1][i], low)
        own = slice(i * channels, (i + 1) * channels)
        A, D = -parts[3][own].exp(), parts[4][own]
        y, _ = sequential_scan(sequence, delta, A, B[:, None], C[:, None], D, None, parts[2][i], True)
        y = (y.flip(-1) if backwards else y).view(2, channels, *image.shape[2:])
        expected += y.transpose(2, 3) if turned else y
    torch.testing.assert_close(found, expected)


def test_parameters_begin_as_published():
    torch.manual_seed(0)
    assert torch.equal(initial_decays(2, 3).exp().round(), torch.tensor([[1.0, 2, 3], [1, 2, 3]]))
    steps = F.softplus(initial_step_biases(4, 5000))
    assert steps.min() >= 0.001 * 0.999
    assert 0.0995 < steps.max() <= 0.1 * 1.001
    assert steps.log().mean().item() == pytest.approx((torch.tensor([0.001, 0.1]).log().mean()).item(), abs=0.02)
    weights = initial_step_weights(4, 500, 16)
    assert 0.249 < weights.abs().max() <= 0.25


def test_shapes_that_do_not_fit_are_refused():
    u, delta, A, B, C = scan_tensors(2, 2, 3, 4, 5, seed=0)[:5]
    with pytest.raises(ConfigError, match=r"u and delta must both be \(N, D, L\), found \(2, 6, 5\) and \(2, 6, 4\)"):
        selective_scan(u, delta[..., :4], A, B, C)
    with pytest.raises(ConfigError, match=r"A must be \(6, states\), found \(5, 4\)"):
        selective_scan(u, delta, A[:5], B, C)
    with pytest.raises(
        ConfigError, match=r"B and C must be \(2, groups, 4, 5\) .* divides 6, found \(2, 2, 4, 5\) and"
    ):
        selective_scan(u, delta, A, B, C[:, :1])
    four = B.repeat(1, 2, 1, 1)
    with pytest.raises(ConfigError, match=r"number of groups that divides 6"):
        selective_scan(u, delta, A, four, four)
