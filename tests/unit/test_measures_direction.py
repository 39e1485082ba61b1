"""One rule says whether small values are good: for best checkpoints, early stops, tables and reports."""

from __future__ import annotations

import pytest

from itkit.measures.direction import lower_is_better


@pytest.mark.parametrize(
    "name", ["HD95", "HD", "hd95", "ASSD", "test/HD", "HD95/liver", "loss", "val/loss", "mae", "MSE", "error"]
)
def test_distances_losses_and_errors(name):
    assert lower_is_better(name)


@pytest.mark.parametrize("name", ["Dice", "IoU", "NSD", "Precision", "Recall", "Dice/head", "accuracy"])
def test_fractions(name):
    assert not lower_is_better(name)
