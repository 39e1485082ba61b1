"""Laws: slabs put on another grid equal the whole volume put there at once, and `itkit.io.resampling`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itkit.errors import ConfigError
from itkit.io.geometry import Geometry
from itkit.io.interpolation import linear_taps, resample_separable
from itkit.io.resampling import resample_to_grid, resample_to_size, size_grid, spacing_grid
from itkit.io.volumes import Volume
from itkit.ops.largest_class import labels_of_scores
from itkit.ops.slab_resampling import grid_positions, resample_slabs
from itkit.ops.window_stream import Slab, stream_windows


def assembled(slabs, size, axis, classes):
    whole = np.full((classes, *size), np.nan, np.float32)
    planes_first = np.moveaxis(whole, axis + 1, 1)
    for slab in slabs:
        place = planes_first[(slice(None), *slab.place)]
        assert np.isnan(place).all()
        assert place.shape == tuple(slab.scores.shape)
        place[...] = np.asarray(slab.scores)
    assert not np.isnan(whole).any()
    return whole


def slabs_of(volume, axis, whole_planes, library="numpy", patch=5, stride=3, row_axis=None):
    return stream_windows(
        lambda box: volume[(slice(None), *box)], volume.shape[1:], len(volume), lambda w: w, patch_size=patch,
        patch_stride=stride, axis=axis, whole_planes=whole_planes, row_axis=row_axis,
        asarray=torch.from_numpy if library == "torch" else None,
    )  # fmt: skip


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_slabs_equal_the_whole_volume(data):
    axes = data.draw(st.sampled_from([2, 3, 3]))
    size = tuple(data.draw(st.lists(st.integers(1, 12), min_size=axes, max_size=axes)))
    new = tuple(data.draw(st.lists(st.integers(1, 25), min_size=axes, max_size=axes)))
    axis = data.draw(st.integers(0, axes - 1))
    row_axis = data.draw(st.sampled_from([None, *(other for other in range(axes) if other != axis)]))
    step = first = None
    if data.draw(st.booleans()):
        step = [data.draw(st.floats(0.2, 3)) for _ in size]
        first = [data.draw(st.floats(-3, 3)) for _ in size]
    volume = np.random.default_rng(0).normal(size=(2, *size)).astype(np.float32)
    found = {}
    for library in ("numpy", "torch"):
        slabs = slabs_of(volume, axis, data.draw(st.booleans()), library, row_axis=row_axis)
        found[library] = assembled(
            resample_slabs(
                slabs, size, new, axis=axis, step=step, first=first, planes_at_once=data.draw(st.sampled_from([None, 1, 3]))
            ), new, axis, 2,
        )  # fmt: skip
    used = [old / n for old, n in zip(size, new, strict=True)] if step is None else step
    begin = [(ratio - 1) / 2 for ratio in used] if first is None else first
    taps = [linear_taps(f + np.arange(n) * s, old) for f, n, s, old in zip(begin, new, used, size, strict=True)]
    if axes == 2:
        taps.insert(0, linear_taps(np.zeros(1), 1))
    expected = np.stack([resample_separable(part.reshape(-1, *size[-2:]), tuple(taps)) for part in volume])
    np.testing.assert_allclose(found["numpy"], expected.reshape(found["numpy"].shape), rtol=1e-5, atol=2e-6)
    np.testing.assert_array_equal(found["torch"], found["numpy"])


@pytest.mark.parametrize("spacing", [(2.0, 1.5, 0.7), (0.4, 0.9, 1.0)])
def test_there_and_back_as_preprocessing_does(spacing):
    """An image goes to a model's spacing; scores come back to the image's grid, the one `resample_to_grid` means."""
    angle = np.deg2rad(20)
    direction = (np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1)
    own = Geometry((11, 14, 9), (1.0, 0.8, 1.3), (5.0, -7.0, 3.0), direction)
    model = spacing_grid(own, spacing)
    scores = np.random.default_rng(0).normal(size=(2, *model.size_zyx)).astype(np.float32)
    first, step = grid_positions(model, own)
    found = assembled(
        resample_slabs(slabs_of(scores, 0, False), model.size_zyx, own.size_zyx, first=first, step=step),
        own.size_zyx,
        0,
        2,
    )
    volume = Volume(scores, model.spacing_zyx, model.origin_xyz, model.direction_xyz)
    expected = resample_to_grid(volume, own, kind="image", fill=np.nan).array
    inside = ~np.isnan(expected)
    assert inside.mean() > 0.6
    np.testing.assert_allclose(found[inside], expected[inside], rtol=1e-4, atol=1e-5)


def test_sizes_alone_keep_the_field_of_view_as_resample_to_size_does():
    volume = Volume(np.random.default_rng(0).normal(size=(2, 9, 7, 8)).astype(np.float32))
    found = assembled(resample_slabs(slabs_of(volume.array, 1, True), (9, 7, 8), (5, 15, 8), axis=1), (5, 15, 8), 1, 2)
    np.testing.assert_allclose(found, resample_to_size(volume, (5, 15, 8), kind="image").array, rtol=1e-5, atol=2e-6)
    geometry = volume.geometry
    first, step = grid_positions(geometry, size_grid(geometry, (5, 15, 8)))
    np.testing.assert_allclose(first, [(9 / 5 - 1) / 2, (7 / 15 - 1) / 2, 0], atol=1e-12)
    np.testing.assert_allclose(step, [9 / 5, 7 / 15, 1])


def test_labels_of_resampled_slabs_of_more_than_255_classes():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(300, 6, 5, 4)).astype(np.float32)
    labels = np.full((12, 10, 8), -1)
    for slab in resample_slabs(slabs_of(scores, 0, False, patch=4, stride=2), (6, 5, 4), (12, 10, 8)):
        labels[slab.place] = labels_of_scores(slab.scores)
    grown = resample_to_size(Volume(scores), (12, 10, 8), kind="image").array
    assert labels.max() > 255
    np.testing.assert_array_equal(labels, grown.argmax(0))


def test_the_same_grid_gives_the_same_slabs():
    volume = np.random.default_rng(0).normal(size=(2, 9, 7, 8)).astype(np.float32)
    found = assembled(resample_slabs(slabs_of(volume, 0, True), (9, 7, 8), (9, 7, 8)), (9, 7, 8), 0, 2)
    np.testing.assert_array_equal(found, volume)


def test_new_slabs_are_not_larger_than_the_old_ones():
    volume = np.zeros((2, 24, 8, 8), np.float32)
    sizes = [
        slab.scores.size
        for slab in resample_slabs(slabs_of(volume, 0, True, patch=8, stride=8), (24, 8, 8), (72, 16, 16))
    ]
    assert max(sizes) <= 2 * 8 * 8 * 8
    assert sum(sizes) == 2 * 72 * 16 * 16


def test_what_cannot_work_is_refused():
    slab = Slab(0, 2, np.zeros((1, 2, 4, 4), np.float32))
    with pytest.raises(
        ConfigError, match=r"a volume of size \(4, 4, 4\) along axis 3 cannot become one of size \(2, 2, 2\)"
    ):
        list(resample_slabs([slab], (4, 4, 4), (2, 2, 2), axis=3))
    with pytest.raises(ConfigError, match="need a number for each axis, steps positive"):
        list(resample_slabs([slab], (4, 4, 4), (2, 2, 2), step=(1, 1, 0)))
    late = Slab(3, 4, np.zeros((1, 1, 4, 4), np.float32))
    with pytest.raises(ConfigError, match="the slab of planes 3 to 4 does not follow the one before it"):
        list(resample_slabs([slab, late], (4, 4, 4), (8, 8, 8)))
    beside = Slab(0, 2, np.zeros((1, 2, 2, 4), np.float32), (slice(2, 4), slice(0, 4)))
    with pytest.raises(ConfigError, match="the slab that begins at row 2 does not follow the one before it"):
        list(resample_slabs([beside], (4, 4, 4), (8, 8, 8)))
    one = Geometry((4, 4, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    other = Geometry((4, 4, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0, 1, 0, 1, 0, 0, 0, 0, 1))
    with pytest.raises(ConfigError, match="different directions; bring them to one orientation first"):
        grid_positions(one, other)
