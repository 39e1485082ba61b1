"""Options of the stream of windows, its memory, and what it does when memory is short."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
import warnings
import weakref

import numpy as np
import pytest
import torch

from itkit._support.large_memory import ZeroedBlocks, prefer_large_pages
from itkit.errors import ConfigError, PredictionError
from itkit.ops.largest_class import labels_of_scores
from itkit.ops.memory_errors import is_memory_error
from itkit.ops.window_lattice import WindowLattice
from itkit.ops.window_stream import stream_windows


def reader(volume):
    return lambda box: volume[(slice(None), *box)]


def whole(slabs, size, classes, axis=0):
    out = np.full((classes, *size), np.nan, np.float32)
    for slab in slabs:
        np.moveaxis(out, axis + 1, 1)[(slice(None), *slab.place)] = np.asarray(slab.scores)
    return out


def test_windows_larger_than_the_volume_see_its_edges_or_a_number():
    volume = np.arange(1, 7, dtype=np.float32).reshape(1, 2, 3)
    seen = []

    def forward(windows):
        seen.append(windows.copy())
        return windows

    for options in ({}, {"padding": "constant", "pad_value": -9.0}):
        found = whole(stream_windows(reader(volume), (2, 3), 1, forward, patch_size=(5, 4), **options), (2, 3), 1)
        np.testing.assert_array_equal(found, volume)
    edge = [[1, 2, 3, 3], [1, 2, 3, 3], [4, 5, 6, 6], [4, 5, 6, 6], [4, 5, 6, 6]]
    number = [[-9] * 4, [1, 2, 3, -9], [4, 5, 6, -9], [-9] * 4, [-9] * 4]
    np.testing.assert_array_equal(seen[0][0, 0], edge)
    np.testing.assert_array_equal(seen[1][0, 0], number)


def test_slabs_come_as_soon_as_no_later_window_touches_them():
    volume = np.zeros((1, 12, 4, 4), np.float32)
    done, events = [], []
    slabs = stream_windows(
        reader(volume), (12, 4, 4), 1, lambda w: w, patch_size=4, patch_stride=2, forward_batch_windows=1,
        progress=lambda now, total: done.append((now, total)),
    )  # fmt: skip
    for slab in slabs:
        events.append((slab.start, slab.stop, len(done)))
    assert events == [(0, 2, 1), (2, 4, 2), (4, 6, 3), (6, 8, 4), (8, 10, 5), (10, 12, 5)]
    assert done == [(n, 5) for n in range(1, 6)]


def test_batches_span_rows_and_layers():
    sizes = []
    volume = np.zeros((1, 6, 6, 6), np.float32)
    for _ in stream_windows(
        reader(volume), (6, 6, 6), 1, lambda w: sizes.append(len(w)) or w, patch_size=2, patch_stride=2,
        forward_batch_windows=4,
    ):  # fmt: skip
        pass
    assert sizes == [4, 4, 4, 3, 4, 4, 4]


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("blending", ["constant", "gaussian"])
def test_half_precision_answers_a_thousand_times_larger_neither_overflow_nor_lose_the_mean(library, blending):
    rng = np.random.default_rng(0)
    volume = (rng.integers(-60, 60, (1, 9, 8, 7)) * 1000).astype(np.float32)  # sums of two would be beyond float16

    def forward(windows):
        return windows.half() if library == "torch" else windows.astype(np.float16)

    found = whole(
        stream_windows(
            reader(volume), (9, 8, 7), 1, forward, patch_size=4, patch_stride=1, blending=blending,
            asarray=torch.from_numpy if library == "torch" else None,
        ), (9, 8, 7), 1,
    )  # fmt: skip
    np.testing.assert_array_equal(found, volume.astype(np.float16).astype(np.float32))


def test_huge_float32_answers_do_not_overflow_either():
    volume = np.full((1, 8, 8, 8), 3e38, np.float32)
    found = whole(stream_windows(reader(volume), (8, 8, 8), 1, lambda w: w, patch_size=4, patch_stride=1), (8, 8, 8), 1)
    np.testing.assert_array_equal(found, volume)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_half_precision_answers_that_are_not_finite_are_named(bad):
    volume = np.zeros((1, 4, 4, 4), np.float32)

    def forward(windows):
        answer = windows.astype(np.float16)
        answer[0, 0, 1, 2, 3] = bad
        return answer

    with pytest.raises(PredictionError, match="half precision .* infinite or not a number.*bfloat16 or float32"):
        list(stream_windows(reader(volume), (4, 4, 4), 1, forward, patch_size=4))


@pytest.mark.parametrize("classes, dtype", [(2, np.uint8), (256, np.uint8), (257, np.int32), (300, np.int32)])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_labels_of_many_classes(classes, dtype, library):
    rng = np.random.default_rng(classes)
    scores = rng.integers(0, 40, (classes, 5, 60, 70)).astype(np.float32)  # many ties
    expected = scores.argmax(0)
    for view in (scores, np.moveaxis(scores, 1, 2), scores[:, ::2, 3:, ::3]):
        expected = view.argmax(0)
        found = labels_of_scores(torch.from_numpy(view) if library == "torch" else view)
        assert np.asarray(found).dtype == dtype
        np.testing.assert_array_equal(np.asarray(found), expected)


def test_the_input_is_left_alone_and_slabs_belong_to_the_receiver():
    volume = np.random.default_rng(0).normal(size=(1, 60, 64, 64)).astype(np.float32)
    kept = volume.copy()

    def forward(windows):
        windows += 1  # a network that works in place
        return windows

    slabs = list(stream_windows(reader(volume), (60, 64, 64), 1, forward, patch_size=(20, 64, 64), patch_stride=10))
    np.testing.assert_array_equal(volume, kept)
    for slab in slabs:  # all of them still hold what they held
        np.testing.assert_array_equal(slab.scores[0], kept[0, slab.start : slab.stop] + 1)


def test_memory_does_not_grow_with_the_streaming_axis():
    def peak(length, **options):
        volume = np.zeros((1, length, 16, 24), np.float32)
        tracemalloc.start()
        for slab in stream_windows(
            reader(volume), volume.shape[1:], 1, lambda w: np.repeat(w, 64, 1), patch_size=8, patch_stride=(4, 8, 8),
            forward_batch_windows=1, **options,
        ):  # fmt: skip
            del slab
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    short, long, rows = peak(24), peak(96), peak(96, whole_planes=False)
    layer = 64 * 8 * 16 * 24 * 4  # bytes of scores
    assert layer < short < 1.5 * layer
    assert long < 1.1 * short  # the list of windows grows, a few bytes for each
    assert rows < 0.85 * long


def test_no_answer_is_kept_alive_beyond_its_turn():
    alive = weakref.WeakSet()
    most = []

    def forward(windows):
        gc.collect()
        most.append(len(alive))
        answer = windows * 2
        alive.add(answer)
        return answer

    volume = np.zeros((1, 16, 8, 8), np.float32)
    for _ in stream_windows(
        reader(volume), (16, 8, 8), 1, forward, patch_size=8, patch_stride=4, forward_batch_windows=1,
        asarray=torch.from_numpy,
    ):  # fmt: skip
        pass
    assert max(most) == 0
    storage = []

    def kept(windows):
        answer = windows * 2
        storage.append(weakref.ref(answer.untyped_storage()))
        return answer

    stream = stream_windows(
        reader(volume), (16, 8, 8), 1, kept, patch_size=8, forward_batch_windows=1, asarray=torch.from_numpy
    )
    next(stream)
    assert storage[0]() is None


# ---------------------------------------------------------------------------------------------------- want of memory


class CudaOutOfMemoryError(RuntimeError):
    pass


CudaOutOfMemoryError.__name__ = "OutOfMemoryError"
CPU_TEXT = (
    "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
)


@pytest.mark.parametrize(
    "error, expected",
    [
        (MemoryError("x"), True),
        (CudaOutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError(CPU_TEXT), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("Given groups=1, expected 2 channels"), False),
        (ValueError("out of memory"), False),
        (OSError(12, "Cannot allocate memory"), False),
    ],
)
def test_a_want_of_memory_is_known_by_type_or_words(error, expected):
    assert is_memory_error(error) is expected


@pytest.mark.parametrize(
    "error", [MemoryError(), CudaOutOfMemoryError("CUDA out of memory. Tried"), RuntimeError(CPU_TEXT)]
)
@pytest.mark.parametrize("flip_axes", [(), (0, 2)])
def test_batches_are_halved_until_they_fit_and_the_result_is_the_same(error, flip_axes):
    volume = np.random.default_rng(0).normal(size=(1, 9, 8, 7)).astype(np.float32)
    said, sizes = [], []

    def forward(windows):
        sizes.append(len(windows))
        if len(windows) > 2 or (len(sizes) > 6 and len(windows) > 1):  # less and less
            raise error
        return windows * 2

    found = whole(
        stream_windows(
            reader(volume), (9, 8, 7), 1, forward, patch_size=4, patch_stride=3, forward_batch_windows=8,
            flip_axes=flip_axes, on_memory_error=said.append,
        ), (9, 8, 7), 1,
    )  # fmt: skip
    np.testing.assert_array_equal(found, volume * 2)
    assert [text.rpartition("; ")[2] for text in said] == [
        "going on with at most 3 windows at a time.",
        "going on with at most 1 window at a time.",
    ]
    assert all(text.startswith("not enough memory (") for text in said)


def test_without_a_callback_a_warning_says_it():
    volume = np.zeros((1, 4, 4), np.float32)

    def forward(windows):
        if len(windows) > 2:
            raise MemoryError
        return windows

    with pytest.warns(UserWarning, match=r"not enough memory \(MemoryError\); going on with at most 2 windows"):
        list(stream_windows(reader(volume), (4, 4), 1, forward, patch_size=2, patch_stride=2, forward_batch_windows=4))


def test_means_on_another_device_move_to_the_cpu_and_nothing_is_added_twice():
    """A failure between two pieces of a window stands for a GPU whose memory is full."""
    from itkit.ops import window_means

    volume = np.random.default_rng(0).normal(size=(1, 9, 8, 7)).astype(np.float32)
    said, failed, calls, real = [], [], [], window_means.move_mean

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 8 and failing_wanted:
            failed.append(1)
            raise CudaOutOfMemoryError("CUDA out of memory.")
        real(*arguments)

    class Elsewhere(window_means.WindowMeans):
        def move(self, device):
            assert device == "cpu"
            return bool(failed)

    def run():
        return whole(
            stream_windows(
                reader(volume), (9, 8, 7), 1, lambda w: w * w.mean(axis=(2, 3, 4), keepdims=True), patch_size=4,
                patch_stride=3, on_memory_error=said.append, whole_planes=False,
            ), (9, 8, 7), 1,
        )  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_means, "move_mean", failing)
        patch.setattr("itkit.ops.window_stream.WindowMeans", Elsewhere)
        failing_wanted = False
        expected = run()
        calls.clear()
        failing_wanted = True
        found = run()
    np.testing.assert_array_equal(found, expected)
    assert said == [
        "not enough memory (CUDA out of memory.); the mean over windows is kept in the memory of the CPU from now on."
    ]


def test_one_window_that_does_not_fit_is_an_error_that_says_so():
    def forward(windows):
        raise MemoryError("no 7 GiB")

    volume = np.zeros((1, 4, 4), np.float32)
    with pytest.raises(
        PredictionError, match=r"one window of \(3, 3\) at a time \(no 7 GiB\). Take a smaller patch_size"
    ):
        list(stream_windows(reader(volume), (4, 4), 1, forward, patch_size=3, forward_batch_windows=1))


def test_other_errors_pass_through():
    def forward(windows):
        raise RuntimeError("a bug")

    volume = np.zeros((1, 4, 4), np.float32)
    with pytest.raises(RuntimeError, match="a bug"):
        list(stream_windows(reader(volume), (4, 4), 1, forward, patch_size=3))


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "change, message",
    [
        ({"size": (8,)}, r"two or three axes; found \(8,\)"),
        ({"size": (8, 0)}, "has no voxels"),
        ({"average": "median"}, "average 'median' is unknown; choose logits or probabilities"),
        ({"activation": "relu"}, "activation 'relu' is unknown; choose softmax or sigmoid"),
        ({"padding": "wrap"}, "padding 'wrap' is unknown; choose edge or constant"),
        ({"blending": "linear"}, "blending 'linear' is unknown; choose one of constant, gaussian"),
        ({"axis": 2}, "axis 2 does not exist in 2D"),
        ({"row_axis": 0}, r"row_axis 0 must be one of \[1\]"),
        ({"box": (slice(0, 1),)}, "a box of 1 slices does not fit"),
        ({"patch_stride": 5}, "stride 5 is larger than the patch of 4"),
        ({"flip_axes": (2,)}, r"names the spatial axes \[2\]"),
        ({"forward_batch_windows": 0}, "forward_batch_windows must be at least 1; found 0"),
        ({"channels": 2}, r"read returned shape \(1, 4, 4\) for a box; it must be \(2, 4, 4\)"),
        ({"read": lambda box: 3}, r"read returned int for a box; it must be \(1, 4, 4\)"),
        ({"forward": lambda w: w[..., 1:]}, r"returned shape \(2, 1, 4, 3\) .* must be \(2, 'K', 4, 4\)"),
        ({"forward": lambda w: [w]}, "returned a list .* deep supervision"),
    ],
)
def test_what_cannot_work_is_refused(change, message):
    arguments = {
        "read": reader(np.zeros((1, 8, 8), np.float32)), "size": (8, 8), "channels": 1, "forward": lambda w: w,
        "patch_size": 4, **change,
    }  # fmt: skip
    given = [arguments.pop(name) for name in ("read", "size", "channels", "forward")]
    with pytest.raises(ConfigError, match=message):
        list(stream_windows(*given, **arguments))


# --------------------------------------------------------------------------------------------------- memory of arrays


def test_blocks_are_reused_only_when_nobody_can_see_them():
    blocks, shape = ZeroedBlocks(), (3, 1 << 20)
    first = blocks.zeros(shape)
    view = torch.from_numpy(first)[1:, ::2].permute(1, 0)
    first[:] = 7
    del first
    gc.collect()
    second = blocks.zeros(shape)
    assert (second == 0).all()
    assert (view == 7).all()
    second[:] = 5
    addresses = {second.ctypes.data, view.data_ptr() - 4 * (1 << 20)}
    del second, view
    third = blocks.zeros((3, (1 << 20) - 1000))
    assert (third == 0).all()
    assert third.ctypes.data in addresses
    del third
    assert blocks.zeros((1, 1 << 21)).flags.writeable
    assert len(blocks._blocks) == 1  # free blocks that do not fit went back first


def test_too_large_blocks_are_a_memory_error():
    with pytest.raises(MemoryError, match="GiB of memory for one array"):
        ZeroedBlocks().zeros((1 << 45,))


def test_large_pages_are_asked_for_unless_the_environment_decides(monkeypatch):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    prefer_large_pages()
    import os

    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    prefer_large_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"


def test_numpy_arrays_need_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from itkit.ops.window_stream import stream_windows\n"
        "from itkit.ops.slab_resampling import resample_slabs\n"
        "from itkit.ops.largest_class import labels_of_scores\n"
        "v = np.random.default_rng(0).normal(size=(1, 9, 9, 9)).astype('f')\n"
        "s = stream_windows(lambda b: v[(slice(None), *b)], (9, 9, 9), 1, lambda w: np.concatenate([w, -w], 1),\n"
        "    patch_size=4, flip_axes=(0,), average='probabilities', blending='gaussian')\n"
        "n = sum(labels_of_scores(slab.scores).size for slab in resample_slabs(s, (9, 9, 9), (5, 12, 9)))\n"
        "assert n == 5 * 12 * 9, n\n"
    )
    with warnings.catch_warnings():
        subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "plain.mha"])
def test_windows_come_from_the_file_and_compressed_planes_are_met_once(tmp_path, name):
    from itkit.io.regions import open_regions
    from itkit.io.volumes import Volume, write_volume

    size = (29, 13, 40)  # the last layer is shifted inside; its rows take turns with those of the one before
    array = np.random.default_rng(0).integers(-99, 99, size).astype(np.int16)
    write_volume(tmp_path / name, Volume(array), compress=not name.startswith("plain"))
    options = {"patch_size": (8, 6, 10), "patch_stride": (6, 3, 5), "row_axis": 2, "whole_planes": False}
    assert len(WindowLattice(size, (8, 6, 10), (6, 3, 5), order=(0, 2, 1), cut=2).layers[-1]) == 2
    with open_regions(tmp_path / name) as regions:
        slabs = stream_windows(regions.read, size, 1, lambda w: w.astype(np.float32) * 2, **options)
        np.testing.assert_array_equal(whole(slabs, size, 1)[0], array * 2.0)
        assert regions.restarts == 0
