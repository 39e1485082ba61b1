"""A branch is left out for whole samples, in training alone, and its mean stays."""

from __future__ import annotations

import pytest
import torch

from itkit.ops.stochastic_depth import SkippedBranch


def test_whole_samples_are_left_out_and_the_mean_stays():
    torch.manual_seed(0)
    answer = SkippedBranch(0.25).train()(torch.ones(20_000, 2, 3))
    assert answer.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (answer == answer[:, :1, :1]).all()
    assert answer.mean().item() == pytest.approx(1, abs=0.02)


def test_nothing_is_left_out_in_evaluation_or_at_rate_0():
    x = torch.randn(8, 2)
    assert SkippedBranch(0.9).eval()(x) is x
    assert SkippedBranch(0.0).train()(x) is x
