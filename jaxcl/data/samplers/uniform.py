"""Every example equally often."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jaxcl.data.philox import uniform_order
from jaxcl.data.samplers.base import Epochs, Indices


class Uniform(Epochs):
    """Every example once an epoch, in a random order of its own for each epoch.

    The last incomplete batch is left out; which examples that hits differs from epoch to epoch.
    """

    @property
    def left_out(self) -> int:
        """Examples that an epoch leaves out (others each time)."""
        return self.n % self.batch_size

    @property
    def eligible(self) -> npt.NDArray[np.int64]:
        """All examples."""
        return np.arange(self.n)

    def epoch(self, number: int) -> Indices:
        """The shuffled index of the epoch, cut into batches: i64[steps, B]."""
        order = uniform_order(self.n, self.seed, number)
        return order[: self.n - self.left_out].reshape(-1, self.batch_size)

    def describe(self) -> str:
        """What an epoch leaves out."""
        return f"an epoch leaves out {self.left_out} images, others each time"

    def __repr__(self) -> str:
        return f"Uniform(n={self.n}, batch_size={self.batch_size}, seed={self.seed})"
