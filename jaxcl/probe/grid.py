"""A learning rate and a weight decay that are chosen together, on validation images."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np


def _logspaced(first: float, last: float, count: int) -> tuple[float, ...]:
    return tuple(np.geomspace(first, last, count).tolist())


@dataclasses.dataclass(frozen=True)
class Grid:
    """What is tried: every rate with every decay.

    Attributes:
      rates: learning rates, before scaling with the batch.
      decays: weight decays times the learning rate: the part of a weight that a step at the full
        rate takes away, before momentum, in batches of 256 images; as the rate, it goes with the
        batch. The coefficient of the optimizer is the decay divided by the rate.
    """

    rates: tuple[float, ...]
    decays: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.rates or min(self.rates) <= 0:
            raise ValueError(f"rates={self.rates}: expected at least one number above 0")
        if not self.decays or min(self.decays) < 0:
            raise ValueError(f"decays={self.decays}: expected at least one number, 0 or more")

    def __len__(self) -> int:
        return len(self.rates) * len(self.decays)


TRANSFER = Grid(_logspaced(1e-4, 1e-1, 7), (0.0, *_logspaced(1e-6, 1e-3, 7)))
"""SimCLR's for fine-tuning on another data set (B.8)."""

TRANSFER_SCRATCH = Grid(_logspaced(1e-3, 1.0, 7), _logspaced(1e-5, 10**-1.5, 8))
"""SimCLR's for the same network from scratch (B.8)."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """The best pair of a grid.

    Attributes:
      rate: learning rate.
      decay: weight decay times the learning rate.
      validation: accuracy on the validation images.
    """

    rate: float
    decay: float
    validation: float


def search(
    grid: Grid, score: Callable[[float, float], float], say: Callable[[str], None]
) -> Choice | None:
    """Tries every pair and takes the best; of equal ones the smaller rate, then the smaller decay.

    Args:
      grid: the pairs.
      score: (rate, decay) -> accuracy on the validation images; a FloatingPointError if the training
        diverges: the pair is left out.
      say: gets a line about each pair.

    Returns:
      None if the training diverges with every pair.
    """
    found: list[Choice] = []
    pairs = itertools.product(sorted(grid.rates), sorted(grid.decays))
    for number, (rate, decay) in enumerate(pairs, start=1):
        pair = f"  [{number}/{len(grid)}] learning rate {rate:.3g}, weight decay {decay:.3g} / rate"
        try:
            found.append(Choice(rate, decay, score(rate, decay)))
        except FloatingPointError:
            say(f"{pair}: diverges")
            continue
        say(f"{pair}: {found[-1].validation:.1%} of the validation images")
    return max(found, key=lambda choice: choice.validation, default=None)
