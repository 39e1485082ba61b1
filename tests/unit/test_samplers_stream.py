"""The samplers' arguments, errors, and their place in the registry."""

from __future__ import annotations

import pickle
from itertools import islice

import pytest

from itkit.errors import ConfigError, DataError
from itkit.mm.samplers import CaseSampler, StreamSampler
from itkit.registry import DATA_SAMPLERS


def test_unshuffled_stream_repeats_the_order_of_the_dataset():
    assert list(islice(StreamSampler(range(3), seed=1, shuffle=False, start=2), 5)) == [2, 0, 1, 2, 0]


def test_stream_indices_carry_seed_and_position_through_pickling():
    index = pickle.loads(pickle.dumps(next(iter(StreamSampler(range(9), seed=4, start=17)))))
    assert (index.seed, index.position) == (4, 17)


def test_two_epochs_differ():
    indices = list(islice(StreamSampler(range(20), seed=0), 40))
    assert indices[:20] != indices[20:]


def test_skip_counts_the_samples_of_each_rank():
    sampler = StreamSampler(range(7), seed=0, rank=1, world_size=3)
    sampler.skip(4)
    assert next(iter(sampler)).position == 4 * 3 + 1


def test_length_is_one_pass_rounded_up():
    assert len(StreamSampler(range(7), seed=0, rank=0, world_size=3)) == 3


def test_iterating_twice_starts_at_the_set_position_again():
    sampler = StreamSampler(range(7), seed=0)
    assert list(islice(sampler, 5)) == list(islice(sampler, 5))


@pytest.mark.parametrize("kind", [StreamSampler, CaseSampler])
def test_empty_dataset_is_refused(kind):
    with pytest.raises(DataError, match="list holds no case"):
        kind([], seed=0)


@pytest.mark.parametrize("kind", [StreamSampler, CaseSampler])
def test_rank_outside_the_world_is_refused(kind):
    with pytest.raises(ConfigError, match="rank=2 of world_size=2"):
        kind(range(3), seed=0, rank=2, world_size=2)


def test_negative_position_is_refused():
    with pytest.raises(ConfigError, match="no position -1"):
        StreamSampler(range(3), seed=0, start=-1)


def test_built_by_name():
    sampler = DATA_SAMPLERS.build({"type": "StreamSampler"}, default_args={"dataset": range(3), "seed": 2})
    assert isinstance(sampler, StreamSampler)
    assert sampler.seed == 2
