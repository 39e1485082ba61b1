"""Neighbourhood attention: equal to a plain loop over pixels, to full attention on one window, and to natten's call."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from itkit.errors import ConfigError
from itkit.ops import neighbourhood
from itkit.ops.neighbourhood import neighbourhood_attention


def tensors(height, width, heads=2, depth=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, height, width, heads, depth, generator=generator, dtype=torch.float64) for _ in range(3)]


def plain_loop(query, key, value, kernel, bias):
    answer = torch.empty_like(value)
    n, height, width, heads, depth = query.shape
    for y in range(height):
        for x in range(width):
            top, left = min(max(y - kernel // 2, 0), height - kernel), min(max(x - kernel // 2, 0), width - kernel)
            window = (slice(None), slice(top, top + kernel), slice(left, left + kernel))
            scores = torch.einsum("nhd,nijhd->nijh", query[:, y, x], key[window]) / depth**0.5
            if bias is not None:
                down, right = top - y + kernel - 1, left - x + kernel - 1
                scores = scores + bias[:, down : down + kernel, right : right + kernel].permute(1, 2, 0)
            weights = scores.reshape(n, -1, heads).softmax(1).reshape(scores.shape)
            answer[:, y, x] = torch.einsum("nijh,nijhd->nhd", weights, value[window])
    return answer


@pytest.mark.parametrize("kernel, size", [(1, (2, 3)), (3, (3, 3)), (3, (4, 7)), (5, (6, 5))])
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_a_plain_loop(kernel, size, with_bias):
    parts = tensors(*size)
    edge = 2 * kernel - 1
    bias = torch.randn(2, edge, edge, dtype=torch.float64) if with_bias else None
    torch.testing.assert_close(neighbourhood_attention(*parts, kernel, bias), plain_loop(*parts, kernel, bias))


def test_one_window_is_full_attention():
    query, key, value = tensors(3, 3)
    flat = [part.flatten(1, 2).transpose(1, 2) for part in (query, key, value)]
    full = F.scaled_dot_product_attention(*flat).transpose(1, 2).reshape(value.shape)
    torch.testing.assert_close(neighbourhood_attention(query, key, value, 3), full)


@pytest.mark.parametrize("kernel, size", [(2, (4, 4)), (3, (2, 5)), (0, (4, 4))])
def test_a_window_that_does_not_fit_is_refused(kernel, size):
    with pytest.raises(ConfigError, match=rf"window of {kernel} and a map of \({size[0]}, {size[1]}\)"):
        neighbourhood_attention(*tensors(*size), kernel)


class OnGPU(torch.Tensor):
    """A tensor that says it lies on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("depth, bias, called", [(8, False, True), (4, False, False), (8, True, False)])
def test_natten_is_called_where_it_can(monkeypatch, depth, bias, called):
    calls = []

    def na2d(query, key, value, kernel):
        calls.append(kernel)
        return value

    monkeypatch.setattr(neighbourhood, "_natten", lambda: SimpleNamespace(na2d=na2d))
    parts = tensors(4, 4, depth=depth)
    parts[0] = parts[0].as_subclass(OnGPU)
    neighbourhood_attention(*parts, 3, torch.zeros(2, 5, 5, dtype=torch.float64) if bias else None)
    assert calls == [3] * called
