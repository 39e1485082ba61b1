"""TwoViews: two draws of one sample, that depend on its generator alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from itkit.errors import ConfigError
from itkit.transforms import ExtractSlice, MultiSample, PackSeg2DInputs, RandomBrightness, RandomCrop, TwoViews

META = dict(type=PackSeg2DInputs, meta_keys=("case_id",))
VIEW = [dict(type=RandomCrop, size=(6, 5)), dict(type=RandomBrightness, shift=1.0), META]


def sample(seed=0):
    image = np.arange(2 * 8 * 9, dtype=np.float32).reshape(1, 2, 8, 9)
    label = (image[0] > 70).astype(np.uint8)
    return {"img": image, "gt_sem_seg": label, "case_id": "a", "rng": np.random.default_rng(seed)}


def slice_of(seed=0):
    return ExtractSlice(index=1).transform(sample(seed))


def test_both_views_are_of_the_same_image_and_differ():
    pair = TwoViews(VIEW).transform(slice_of())
    first, second = pair["inputs"]
    assert first.shape == second.shape == (1, 6, 5)
    assert not torch.equal(first, second)
    for view in (first, second):  # a crop with something added: neighbours still differ by 1 and 9
        assert torch.allclose(view[:, :, 1:] - view[:, :, :-1], torch.ones(1, 6, 4), atol=1e-4)
        assert torch.allclose(view[:, 1:] - view[:, :-1], torch.full((1, 5, 5), 9.0), atol=1e-4)
    assert pair["data_samples"].case_id == "a"


def test_the_generator_alone_decides():
    one, again, other = (TwoViews(VIEW).transform(slice_of(seed))["inputs"] for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_what_the_first_view_draws_does_not_change_the_second():
    more = [*VIEW[:-1], dict(type=RandomBrightness, shift=1.0), META]
    one, two = TwoViews(VIEW).transform(slice_of()), TwoViews(more, second=VIEW).transform(slice_of())
    assert torch.equal(one["inputs"][1], two["inputs"][1])
    assert not torch.equal(one["inputs"][0], two["inputs"][0])


def test_several_pairs_from_one_volume():
    pairs = MultiSample(3, [dict(type=ExtractSlice, index="random"), dict(type=TwoViews, transforms=VIEW)]).transform(
        sample()
    )
    assert [tuple(pair["inputs"].shape) for pair in pairs] == [(2, 1, 6, 5)] * 3


def test_what_gives_no_pair_is_refused():
    with pytest.raises(ConfigError, match="needs the sample's generator"):
        TwoViews(VIEW).transform({**slice_of(), "rng": None})
    with pytest.raises(ConfigError, match="must end as one packed image; found .*'img'"):
        TwoViews(VIEW[:1]).transform(slice_of())
    with pytest.raises(ConfigError, match="found 2 samples"):
        TwoViews([dict(type=MultiSample, num_samples=2, transforms=VIEW)]).transform(slice_of())
    with pytest.raises(ConfigError, match=r"shapes \(1, 6, 5\) and \(1, 8, 9\)"):
        TwoViews(VIEW, second=[META]).transform(slice_of())


def test_a_view_that_is_given_up_takes_the_pair_with_it():
    assert TwoViews([lambda results: None], second=VIEW).transform(slice_of()) is None
