"""Inverse normalised entropy: closed forms, SciPy as the oracle, sums that do not depend on the parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from itkit.measures.confidence import ConfidenceSums, inverse_entropy


def shares(classes, shape, seed=0):
    logits = np.random.default_rng(seed).normal(0, 3, (classes, *shape))
    exp = np.exp(logits - logits.max(0))
    return (exp / exp.sum(0)).astype(np.float32)


def test_closed_forms():
    certain = np.zeros((4, 2, 2, 2), np.float32)
    certain[2] = 1
    assert (inverse_entropy(certain) == 1).all()
    assert inverse_entropy(np.full((5, 3), 0.2, np.float32)) == pytest.approx(0, abs=1e-6)
    half = np.array([[0.5], [0.5], [0], [0]], np.float32)
    assert inverse_entropy(half) == pytest.approx(0.5, abs=1e-6), "one bit of two"
    assert inverse_entropy(np.array([[0.5, 1.0, 0.0, 0.11]], np.float32)) == pytest.approx(
        [0, 1, 1, 1 - entropy([0.11, 0.89], base=2)], abs=1e-6
    ), "one channel: the background has the rest"


@settings(max_examples=30, deadline=None)
@given(classes=st.integers(2, 130), size=st.integers(1, 40), seed=st.integers(0, 99))
def test_scipy_agrees(classes, size, seed):
    p = shares(classes, (size, 2), seed)
    np.testing.assert_allclose(inverse_entropy(p), 1 - entropy(p, axis=0) / np.log(classes), atol=3e-6)


def test_large_volumes_go_in_parts_and_are_not_changed():
    p = shares(3, (40, 40, 20))
    kept = p.copy()
    whole = inverse_entropy(p)
    assert whole.dtype == np.float32
    assert np.array_equal(whole[7], inverse_entropy(p[:, 7]))
    assert np.array_equal(p, kept)


def test_means_by_class_do_not_depend_on_the_parts():
    rng = np.random.default_rng(0)
    labels, sure = rng.integers(0, 4, (6, 5, 5)).astype(np.uint8), rng.random((6, 5, 5)).astype(np.float32)
    labels[labels == 2] = 0
    whole, parts = ConfidenceSums(4), ConfidenceSums(4)
    whole.add(labels, sure)
    for plane, one in zip(labels, sure, strict=True):
        parts.add(plane, one)
    found = whole.result()
    assert found.voxels == parts.result().voxels == tuple(int((labels == k).sum()) for k in range(4))
    assert found.classes[2] is None
    assert found.classes[3] == pytest.approx(sure[labels == 3].mean(), rel=1e-6)
    assert found.case == pytest.approx(sure[labels > 0].mean(), rel=1e-6)
    assert parts.result().case == pytest.approx(found.case, rel=1e-12)
    nothing = ConfidenceSums(3)
    nothing.add(np.zeros(5, int), np.ones(5))
    assert nothing.result().case is None
