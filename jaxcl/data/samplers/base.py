"""What a sampler is."""

from __future__ import annotations

import abc
import functools
import threading
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

KEPT_EPOCHS = 4
"""Epochs that a sampler keeps: threads that work ahead are in later ones already."""

_one_at_a_time = threading.Lock()


class Sampler(Protocol):
    """Tells the global batch of each step.

    `indices` is a pure function of the step (and of the settings of the sampler, its seed among
    them): every process calls it and takes its rows, and a resumed run calls it with a later step.
    """

    @property
    def batch_size(self) -> int:
        """Examples B of the global batch."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch: full batches of as many examples as the data have."""

    def indices(self, step: int) -> Indices:
        """The examples i64[B] of a step >= 0."""

    def describe(self) -> str:
        """What an epoch has and what it lacks, for people, in a line."""


@runtime_checkable
class ColumnSampler(Sampler, Protocol):
    """A sampler whose batches hold more than images and labels, such as what is known of pairs of them."""

    def columns(self, step: int) -> dict[str, npt.NDArray[Any]]:
        """name -> float array [B, ...] of a step, a row for each example of `indices`.

        NaN is what is not known. It also takes the place of a row whose image cannot be read and that
        another image replaces (on_bad="skip"): what was known is not about that image.
        """


class Epochs(abc.ABC):
    """A sampler whose batches are made an epoch at a time, and kept.

    Attributes:
      n: examples of the data.
      batch_size: examples of the global batch.
      seed: of everything that is drawn; an epoch is a function of (seed, its number).
    """

    def __init__(self, n: int, batch_size: int, seed: int = 0) -> None:
        """Checks the sizes.

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
        self._kept: dict[int, Indices] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch."""
        return self.n // self.batch_size

    def indices(self, step: int) -> Indices:
        """The batch i64[B] of a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        # Threads that come together to a new epoch make it once.
        with _one_at_a_time:
            if epoch not in self._kept:
                self._kept[epoch] = self.epoch(epoch)
                while len(self._kept) > KEPT_EPOCHS:
                    del self._kept[next(iter(self._kept))]
            return self._kept[epoch][position].copy()

    @abc.abstractmethod
    def epoch(self, number: int) -> Indices:
        """The batches i64[steps, B] of an epoch, a pure function of (seed, number)."""

    @property
    @abc.abstractmethod
    def eligible(self) -> npt.NDArray[np.int64]:
        """The examples that can be drawn at all."""

    @functools.cached_property
    def coverage(self) -> float:
        """Share of the examples that can be drawn which the first epoch has."""
        batches = [self.indices(step) for step in range(self.steps_per_epoch)]
        return len(np.unique(np.stack(batches))) / len(self.eligible)

    def _unlabelled(self) -> str:
        """A clause about the examples that are never drawn, "" if there are none."""
        left = self.n - len(self.eligible)
        return f"; {left:,} images without a label there are never drawn" if left else ""
