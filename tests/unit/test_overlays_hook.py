"""`OverlayHook`: which cases are drawn, where the pictures go, and that nothing about them can stop a run."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from itkit.errors import ConfigError
from itkit.mm.hooks.overlays import OverlayHook
from itkit.registry import HOOKS
from itkit.structures import Seg3DDataSample, VolumeData

SHAPE = (6, 10, 8)


def _sample(case, error=0, shape=SHAPE, **meta):
    """A sample whose Dice falls with `error`, the number of rows that are missed."""
    truth = torch.zeros((1, *shape), dtype=torch.uint8)
    truth[..., 2:8, 2:6] = 1
    prediction = truth.clone()
    prediction[..., 2 : 2 + error, :] = 0
    sample = Seg3DDataSample(metainfo={"case_id": case, "spacing_zyx": (2.0, 1.0, 1.0), **meta})
    sample.gt_sem_seg, sample.pred_sem_seg = VolumeData(data=truth), VolumeData(data=prediction)
    return torch.rand((1, *shape)).to(torch.bfloat16), sample


class Backend:
    def __init__(self):
        self.images = []

    def add_image(self, name, image, step=0):
        self.images.append((name, image.shape, step))


@pytest.fixture
def runner(tmp_path, caplog):
    loader = SimpleNamespace(dataset=SimpleNamespace(metainfo={"classes": ("background", "organ")}))
    caplog.set_level(logging.WARNING)
    return SimpleNamespace(
        work_dir=str(tmp_path / "work"),
        test_dir=tmp_path / "test",
        val_dataloader=loader,
        test_dataloader=loader,
        visualizer=Backend(),
        iter=12,
        logger=logging.getLogger("overlays"),
    )


def _epoch(hook, runner, samples, split="val", batch=2):
    getattr(hook, f"before_{split}_epoch")(runner)
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        images = [image for image, _ in part]
        getattr(hook, f"after_{split}_iter")(runner, start, {"inputs": images}, [sample for _, sample in part])
    getattr(hook, f"after_{split}_epoch")(runner, {})


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


CASES = [("a", 1), ("b", 4), ("c", 0), ("d", 3), ("e", 2)]


def test_it_is_registered():
    assert HOOKS.get("OverlayHook") is OverlayHook


@pytest.mark.parametrize(
    "choice, names",
    [("worst", ["b", "d"]), (2, ["a", "b"]), (["e", "c", "zzz"], ["c", "e"]), (["c"], ["c"]), (0, None)],
)
def test_the_chosen_cases_are_drawn(runner, tmp_path, choice, names):
    _epoch(OverlayHook(cases=choice, max_cases=2), runner, [_sample(*case) for case in CASES], "test")
    folder = tmp_path / "test" / "overlays"
    assert (_names(folder) if folder.exists() else None) == (names and [f"{name}.png" for name in names])
    for path in folder.glob("*"):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert runner.visualizer.images == []


def test_validation_pictures_are_those_of_the_last_validation_and_reach_the_backends(runner, tmp_path):
    hook = OverlayHook(max_cases=1)
    _epoch(hook, runner, [_sample(*case) for case in CASES])
    _epoch(hook, runner, [_sample("b", 0), _sample("d", 5)])
    assert _names(tmp_path / "work" / "visuals" / "val") == ["d.png"]
    (first, second) = runner.visualizer.images
    assert (first[0], second[0], second[2]) == ("overlay_b", "overlay_d", 12)
    assert second[1][2] == 3


def test_drawing_keeps_to_its_share_of_the_time_and_the_last_pictures_still_come(runner, tmp_path):
    hook = OverlayHook(max_cases=1, max_share=0.0)
    hook.before_train(runner)
    hook._spent = 1e-9
    _epoch(hook, runner, [_sample("a", 2)])
    assert not (tmp_path / "work").exists()
    _epoch(hook, runner, [_sample("b", 2)])
    hook.after_train(runner)
    assert _names(tmp_path / "work" / "visuals" / "val") == ["b.png"]


def test_at_limits_the_times(runner, tmp_path):
    hook = OverlayHook(at="test")
    _epoch(hook, runner, [_sample("a", 2)])
    assert not (tmp_path / "work").exists()


def test_memory_is_bounded_by_the_pictures_wanted(runner):
    hook = OverlayHook(max_cases=2)
    hook.before_val_epoch(runner)
    for number in range(10):
        image, sample = _sample(f"{number}", number % 5)
        hook.after_val_iter(runner, number, {"inputs": [image]}, [sample])
        assert len(hook._kept) <= 2
    assert {kept.case_id for kept in hook._kept} == {"4", "9"}


def test_slices_stacked_tensors_and_unlabelled_cases(runner, tmp_path):
    hook = OverlayHook(cases=3)
    image, sample = _sample("slice", 1, shape=(10, 8), z_index=4)
    _, bare = _sample("bare", 1, shape=(10, 8))
    del bare.gt_sem_seg
    hook.before_test_epoch(runner)
    hook.after_test_iter(runner, 0, {"inputs": torch.stack([image, image])}, [sample, bare])
    hook.after_test_epoch(runner)
    assert _names(tmp_path / "test" / "overlays") == ["bare.png", "slice_z4.png"]


def test_a_picture_that_cannot_be_drawn_is_reported_once_and_the_others_are_drawn(runner, tmp_path, caplog):
    samples = [_sample(*case) for case in CASES]
    samples[0] = (torch.rand(1, 3, 3, 3), samples[0][1])
    samples[1] = (torch.rand(1, 3, 3, 3), samples[1][1])
    _epoch(OverlayHook(cases=9), runner, samples, "test", batch=1)
    assert _names(tmp_path / "test" / "overlays") == ["c.png", "d.png", "e.png"]
    (record,) = caplog.records
    assert "OverlayHook: a picture could not be made (UsageError: the truth has shape (6, 10, 8)" in record.getMessage()


def test_an_unwritable_folder_does_not_stop_the_run(runner, tmp_path, caplog):
    (tmp_path / "test").write_text("a file")
    _epoch(OverlayHook(), runner, [_sample(*case) for case in CASES], "test")
    assert len(caplog.records) == 1


def test_odd_batches_are_survived(runner):
    hook = OverlayHook()
    hook.before_val_epoch(runner)
    for batch, outputs in ((None, None), ({}, []), ({"inputs": [np.ones((1, 4, 4))]}, [object()])):
        hook.after_val_iter(runner, 0, batch, outputs)
    hook.after_val_epoch(runner)


def test_case_names_become_safe_file_names(runner, tmp_path):
    _epoch(OverlayHook(), runner, [_sample("../../etc/x", 1)], "test")
    assert _names(tmp_path / "test" / "overlays") == ["_.._etc_x.png"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"cases": "best"}, "cases='best'; give 'worst', a number of cases or a list"),
        ({"cases": -1}, "cannot be negative"),
        ({"max_cases": -2}, "max_cases=-2; numbers of cases cannot be negative"),
        ({"at": "train"}, "at='train' is not a time to draw; use 'val', 'test' or both"),
        ({"max_share": 2}, "max_share=2 must lie between 0 and 1"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ConfigError, match=message):
        OverlayHook(**arguments)
