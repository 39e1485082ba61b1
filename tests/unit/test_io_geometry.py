"""Two grids are one within stated tolerances, and the message says what differs."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest

from itkit.errors import GeometryError
from itkit.io.geometry import Geometry, Match, compare_geometries, require_same_grid

IMAGE = Geometry((81, 512, 512), (3.0, 0.8, 0.8), (10.0, 20.0, 30.0))


def changed(**parts) -> Geometry:
    return dataclasses.replace(IMAGE, **parts)


@pytest.mark.parametrize("label,match", [
    (changed(), Match.EQUAL),
    (changed(size_zyx=(80, 512, 512)), Match.ERROR),
    (changed(spacing_zyx=(3.0029, 0.8, 0.8)), Match.EQUAL),
    (changed(spacing_zyx=(3.02, 0.8, 0.8)), Match.WARN),
    (changed(spacing_zyx=(3.04, 0.8, 0.8)), Match.ERROR),
    (changed(spacing_zyx=(math.nan, 0.8, 0.8)), Match.ERROR),
    (changed(spacing_zyx=(3.0, math.nan, 0.8)), Match.ERROR),
    (changed(origin_xyz=(10.007, 20, 30)), Match.EQUAL),
    (changed(origin_xyz=(10.05, 20, 30)), Match.WARN),
    (changed(origin_xyz=(10.09, 20, 30)), Match.ERROR),
    (changed(direction_xyz=(1, 0.0009, 0, 0, 1, 0, 0, 0, 1)), Match.EQUAL),
    (changed(direction_xyz=(1, 0.009, 0, 0, 1, 0, 0, 0, 1)), Match.WARN),
    (changed(direction_xyz=(-1, 0, 0, 0, 1, 0, 0, 0, 1)), Match.ERROR),
    (changed(origin_xyz=(10.05, 20, 30), direction_xyz=(-1, 0, 0, 0, 1, 0, 0, 0, 1)), Match.ERROR),
])  # fmt: skip
def test_tolerances(label, match):
    assert compare_geometries(IMAGE, label)[0] is match


def test_message_says_what_was_found_and_what_to_do():
    with pytest.raises(GeometryError) as caught:
        require_same_grid(IMAGE, changed(size_zyx=(80, 512, 512)), "case_007.mha")
    assert str(caught.value) == (
        "case_007.mha: label has size (80, 512, 512), image has (81, 512, 512) (Z, Y, X). "
        "Remove the pair or fix the label."
    )
    with pytest.raises(GeometryError, match=r"label has origin \(11, 20, 30\), image has \(10, 20, 30\) \(mm"):
        require_same_grid(IMAGE, changed(origin_xyz=(11.0, 20, 30)), "case_007.mha")
    with pytest.raises(GeometryError, match=r"label has spacing \(3, 0.9, 0.8\), image has \(3, 0.8, 0.8\) \(mm"):
        require_same_grid(IMAGE, changed(spacing_zyx=(3.0, 0.9, 0.8)), "case_007.mha")


def test_near_miss_warns_and_equal_is_silent():
    with pytest.warns(UserWarning, match="case_007.mha: label has origin"):
        require_same_grid(IMAGE, changed(origin_xyz=(10.05, 20, 30)), "case_007.mha")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_same_grid(IMAGE, IMAGE)
