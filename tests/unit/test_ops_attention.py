"""Attention over tokens is the published formula, fused or traced."""

from __future__ import annotations

import math

import pytest
import torch

from itkit.ops.attention import attend


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("form", [attend, None], ids=["fused", "traced"])
def test_against_a_loop_over_queries(scale, form):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 3, 5, 8, generator=generator)
    key, value = torch.randn(2, 3, 7, 8, generator=generator), torch.randn(2, 3, 7, 4, generator=generator)
    traced = torch.jit.trace(lambda q, k, v: attend(q, k, v, scale), (query, key, value))
    found = traced(query, key, value) if form is None else attend(query, key, value, scale)
    factor = 1 / math.sqrt(8) if scale is None else scale
    for n in range(2):
        for head in range(3):
            for i in range(5):
                weights = torch.stack([factor * query[n, head, i] @ k for k in key[n, head]]).exp()
                expected = (weights[:, None] * value[n, head]).sum(0) / weights.sum()
                torch.testing.assert_close(found[n, head, i], expected)


def test_a_bias_is_added_to_the_scores():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 3, 5, 8, generator=generator), torch.randn(2, 3, 7, 8, generator=generator)
    value, bias = torch.randn(2, 3, 7, 4, generator=generator), torch.randn(3, 5, 7, generator=generator)
    expected = torch.einsum("nhlm,nhme->nhle", (query @ key.mT / math.sqrt(8) + bias).softmax(-1), value)
    torch.testing.assert_close(attend(query, key, value, bias=bias), expected)
    traced = torch.jit.trace(lambda q, k, v, b: attend(q, k, v, bias=b), (query, key, value, bias))
    torch.testing.assert_close(traced(query, key, value, bias), expected)


def test_a_trace_holds_products_that_counters_know():
    q = torch.zeros(1, 1, 4, 2)
    assert "scaled_dot_product_attention" not in str(torch.jit.trace(attend, (q, q, q)).graph)
