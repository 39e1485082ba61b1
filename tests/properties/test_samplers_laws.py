"""Laws of the sample orders: one stream for any number of processes, from any position, each case once."""

from __future__ import annotations

from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from itkit.mm.samplers import CaseSampler, StreamSampler

counts = st.integers(1, 23)
seeds = st.integers(0, 2**31 - 1)
worlds = st.integers(1, 5)


def stream(count: int, length: int, **options) -> list[tuple[int, int]]:
    return [(int(i), i.position) for i in islice(StreamSampler(range(count), **options), length)]


@given(count=counts, seed=seeds, world=worlds, start=st.integers(0, 60))
def test_ranks_together_draw_the_one_stream(count, seed, world, start):
    whole = stream(count, 4 * world, seed=seed, start=start)
    parts = [stream(count, 4, seed=seed, start=start, rank=rank, world_size=world) for rank in range(world)]
    assert [entry for row in zip(*parts, strict=True) for entry in row] == whole


@given(count=counts, seed=seeds, start=st.integers(0, 200))
def test_starting_later_is_the_rest_of_the_stream(count, seed, start):
    assert stream(count, 20, seed=seed, start=start) == stream(count, start + 20, seed=seed)[start:]


@given(count=counts, seed=seeds, epoch=st.integers(0, 10**9))
def test_every_epoch_is_a_permutation_that_depends_on_seed_and_epoch(count, seed, epoch):
    indices = [index for index, _ in stream(count, count, seed=seed, start=epoch * count)]
    assert indices == np.random.default_rng([seed, epoch]).permutation(count).tolist()


@given(count=counts, world=worlds)
def test_cases_come_once_over_all_ranks_and_in_order(count, world):
    ranks = [list(CaseSampler(range(count), rank=rank, world_size=world)) for rank in range(world)]
    assert sorted(index for rank in ranks for index in rank) == list(range(count))
    for rank, indices in enumerate(ranks):
        assert indices == sorted(indices)
        assert len(indices) == len(CaseSampler(range(count), rank=rank, world_size=world))
        assert all(index.position == index for index in indices)
