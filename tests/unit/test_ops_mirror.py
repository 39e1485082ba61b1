"""Test-time mirroring."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from itkit.errors import ConfigError
from itkit.ops.mirror import mirror_groups, mirrored_inference
from itkit.ops.sliding_window import sliding_window_inference


def test_all_combinations_of_axes_or_the_listed_groups():
    assert mirror_groups((0, 2), 3) == [(), (0,), (2,), (0, 2)]
    assert len(mirror_groups((0, 1, 2), 3)) == 8
    assert mirror_groups([(2,), (2, 1), ()], 3) == [(), (2,), (1, 2)]
    assert mirror_groups((), 3) == [()]


def test_a_network_that_commutes_with_mirroring_is_unchanged():
    inputs = torch.randn(2, 3, 4, 5, 6)
    torch.testing.assert_close(mirrored_inference(torch.tanh, inputs, (0, 1, 2)), inputs.tanh())


def test_mean_of_the_mirrored_back_answers():
    ramp = torch.arange(4.0)
    result = mirrored_inference(lambda x: x + ramp, torch.zeros(1, 1, 2, 4), (1,))
    torch.testing.assert_close(result, torch.full((1, 1, 2, 4), 1.5))


@pytest.mark.parametrize("classes", [1, 3])
def test_mean_of_probabilities(classes):
    generator = torch.Generator().manual_seed(0)
    position = torch.randn(1, classes, 1, 6, generator=generator) * 3
    inputs = torch.randn(2, classes, 5, 6, generator=generator)
    to_probability = torch.sigmoid if classes == 1 else partial(torch.softmax, dim=1)
    result = mirrored_inference(lambda x: x + position, inputs, [(1,)], average="probabilities")
    expected = (to_probability(inputs + position) + to_probability(inputs + position.flip(3))) / 2
    torch.testing.assert_close(to_probability(result), expected)


def test_mirrors_each_window_of_a_sliding_window():
    inputs = torch.randn(1, 1, 9, 7)
    forward = partial(mirrored_inference, torch.exp, flip_axes=(0, 1))
    torch.testing.assert_close(sliding_window_inference(inputs, forward, patch_size=4), inputs.exp())


@pytest.mark.parametrize(
    "axes, average, message",
    [
        ((3,), "logits", r"spatial axes \[3\], which do not exist in 2D; choose from \[0, 1\]"),
        ([0, (1,)], "logits", "mixes axes and groups"),
        ((0,), "votes", "average 'votes' .* choose one of logits, probabilities"),
    ],
)
def test_what_cannot_work_is_refused(axes, average, message):
    with pytest.raises(ConfigError, match=message):
        mirrored_inference(torch.exp, torch.zeros(1, 1, 2, 2), axes, average=average)
