"""A sample's place in the training stream, and the randomness that follows from it."""

from __future__ import annotations

import numpy as np
import torch


class StreamIndex(int):
    """An index into a dataset that knows when it is drawn; everything else sees a plain int.

    Args:
        index: Index of the sample in the dataset.
        seed: Seed of the run, not negative.
        position: Number of samples drawn before this one since the training began, over all restarts; not negative.
    """

    seed: int
    position: int

    def __new__(cls, index: int, seed: int, position: int) -> StreamIndex:
        self = super().__new__(cls, index)
        self.seed, self.position = int(seed), int(position)
        return self

    def __reduce__(self):
        return type(self), (int(self), self.seed, self.position)

    def __repr__(self) -> str:
        return f"StreamIndex({int(self)}, seed={self.seed}, position={self.position})"


def sample_generator(index: int) -> np.random.Generator:
    """Return the generator that all randomness of one sample comes from.

    Args:
        index: A `StreamIndex`: the generator depends on its seed and position alone, whatever worker asks. A plain int:
            on that int and PyTorch's initial seed, which differs between loader workers and epochs.
    """
    if isinstance(index, StreamIndex):
        return np.random.default_rng([index.seed, index.position])
    return np.random.default_rng([torch.initial_seed() % 2**63, int(index) % 2**63])
