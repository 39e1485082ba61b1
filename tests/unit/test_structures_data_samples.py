"""Volume data and data samples: grids that agree, fields of the right type, and the usual tensor methods."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from itkit.errors import UsageError
from itkit.structures import Seg3DDataSample, VolumeData


@pytest.mark.parametrize("shape", [(4, 5, 6), (5, 6)])
def test_shape_is_the_grid_without_channels(shape):
    data = VolumeData(data=torch.zeros(1, *shape))
    data.logits = torch.zeros(3, *shape)
    assert data.shape == shape
    assert VolumeData().shape is None


def test_a_field_can_be_replaced_by_one_of_another_grid_only_when_it_is_alone():
    data = VolumeData(data=torch.zeros(1, 4, 4))
    data.data = torch.zeros(1, 2, 2)
    assert data.shape == (2, 2)
    data.logits = torch.zeros(3, 2, 2)
    with pytest.raises(
        UsageError, match=r"VolumeData.logits has spatial shape \(4, 4\), the fields before it have \(2, 2\)"
    ):
        data.logits = torch.zeros(3, 4, 4)


@pytest.mark.parametrize(
    "value, message",
    [([1, 2], "must be a tensor or a NumPy array; found list"), (np.zeros((2, 2)), "Add a channel axis")],
)
def test_what_is_no_volume_is_refused(value, message):
    with pytest.raises(UsageError, match=message):
        VolumeData(data=value)


def test_slicing_cuts_all_fields_and_keeps_axes():
    values = torch.arange(60.0).reshape(1, 3, 4, 5)
    data = VolumeData(metainfo={"case_id": "a"}, data=values, logits=torch.cat([values, values]))
    part = data[1:, -1, 2:4]
    torch.testing.assert_close(part.data, values[:, 1:, 3:4, 2:4])
    assert part.logits.shape == (2, 2, 1, 2)
    assert part.case_id == "a"
    assert data[1].shape == (1, 4, 5)


@pytest.mark.parametrize(
    "box, message",
    [((0, 0, 0), "2 spatial axes cannot be cut by 3"), ((5,), "index 5 lies outside spatial axis 0 of 2"),
     (("a",), "slices and numbers; found str")],
)  # fmt: skip
def test_impossible_slices_are_refused(box, message):
    with pytest.raises(UsageError, match=message):
        VolumeData(data=torch.zeros(1, 2, 2))[box]


def test_a_sample_holds_its_volumes_through_copies_and_conversions():
    sample = Seg3DDataSample(metainfo={"case_id": "a"}, gt_sem_seg=VolumeData(data=torch.ones(1, 2, 3, 4)))
    sample.pred_sem_seg = VolumeData(data=torch.zeros(1, 2, 3, 4, requires_grad=True))
    for copied in (
        pickle.loads(pickle.dumps(sample)),
        copy.deepcopy(sample.detach()),
        sample.clone(),
        sample.to("cpu"),
    ):
        assert set(copied.keys()) == {"gt_sem_seg", "pred_sem_seg"}
        torch.testing.assert_close(copied.gt_sem_seg.data, sample.gt_sem_seg.data)
        assert copied.case_id == "a"
    assert not sample.detach().pred_sem_seg.data.requires_grad
    assert sample.detach().numpy().gt_sem_seg.data.dtype == np.float32
    assert sample.to_dict()["gt_sem_seg"]["data"].shape == (1, 2, 3, 4)
    assert sample.pop("pred_sem_seg").shape == (2, 3, 4)
    assert "pred_sem_seg" not in sample


@pytest.mark.parametrize("name", ["gt_sem_seg", "pred_sem_seg", "seg_logits"])
def test_a_sample_takes_volume_data_only(name):
    with pytest.raises(UsageError, match=f"{name} must be a VolumeData; found Tensor"):
        Seg3DDataSample(**{name: torch.zeros(1, 2, 2)})


def test_a_missing_volume_is_told():
    sample = Seg3DDataSample(gt_sem_seg=VolumeData(data=torch.ones(1, 2, 2)))
    with pytest.raises(AttributeError, match=r"no pred_sem_seg \(yet\); it holds \['gt_sem_seg'\]"):
        _ = sample.pred_sem_seg
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        _ = sample.other
    assert sample.get("seg_logits") is None
