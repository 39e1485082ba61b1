"""Laws of the pictures: the same body looks the same however its volume is stored."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itkit.experiment.charts import curve
from itkit.process.figures import cut_case


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)))
def test_all_48_orientations_give_the_same_picture(order, flips):
    rng = np.random.default_rng(3)
    image = rng.normal(size=(7, 9, 11))
    labels = np.zeros(image.shape, np.uint8)
    labels[1:3, 2:8, 5:9] = 1
    labels[2:6, 4, 7] = 2
    spacing = (3.0, 2.0, 1.0)
    turn = tuple(slice(None, None, flip) for flip in flips)
    direction = np.zeros((3, 3))
    for axis, source in enumerate(order):
        direction[2 - source, 2 - axis] = flips[axis]
    stored = cut_case(
        image.transpose(order)[turn],
        labels.transpose(order)[turn],
        classes=("a", "b", "c"),
        spacing_zyx=[spacing[axis] for axis in order],
        direction_xyz=direction.ravel(),
    )
    straight = cut_case(image, labels, classes=("a", "b", "c"), spacing_zyx=spacing, direction_xyz=np.eye(3).ravel())
    for one, other in zip(straight.planes, stored.planes, strict=True):
        np.testing.assert_array_equal(one.grey.shape, other.grey.shape)
        assert one.size_mm == other.size_mm
        assert one.letters == other.letters
        assert (one.truth > 0).any()
        assert (
            np.bincount(other.truth.ravel(), minlength=3).tolist()
            == np.bincount(one.truth.ravel(), minlength=3).tolist()
        )
    # labels above are such that no two slices tie for the most foreground in an even number
    for one, other in zip(straight.planes, stored.planes, strict=True):
        np.testing.assert_array_equal(one.truth, other.truth)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=40))
def test_a_curve_has_each_step_once_in_order_with_the_latest_value(steps):
    rows = [{"step": step, "split": "train", "loss": float(number)} for number, step in enumerate(steps)]
    points = curve(rows, "train", "loss")
    found = [step for step, _ in points]
    assert found == sorted(set(found))
    last = {step: float(number) for number, step in enumerate(steps)}
    assert all(value == last[step] for step, value in points)
    assert not steps or found[-1] == steps[-1]
