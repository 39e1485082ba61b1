"""Laws of the stream of windows: whatever they are, a network that looks at single voxels comes out unchanged, to the bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itkit.ops.blending import gaussian_profile
from itkit.ops.sliding_window import sliding_window_inference
from itkit.ops.window_lattice import WindowLattice
from itkit.ops.window_shares import WindowShares
from itkit.ops.window_stream import stream_windows


def pointwise(windows):
    """Logits of four classes; NumPy and torch alike."""
    xp = np if isinstance(windows, np.ndarray) else torch
    return xp.concatenate([windows * 3 - 1, windows**2, -windows, windows * 0.3 + 0.1], 1)


def assembled(slabs, size, axis, classes):
    """The whole volume (K, *size); no voxel comes twice, and none is missing."""
    whole = np.full((classes, *size), np.nan, np.float32)
    planes_first = np.moveaxis(whole, axis + 1, 1)
    stop = -1
    for slab in slabs:
        place = planes_first[(slice(None), *slab.place)]
        scores = slab.scores if isinstance(slab.scores, np.ndarray) else slab.scores.numpy()
        assert scores.dtype == np.float32
        assert scores.shape == place.shape
        assert np.isnan(place).all()
        if slab.others is None:
            assert slab.start == max(stop, 0)
            stop = slab.stop
        place[...] = scores
    assert not np.isnan(whole).any()
    return whole


@st.composite
def tasks(draw):
    axes = draw(st.sampled_from([2, 3, 3]))
    size = tuple(draw(st.lists(st.integers(1, 14), min_size=axes, max_size=axes)))
    patch = tuple(draw(st.lists(st.integers(1, 8), min_size=axes, max_size=axes)))
    axis = draw(st.integers(0, axes - 1))
    options = {
        "patch_size": patch,
        "patch_stride": tuple(draw(st.integers(max(1, p // 3), p)) for p in patch),
        "blending": draw(st.sampled_from(["constant", "gaussian"])),
        "padding": draw(st.sampled_from(["edge", "constant"])),
        "forward_batch_windows": draw(st.integers(1, 5)),
        "axis": axis,
        "whole_planes": draw(st.booleans()),
        "row_axis": draw(st.sampled_from([None, *(other for other in range(axes) if other != axis)])),
    }
    torch_too = draw(st.booleans())
    return size, options, torch_too


@settings(deadline=None, max_examples=150)
@given(tasks(), st.integers(0, 99))
def test_a_pointwise_network_comes_out_to_the_bit(task, seed):
    size, options, torch_too = task
    volume = np.random.default_rng(seed).normal(size=(1, *size)).astype(np.float32)
    read_boxes = []

    def read(box):
        read_boxes.append(box)
        return volume[(slice(None), *box)]

    slabs = stream_windows(read, size, 1, pointwise, asarray=torch.from_numpy if torch_too else None, **options)
    found = assembled(slabs, size, options["axis"], 4)
    expected = pointwise(torch.from_numpy(volume[None]))[0].numpy() if torch_too else pointwise(volume[None])[0]
    np.testing.assert_array_equal(found, expected)
    assert len(read_boxes) == len({str(box) for box in read_boxes})


@settings(deadline=None, max_examples=60)
@given(tasks(), st.integers(0, 99), st.data())
def test_inside_a_box_nothing_changes_and_outside_is_the_first_class(task, seed, data):
    size, options, _ = task
    options["forward_batch_windows"] = 1
    volume = np.random.default_rng(seed).normal(size=(1, *size)).astype(np.float32)
    low = [data.draw(st.integers(0, n - 1)) for n in size]
    box = tuple(slice(a, data.draw(st.integers(a, n))) for a, n in zip(low, size, strict=True))

    def blurred(windows):  # the answer depends on where the window lies
        return pointwise(windows + windows.mean(axis=tuple(range(1, windows.ndim)), keepdims=True))

    def run(**more):
        calls = []

        def forward(windows):
            calls.append(len(windows))
            return blurred(windows)

        slabs = stream_windows(lambda b: volume[(slice(None), *b)], size, 1, forward, **options, **more)
        return assembled(slabs, size, options["axis"], 4), sum(calls)

    (everywhere, all_windows), (found, windows) = run(), run(box=box)
    assert windows <= all_windows
    inside = np.zeros(size, bool)
    inside[box] = True
    np.testing.assert_array_equal(found[:, inside], everywhere[:, inside])
    assert (found[0, ~inside] == 0).all()
    assert (found[1:, ~inside] == -100).all()
    if not inside.any():
        assert windows == 1
    named, _ = run(box=box, outside=(5, 6, 7, 8))
    assert (named[:, ~inside] == np.array([5, 6, 7, 8])[:, None]).all()


@settings(deadline=None, max_examples=60)
@given(tasks(), st.integers(0, 99))
def test_slabs_equal_the_weighted_mean_computed_with_everything_in_memory(task, seed):
    size, options, torch_too = task
    rng = np.random.default_rng(seed)
    volume = rng.normal(size=(1, *size)).astype(np.float32)
    lattice = WindowLattice(size, options["patch_size"], options["patch_stride"])
    answers = {window: rng.normal(size=(2, *lattice.patch)).astype(np.float32) for window in lattice.windows()}
    profiles = [np.ones(p) if options["blending"] == "constant" else gaussian_profile(p) for p in lattice.patch]
    weight = profiles[0]
    for profile in profiles[1:]:
        weight = np.multiply.outer(weight, profile)
    total, weights = np.zeros((2, *size)), np.zeros(size)
    for window, answer in answers.items():
        inside, margins = lattice.inside(window)
        part = tuple(slice(low, p - high) for (low, high), p in zip(margins, lattice.patch, strict=True))
        total[(slice(None), *inside)] += (answer * weight)[(slice(None), *part)]
        weights[inside] += weight[part]
    corners = {lattice.corner(window): window for window in answers}
    asked = []

    def read(box):
        asked.append(box)
        return volume[(slice(None), *box)]

    def forward(windows):
        found = []
        for box in asked[-len(windows) :]:
            corner = next(
                c for c in corners
                if all(axis.inside(s) == (b.start, b.stop) for axis, s, b in zip(lattice.axes, c, box, strict=True))
            )  # fmt: skip
            found.append(answers[corners[corner]])
        found = np.stack(found)
        return torch.from_numpy(found) if torch_too else found

    slabs = stream_windows(read, size, 1, forward, asarray=torch.from_numpy if torch_too else None, **options)
    np.testing.assert_allclose(assembled(slabs, size, options["axis"], 2), total / weights, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(tasks())
def test_shares_are_those_of_a_running_mean(task):
    size, options, _ = task
    axes = len(size)
    order = (options["axis"], *(i for i in range(axes) if i != options["axis"]))
    lattice = WindowLattice(size, options["patch_size"], options["patch_stride"], order=order, cut=2)
    profiles = [gaussian_profile(p) if options["blending"] == "gaussian" else np.ones(p) for p in lattice.patch]
    shares, so_far = WindowShares(lattice, profiles), np.zeros(size)
    weight = profiles[0]
    for profile in profiles[1:]:
        weight = np.multiply.outer(weight, profile)
    for window in lattice.windows():
        inside, margins = lattice.inside(window)
        part = tuple(slice(low, p - high) for (low, high), p in zip(margins, lattice.patch, strict=True))
        so_far[inside] += weight[part]
        np.testing.assert_allclose(
            np.broadcast_to(shares.of(window, part), weight[part].shape), weight[part] / so_far[inside], rtol=1e-5
        )
    assert (so_far > 0).all()


@settings(deadline=None, max_examples=100)
@given(tasks(), st.booleans())
def test_cells_are_final_in_time_and_after_their_neighbours(task, with_box):
    size, options, _ = task
    axes = len(size)
    order = (options["axis"], *(i for i in range(axes) if i != options["axis"]))
    box = tuple(slice(n // 3, n // 3 + 1) for n in size) if with_box else None
    lattice = WindowLattice(
        size,
        options["patch_size"],
        options["patch_stride"],
        order=order,
        cut=1 + (not options["whole_planes"]),
        box=box,
    )
    windows = list(lattice.windows())
    assert len(windows) == len(set(windows))
    last_touch = np.zeros(size, int)
    for number, window in enumerate(windows, 1):
        last_touch[lattice.inside(window)[0]] = number
    seen = np.zeros(size, bool)
    before = 0
    for done, cell in lattice.cells():
        place = lattice.box_of(cell)
        assert last_touch[place].max() <= done <= len(windows)
        if last_touch[place].max():
            assert done == last_touch[place].max()  # not a window later than needed
        assert done >= before
        assert not seen[place].any()
        corner = tuple(part.start for part in place)
        for axis in range(axes):
            if corner[axis]:
                neighbour = tuple(c - (i == axis) for i, c in enumerate(corner))
                assert seen[neighbour]
        seen[place] = True
        before = done
    assert seen.all()


@pytest.mark.parametrize("groups", [(0,), (0, 2), [(1, 2)]])
@pytest.mark.parametrize(
    "average, activation", [("logits", "softmax"), ("probabilities", "softmax"), ("probabilities", "sigmoid")]
)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_mirror_images_are_averaged(groups, average, activation, library):
    from itkit.ops.mirror import mirror_groups

    rng = np.random.default_rng(0)
    volume = rng.normal(size=(1, 7, 6, 9)).astype(np.float32)
    ramp = rng.normal(size=(3, 4, 5, 4)).astype(np.float32)

    def forward(windows):  # not symmetric at all
        return windows * (torch.from_numpy(ramp) if isinstance(windows, torch.Tensor) else ramp)

    def one(windows):  # the definition, window by window
        total = 0
        for axes in mirror_groups(groups, 3):
            dims = tuple(axis + 2 for axis in axes)
            logits = np.flip(forward(np.flip(windows, dims)), dims).astype(np.float64)
            if average == "probabilities" and activation == "sigmoid":
                logits = 1 / (1 + np.exp(-logits))
            elif average == "probabilities":
                logits = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            total = total + logits
        return (total / len(mirror_groups(groups, 3))).astype(np.float32)

    options = {"patch_size": (4, 5, 4), "patch_stride": (2, 3, 3), "blending": "gaussian"}
    found = assembled(
        stream_windows(
            lambda b: volume[(slice(None), *b)], volume.shape[1:], 1, forward, flip_axes=groups, average=average,
            activation=activation, asarray=torch.from_numpy if library == "torch" else None, **options,
        ),
        volume.shape[1:], 0, 3,
    )  # fmt: skip
    plain = assembled(
        stream_windows(lambda b: volume[(slice(None), *b)], volume.shape[1:], 1, one, **options), volume.shape[1:], 0, 3
    )
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis, whole", itertools.product((0, 1, 2), (True, False)))
@pytest.mark.parametrize("blending", ["constant", "gaussian"])
def test_the_stream_equals_the_whole_volume_sliding_window(axis, whole, blending):
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(1, 3, 3, padding=1)
    volume = torch.randn(1, 1, 19, 14, 23)
    options = {"patch_size": (8, 8, 12), "patch_stride": (4, 5, 7), "blending": blending}
    with torch.inference_mode():
        direct = sliding_window_inference(volume, conv, **options)
        slabs = stream_windows(
            lambda b: volume[0].numpy()[(slice(None), *b)], volume.shape[2:], 1, conv, axis=axis, whole_planes=whole,
            asarray=torch.from_numpy, **options,
        )  # fmt: skip
        found = assembled(slabs, volume.shape[2:], axis, 3)
    np.testing.assert_allclose(found, direct[0].numpy(), rtol=1e-5, atol=1e-6)
