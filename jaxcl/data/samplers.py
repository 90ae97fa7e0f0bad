"""Which examples make the batch of a step: the position is a function of (seed, step)."""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np
import numpy.typing as npt

from jaxcl.data.philox import uniform_order


class Sampler(Protocol):
    """Tells the global batch of each step.

    `indices` is a pure function of the step (and of the settings of the sampler, its seed among
    them): every process calls it and takes its rows, and a resumed run calls it with a later step.
    """

    @property
    def batch_size(self) -> int:
        """Examples B of the global batch."""

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """The examples i64[B] of a step >= 0."""


class Uniform:
    """Every example once an epoch, in a random order of its own for each epoch.

    The last incomplete batch is left out; which examples that hits differs from epoch to epoch.
    """

    def __init__(self, n: int, batch_size: int, seed: int = 0) -> None:
        """Makes a sampler of `n` examples.

        Raises:
          ValueError: the batch is larger than the data, or an argument is out of range.
        """
        if batch_size < 1 or seed < 0:
            raise ValueError(f"batch_size={batch_size}, seed={seed}: expected >= 1 and >= 0")
        if batch_size > n:
            raise ValueError(
                f"the batch of {batch_size} is larger than the data, which has {n} examples; "
                f"set batch_size to {n} or less"
            )
        self.n = n
        self.batch_size = batch_size
        self.seed = seed

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch."""
        return self.n // self.batch_size

    @property
    def left_out(self) -> int:
        """Examples that an epoch leaves out (others each time)."""
        return self.n % self.batch_size

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """A slice of the shuffled index of the step's epoch: i64[B]."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = _epoch_order(self.n, self.seed, epoch)
        return order[position * self.batch_size : (position + 1) * self.batch_size].copy()

    def __repr__(self) -> str:
        return f"Uniform(n={self.n}, batch_size={self.batch_size}, seed={self.seed})"


@functools.lru_cache(maxsize=4)
def _epoch_order(n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return uniform_order(n, seed, epoch)
