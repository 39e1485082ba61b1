"""The data preprocessor: samples to a float32 batch, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from itkit.errors import ConfigError
from itkit.models import VolumeDataPreprocessor
from itkit.registry import MODELS
from itkit.structures import Seg3DDataSample, VolumeData


def sample(case: str) -> Seg3DDataSample:
    return Seg3DDataSample(metainfo={"case_id": case}, gt_sem_seg=VolumeData(data=torch.ones(1, 4, 5, 6).byte()))


def test_list_of_samples_becomes_a_float32_batch_with_the_same_values():
    volumes = [torch.from_numpy(np.arange(120, dtype=np.int16).reshape(1, 4, 5, 6) * sign) for sign in (1, -1)]
    batch = VolumeDataPreprocessor()({"inputs": volumes, "data_samples": [sample("a"), sample("b")]}, training=True)
    assert batch["inputs"].dtype == torch.float32
    assert torch.equal(batch["inputs"], torch.stack(volumes).float())
    assert [s.case_id for s in batch["data_samples"]] == ["a", "b"]
    assert batch["data_samples"][0].gt_sem_seg.data.dtype == torch.uint8


def test_stacked_inputs_pass():
    stacked = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    assert torch.equal(VolumeDataPreprocessor()({"inputs": stacked})["inputs"], stacked.float())


def test_everything_moves_to_the_device():
    step = VolumeDataPreprocessor().to("meta")
    batch = step({"inputs": [torch.zeros(1, 4, 5, 6)], "data_samples": [sample("a")]})
    assert batch["inputs"].device.type == "meta"
    assert batch["data_samples"][0].gt_sem_seg.data.device.type == "meta"


def test_unequal_training_samples_are_named():
    data = {
        "inputs": [torch.zeros(1, 4, 5, 6), torch.zeros(1, 4, 5, 7)],
        "data_samples": [sample("left"), sample("right")],
    }
    with pytest.raises(ConfigError, match=r"left \(1, 4, 5, 6\), right \(1, 4, 5, 7\)\. Crop or pad"):
        VolumeDataPreprocessor()(data, training=True)
    del data["data_samples"]
    with pytest.raises(ConfigError, match=r"sample 0 \(1, 4, 5, 6\), sample 1"):
        VolumeDataPreprocessor()(data, training=True)


def test_unequal_samples_stay_a_list_for_prediction():
    batch = VolumeDataPreprocessor()({"inputs": [torch.zeros(1, 4, 5, 6).int(), torch.ones(1, 2, 2, 2).int()]})
    assert [tuple(x.shape) for x in batch["inputs"]] == [(1, 4, 5, 6), (1, 2, 2, 2)]
    assert {x.dtype for x in batch["inputs"]} == {torch.float32}


@pytest.mark.parametrize("inputs, found", [([], "a list of nothing"), ("x", "found str"), ([1, 2], "a list of int")])
def test_other_inputs_are_refused(inputs, found):
    with pytest.raises(ConfigError, match=found):
        VolumeDataPreprocessor()({"inputs": inputs})


def test_missing_inputs_are_refused():
    with pytest.raises(ConfigError, match=r"without 'inputs' \(it has img, gt\)"):
        VolumeDataPreprocessor()({"img": 1, "gt": 2})


def test_it_is_registered():
    assert isinstance(MODELS.build({"type": "VolumeDataPreprocessor"}), VolumeDataPreprocessor)
