"""Laws of the windows that cover an axis."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itkit.errors import ConfigError
from itkit.io.windows import axis_triple, window_starts


@st.composite
def axes(draw):
    patch = draw(st.integers(1, 40))
    return patch + draw(st.integers(0, 120)), patch, draw(st.integers(1, patch))


@given(axes())
def test_windows_cover_everything_stay_inside_and_are_no_more_than_needed(axis):
    size, patch, stride = axis
    starts = window_starts(size, patch, stride)
    covered = {voxel for start in starts for voxel in range(start, start + patch)}
    assert covered == set(range(size))
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    assert starts[-1] == size - patch
    assert all(b - a <= stride for a, b in zip(starts, starts[1:], strict=False))
    # with one window fewer, steps of at most `stride` could not reach from the first voxel to the last
    assert (len(starts) - 2) * stride < size - patch or len(starts) == 1


@pytest.mark.parametrize(
    "numbers, message",
    [
        ((10, 4, 5), "stride 5 is larger than the patch of 4"),
        ((3, 4, 2), "holds no window of 4"),
        ((4, 4, 0), "at least 1"),
    ],
)
def test_impossible_windows_are_refused(numbers, message):
    with pytest.raises(ConfigError, match=message):
        window_starts(*numbers)


def test_one_number_stands_for_all_axes():
    assert axis_triple("patch_size", 8, 3) == (8, 8, 8)
    assert axis_triple("patch_size", [8, 4], 2) == (8, 4)
    with pytest.raises(ConfigError, match=r"patch_size \(8, 4\) has 2 entries for 3 spatial axes"):
        axis_triple("patch_size", (8, 4), 3)
    with pytest.raises(ConfigError, match="must consist of positive integers"):
        axis_triple("patch_stride", (8, 0), 2)
