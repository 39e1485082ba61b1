"""Laws of the selective scan: it is the sequential recurrence, however the work is divided, forwards and in its gradients."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from sequential_scan import scan_tensors, sequential_scan

from itkit.ops import cross_scan, selective_scan
from itkit.ops.causal_convolution import causal_convolution

sizes = st.tuples(*(st.integers(1, most) for most in (3, 3, 5, 4, 40)))
"""Samples, groups, channels of a group, states, positions."""
plans = st.builds(
    selective_scan._Plan, st.tuples(*(st.integers(1, most) for most in (3, 3, 5))), st.integers(1, 5), st.integers(1, 9)
)
seeds = st.integers(0, 2**16)


@contextmanager
def divided(plan):
    with mock.patch.object(selective_scan, "_plan", return_value=plan):
        yield


def compare(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@settings(max_examples=60, deadline=None)
@given(size=sizes, seed=seeds, plan=plans, uses=st.tuples(*[st.booleans()] * 4), channels_last=st.booleans())
def test_it_is_the_sequential_recurrence(size, seed, plan, uses, channels_last):
    u, delta, A, B, C, D, z, bias = scan_tensors(*size, seed)
    skip, gate, shift, softplus = uses
    if not softplus:
        delta, bias = delta.abs(), bias.abs()
    rest = (D if skip else None, z if gate else None, bias if shift else None, softplus)
    expected = sequential_scan(u, delta, A, B, C, *rest)
    if channels_last:
        u, delta, B, C = (part.transpose(-2, -1).contiguous().transpose(-2, -1) for part in (u, delta, B, C))
    with divided(plan):
        compare(selective_scan.selective_scan(u, delta, A, B, C, *rest, return_last_state=True), expected)


@settings(max_examples=40, deadline=None)
@given(size=sizes, seed=seeds, plan=plans, with_last=st.booleans())
def test_its_gradients_are_those_of_the_sequential_recurrence(size, seed, plan, with_last):
    gradients = []
    for scan in (lambda *x: selective_scan._scan(*x)[:2], sequential_scan):
        u, delta, *rest = scan_tensors(*size, seed)[:5]
        inputs = [part.requires_grad_() for part in (u, delta.abs(), *rest)]
        with divided(plan):
            y, last = scan(*inputs)
            loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
            loss = loss + last.square().sum() if with_last else loss
            gradients.append(torch.autograd.grad(loss, inputs))
    compare(*gradients)


@settings(max_examples=30, deadline=None)
@given(size=sizes, seed=seeds, chunk=st.integers(2, 9), few=st.sampled_from([0, 2**17]))
def test_the_graph_of_few_operations_is_the_same(size, seed, chunk, few):
    u, delta, *rest = scan_tensors(*size, seed)[:5]
    with mock.patch.multiple(selective_scan, CHUNK=chunk, FEW_STATES=few):
        found = selective_scan._scan_as_graph(u, delta.abs(), *rest)
    compare(found, sequential_scan(u, delta.abs(), *rest))


@settings(max_examples=30, deadline=None)
@given(size=sizes, seed=seeds, plan=plans, cut=st.integers(0, 40))
def test_an_output_depends_on_nothing_after_it(size, seed, plan, cut):
    u, delta, A, B, C = scan_tensors(*size, seed)[:5]
    cut = min(cut, size[-1])
    with divided(plan):
        whole = selective_scan._scan(u, delta.abs(), A, B, C)[0][..., :cut]
        for part in (u, delta, B, C):
            part[..., cut:] = 7.0
        torch.testing.assert_close(selective_scan._scan(u, delta.abs(), A, B, C)[0][..., :cut], whole, rtol=0, atol=0)


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(*(st.integers(1, most) for most in (2, 3, 6, 7))), seed=seeds)
def test_every_path_visits_every_pixel_and_comes_back(shape, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    paths = cross_scan.cross_scan(x)
    assert torch.equal(paths.sort(-1).values, x.flatten(2).sort(-1).values.unsqueeze(1).expand_as(paths))
    torch.testing.assert_close(cross_scan.cross_merge(paths, shape[2:]), 4 * x, rtol=1e-15, atol=0)


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 12), width=st.integers(1, 5), seed=seeds)
def test_a_causal_convolution_is_a_sum_over_the_past(length, width, seed):
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 3, length), (3, width), (3,))
    )
    expected = bias[:, None].expand_as(x).clone()
    for t in range(length):
        for back in range(min(width, t + 1)):
            expected[..., t] += weight[:, width - 1 - back] * x[..., t - back]
    torch.testing.assert_close(causal_convolution(x, weight, bias), expected)
    torch.testing.assert_close(causal_convolution(x, weight, bias, silu=True), expected * expected.sigmoid())
