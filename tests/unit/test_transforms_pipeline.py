"""The pipeline as a whole: building, lists of samples, packing, foreign transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform

from itkit.errors import ConfigError, DataError
from itkit.structures import Seg3DDataSample
from itkit.transforms import Compose, FromMM, FromMONAI, MultiSample, PackSeg2DInputs, PackSeg3DInputs, replay
from itkit.transforms.intensity import RandomGaussianNoise
from itkit.transforms.spatial import RandomFlip


def make_sample(shape=(6, 7, 8), seed=0, **more):
    generator = np.random.default_rng(seed)
    return {
        "case_id": "a", "img_path": "image/a.mha", "seg_map_path": "label/a.mha", "num_classes": 3,
        "img": generator.standard_normal((1, *shape), np.float32), "seg_fields": ["gt_sem_seg"],
        "gt_sem_seg": generator.integers(0, 3, shape).astype(np.uint8), "spacing_zyx": (2.0, 1.0, 1.0),
        "origin_xyz": (0.0, 0.0, 0.0), "direction_xyz": (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0), "ori_shape": shape,
        "img_shape": shape, "rng": np.random.default_rng(seed), **more,
    }  # fmt: skip


def test_a_pipeline_of_ours_monai_and_mmcv_is_a_function_of_the_generator():
    pipeline = Compose(
        [
            {"type": "RandomFlip", "prob": 0.5},
            {"type": "monai.RandGaussianNoised", "keys": ["img"], "prob": 1.0},
            {"type": "ExtractSlice"},
            {"type": "mmcv.RandomFlip", "prob": 0.5, "direction": ["horizontal", "vertical"]},
            {"type": RandomGaussianNoise, "std": 0.1},
            PackSeg2DInputs(),
        ]
    )
    for seed in range(4):
        first, second = pipeline(make_sample(seed=seed)), pipeline(make_sample(seed=seed))
        torch.testing.assert_close(first["inputs"], second["inputs"], rtol=0, atol=0)
        torch.testing.assert_close(first["data_samples"].gt_sem_seg.data, second["data_samples"].gt_sem_seg.data)
        assert first["inputs"].shape == (1, 7, 8)
    assert repr(pipeline).startswith("Compose(\n    RandomFlip(")


def test_image_and_label_go_through_mmcv_together():
    mmcv_flip = Compose([{"type": "mmcv.RandomFlip", "prob": 1.0, "direction": "horizontal"}])
    sample = make_sample((5, 6))
    flipped = mmcv_flip(dict(sample))
    np.testing.assert_array_equal(flipped["img"], sample["img"][:, :, ::-1])
    np.testing.assert_array_equal(flipped["gt_sem_seg"], sample["gt_sem_seg"][:, ::-1])
    assert flipped["seg_fields"] == ["gt_sem_seg"]
    assert "gt_seg_map" not in flipped
    assert flipped["img_shape"] == (5, 6)


def test_monai_sees_the_spacing_and_changes_it_only_when_it_is_not_random():
    resampled = Compose(
        [{"type": "monai.Spacingd", "keys": ["img", "gt_sem_seg"], "pixdim": (1.0, 1.0, 1.0),
          "mode": ("bilinear", "nearest")}]
    )(make_sample())  # fmt: skip
    assert resampled["spacing_zyx"] == (1.0, 1.0, 1.0)
    assert resampled["img"].shape == (1, 11, 7, 8)
    assert resampled["gt_sem_seg"].shape == resampled["img_shape"] == (11, 7, 8)
    assert resampled["gt_sem_seg"].dtype == np.uint8
    assert type(resampled["img"]) is np.ndarray
    zoomed = Compose([{"type": "monai.RandZoomd", "keys": ["img"], "prob": 1.0, "min_zoom": 0.5, "max_zoom": 0.6}])
    assert zoomed(make_sample())["spacing_zyx"] == (2.0, 1.0, 1.0)


def test_monai_transforms_that_return_lists_give_independent_samples():
    crops = Compose(
        [
            {"type": "monai.RandSpatialCropSamplesd", "keys": ["img", "gt_sem_seg"], "roi_size": (3, 3, 3),
             "num_samples": 3, "random_size": False},
            {"type": "RandomGaussianNoise", "std": (1.0, 1.0)},
        ]
    )(make_sample())  # fmt: skip
    assert [s["img"].shape for s in crops] == [(1, 3, 3, 3)] * 3
    assert len({s["applied"][-1][1]["seed"] for s in crops}) == 3


def test_array_transforms_of_monai_get_the_image():
    sample = make_sample()
    scaled = FromMONAI({"type": "monai.ScaleIntensity"})(dict(sample))
    assert (scaled["img"].min(), scaled["img"].max()) == (0, 1)
    np.testing.assert_array_equal(scaled["gt_sem_seg"], sample["gt_sem_seg"])


def test_interpolated_labels_are_refused():
    warp = {"type": "monai.RandAffined", "keys": ["img", "gt_sem_seg"], "prob": 1.0, "rotate_range": 0.5}
    with pytest.raises(ConfigError, match="no whole numbers in 'gt_sem_seg'; give it mode='nearest'"):
        Compose([warp])(make_sample())


def test_own_transforms_see_our_layout_under_a_seed():
    class Mine(BaseTransform):
        def transform(self, results):
            results["seen"] = results["img"].shape, np.random.random(), torch.rand(1).item()
            return results

    first, second = (Compose([Mine()])(make_sample())["seen"] for _ in range(2))
    assert first == second
    assert first[0] == (1, 6, 7, 8)
    assert Compose([lambda results: results["img"].shape])(make_sample()) == (1, 6, 7, 8)


def test_replaying_a_whole_chain():
    chain = Compose(
        [{"type": "RandomWarp", "degrees": 20, "elastic_mm": 2.0}, {"type": "RandomGamma"}, {"type": "RandomFlip"}]
    )
    sample = make_sample()
    once = chain(dict(sample))
    assert [name for name, _ in once["applied"]][:2] == ["RandomWarp", "RandomGamma"]
    again = replay(sample, once["applied"])
    np.testing.assert_array_equal(again["img"], once["img"])
    assert len(again["applied"]) == len(once["applied"])
    with pytest.raises(ConfigError, match="cannot replay 'Window': no random transform of that name"):
        replay(sample, [("Window", {})])


def test_several_samples_of_one_volume_do_not_depend_on_each_other():
    crop = {"type": "RandomCrop", "size": 3}
    three = Compose([MultiSample(3, [crop]), {"type": "PackSeg3DInputs"}])(make_sample())
    assert [s["inputs"].shape for s in three] == [(1, 3, 3, 3)] * 3
    many = MultiSample(3, [crop, crop])(make_sample())
    assert [s["applied"][0] for s in many] == [s["applied"][0] for s in MultiSample(3, [crop])(make_sample())]
    assert len({s["applied"][0][1]["start"] for s in many}) > 1
    nested = MultiSample(2, [{"type": "ExtractSlices", "step": 3}])(make_sample())
    assert len(nested) == 4
    with pytest.raises(ConfigError, match="num_samples must be at least 1"):
        MultiSample(0, [])
    sample = make_sample()
    sample.pop("rng")
    with pytest.raises(ConfigError, match="MultiSample needs the sample's generator"):
        MultiSample(1, [])(sample)


def test_a_transform_may_give_a_sample_up():
    assert Compose([lambda results: None, PackSeg3DInputs()])(make_sample()) is None
    picky = Compose(
        [MultiSample(4, [{"type": "RandomCrop", "size": 3}]), lambda r: r if r["rng"].random() < 0.5 else None]
    )
    assert 0 < len(picky(make_sample())) < 4
    assert MultiSample(2, [lambda results: None])(make_sample()) == []


def test_packing():
    packed = PackSeg3DInputs()(make_sample())
    sample = packed["data_samples"]
    assert isinstance(sample, Seg3DDataSample)
    assert packed["inputs"].shape == (1, 6, 7, 8)
    assert packed["inputs"].dtype == torch.float32
    assert sample.gt_sem_seg.data.shape == (1, 6, 7, 8)
    assert sample.gt_sem_seg.data.dtype == torch.uint8
    assert set(sample.metainfo_keys()) == {"case_id", "img_path", "seg_map_path", "ori_shape", "img_shape", "spacing_zyx",
                                           "origin_xyz", "direction_xyz"}  # fmt: skip
    wide = make_sample()
    wide["gt_sem_seg"] = wide["gt_sem_seg"].astype(np.int16)
    wide["img"] = wide["img"].astype(np.float64)[:, ::-1]
    packed = PackSeg3DInputs()(wide)
    assert packed["data_samples"].gt_sem_seg.data.dtype == torch.int64
    assert packed["inputs"].is_contiguous()


def test_packing_shares_no_read_only_memory():
    sample = make_sample()
    sample["img"].flags.writeable = False
    packed = PackSeg3DInputs()(sample)
    packed["inputs"].zero_()
    assert sample["img"].any()


def test_packing_a_case_without_label_and_a_slice():
    sample = make_sample((5, 6), z_index=3)
    for key in ("gt_sem_seg", "seg_map_path"):
        sample.pop(key)
    packed = PackSeg2DInputs()(sample)
    assert "gt_sem_seg" not in packed["data_samples"]
    assert packed["data_samples"].z_index == 3


@pytest.mark.parametrize(
    "change, error, message",
    [
        (
            {"img": np.zeros((1, 4, 4), np.float32)},
            DataError,
            r"PackSeg3DInputs packs images \(C, Z, Y, X\); found shape",
        ),
        ({"img": None}, DataError, "found no 'img'"),
        ({"gt_sem_seg": np.zeros((1, 2, 3), np.uint8)}, DataError, "a transform changed only one of them"),
        ({"spacing_zyx": ...}, ConfigError, r"the sample of case a has no \['spacing_zyx'\]; it holds"),
    ],
)
def test_what_cannot_be_packed_is_refused(change, error, message):
    sample = make_sample(**change)
    if change.get("spacing_zyx") is ...:
        sample.pop("spacing_zyx")
    with pytest.raises(error, match=message):
        PackSeg3DInputs()(sample)


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"type": "RandomFlp"}, "transform 'RandomFlp' is not registered. Did you mean RandomFlip[?]"),
        ({"prob": 0.5}, r"needs 'type'; found only \['prob'\]"),
        ({"type": "RandomFlip", "probability": 1}, "RandomFlip cannot be built: .*probability"),
        (7, "callables; found 7"),
        ({"type": "FromMONAI", "transform": RandomFlip()}, "needs a transform of MONAI; found RandomFlip"),
        (
            {"type": "FromMM", "transform": len, "layout": "zyx"},
            "layout must be one of itkit, channels_last; found 'zyx'",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(entry, message):
    with pytest.raises(ConfigError, match=message):
        Compose([entry])


def test_channels_come_back_in_front():
    sample = make_sample()
    grey = FromMM(lambda results: {**results, "img": results["img"][..., 0]})(dict(sample))
    np.testing.assert_array_equal(grey["img"], sample["img"])
    seen = []
    FromMM(lambda results: seen.append((results["img"].shape, sorted(results))) or results)(dict(sample))
    assert seen[0][0] == (6, 7, 8, 1)
    assert "gt_seg_map" in seen[0][1]
    assert "gt_sem_seg" not in seen[0][1]
