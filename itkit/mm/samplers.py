"""Which case comes when: sample orders that depend on a seed and a position only, on any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from itkit.dataset.stream import StreamIndex
from itkit.errors import ConfigError, DataError
from itkit.registry import DATA_SAMPLERS


def _rank_and_world(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return the rank and number of processes that a sampler serves; None means the running ones."""
    running_rank, running_world = get_dist_info()
    rank = running_rank if rank is None else rank
    world_size = running_world if world_size is None else world_size
    if not 0 <= rank < world_size:
        raise ConfigError(f"a sampler got rank={rank} of world_size={world_size}; a rank is 0 up to world_size - 1.")
    return rank, world_size


def _case_count(dataset: Sized) -> int:
    count = len(dataset)
    if count == 0:
        raise DataError(
            f"{type(dataset).__name__} holds no case, so nothing can be drawn from it; check its root and split."
        )
    return count


@DATA_SAMPLERS.register_module()
class StreamSampler(Sampler):
    """An endless stream of indices for iteration-based training that can start at any position at once.

    The stream is one for all processes: position ``p`` belongs to epoch ``p // n`` of a dataset of ``n`` cases, and its
    index is entry ``p % n`` of that epoch's permutation, which depends on (seed, epoch) alone. Rank ``r`` of ``w``
    processes takes the positions ``start + r, start + r + w, …``. So the samples of one global batch do not depend on
    how many processes share it, and a resumed run goes on where the last one stopped without replaying anything.

    Args:
        dataset: Anything with a length; at least one case.
        seed: Seed of the order, equal on all ranks. None draws one and shares it between the ranks.
        shuffle: False keeps the dataset's order in every epoch.
        start: Global position of the first sample that is drawn (of all ranks together).
        rank: This process; None is the running one.
        world_size: Number of processes; None is the running number.

    Raises:
        DataError: If the dataset is empty.
        ConfigError: If `start` is negative or the rank lies outside the world.
    """

    def __init__(
        self,
        dataset: Sized,
        seed: int | None = None,
        shuffle: bool = True,
        start: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ):
        self.count = _case_count(dataset)
        self.seed = sync_random_seed() if seed is None else int(seed)
        self.shuffle = shuffle
        self.rank, self.world_size = _rank_and_world(rank, world_size)
        self._epoch, self._order = -1, np.arange(self.count)
        self.set_position(start)

    def set_position(self, position: int) -> None:
        """Let the next iteration over the sampler begin at global `position` (samples of all ranks together)."""
        if position < 0:
            raise ConfigError(f"a sample stream has no position {position}; the first one is 0.")
        self.start = int(position)

    def skip(self, num_samples: int) -> None:
        """Begin after `num_samples` samples of each rank, counted from the beginning (MMEngine's way to resume)."""
        self.set_position(num_samples * self.world_size)

    def index_at(self, position: int) -> StreamIndex:
        """Return the index at a global position of the stream."""
        epoch, offset = divmod(position, self.count)
        if self.shuffle and epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
            self._epoch = epoch
        return StreamIndex(int(self._order[offset]), seed=self.seed, position=position)

    def __iter__(self) -> Iterator[StreamIndex]:
        position = self.start + self.rank
        while True:
            yield self.index_at(position)
            position += self.world_size

    def __len__(self) -> int:
        """Samples of one rank in one pass over the dataset, rounded up; the stream itself has no end."""
        return -(-self.count // self.world_size)


@DATA_SAMPLERS.register_module()
class CaseSampler(Sampler):
    """Every case exactly once over all processes, in the dataset's order, none repeated to even out the ranks.

    Rank ``r`` of ``w`` processes takes the cases ``r, r + w, …``; with fewer cases than processes some ranks get none.

    Args:
        dataset: Anything with a length; at least one case.
        seed: Seed that the samples' generators use, should the pipeline draw anything. None counts as 0.
        rank: This process; None is the running one.
        world_size: Number of processes; None is the running number.

    Raises:
        DataError: If the dataset is empty.
        ConfigError: If the rank lies outside the world.
    """

    def __init__(self, dataset: Sized, seed: int | None = None, rank: int | None = None, world_size: int | None = None):
        self.count = _case_count(dataset)
        self.seed = 0 if seed is None else int(seed)
        self.rank, self.world_size = _rank_and_world(rank, world_size)

    def __iter__(self) -> Iterator[StreamIndex]:
        for index in range(self.rank, self.count, self.world_size):
            yield StreamIndex(index, seed=self.seed, position=index)

    def __len__(self) -> int:
        """Cases of this rank."""
        return len(range(self.rank, self.count, self.world_size))


class PlacedBatches:
    """The batches of a finite sampler, with indices that know their place in the training, beginning where one likes.

    Batches before the beginning are left out by their indices; no sample of them is read. A plain index becomes a
    `StreamIndex`, whose position counts the samples of all processes since the training began, so that the randomness of a
    sample depends on nothing else. Other indices pass as they are.

    Args:
        batch_sampler: Gives lists of indices; what it gives depends on ``set_epoch`` of its sampler, if it has that.
        samples_per_epoch: Of one process; sets the epochs apart.
        seed: Seed of the samples' generators, not negative.
        rank: This process; None is the running one.
        world_size: Number of processes; None is the running number.
    """

    def __init__(
        self,
        batch_sampler: Any,
        samples_per_epoch: int,
        seed: int,
        rank: int | None = None,
        world_size: int | None = None,
    ):
        self._batches, self._samples, self._seed = batch_sampler, samples_per_epoch, seed
        self.rank, self.world_size = _rank_and_world(rank, world_size)
        self._first_sample, self._left_out = 0, 0

    def __getattr__(self, name: str) -> Any:
        if name == "_batches":  # while being copied there is nothing to delegate to
            raise AttributeError(name)
        return getattr(self._batches, name)

    def __len__(self) -> int:
        return len(self._batches)

    def begin(self, epoch: int, left_out: int = 0, passed: int = 0) -> None:
        """Let the next iteration be that of `epoch`.

        Args:
            epoch: From 0.
            left_out: Batches of it that are left out.
            passed: Samples of this process that the sampler itself has passed over in it.
        """
        self._first_sample = epoch * self._samples + passed
        self._left_out = left_out

    def __iter__(self) -> Iterator[list]:
        sample = self._first_sample
        for number, batch in enumerate(self._batches):
            if number >= self._left_out:
                yield [self._placed(index, sample + k) for k, index in enumerate(batch)]
            sample += len(batch)

    def _placed(self, index: Any, sample: int) -> Any:
        if type(index) is not int:
            return index
        return StreamIndex(index, seed=self._seed, position=sample * self.world_size + self.rank)
