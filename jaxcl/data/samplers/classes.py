"""Samplers by class: m images of each class, or every class equally often."""

from __future__ import annotations

import abc
import collections
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from jaxcl.data.philox import Stream
from jaxcl.data.samplers.base import Epochs, Indices


class Deck:
    """Deals cards in a random order: none comes again before all the others have come."""

    def __init__(self, cards: npt.NDArray[np.int64], stream: Stream) -> None:
        """Takes the cards i64[n], n >= 1, and where the random numbers come from."""
        self._cards = cards
        self._stream = stream
        self._rest: list[int] = []
        self._next = 0

    def deal(self, count: int) -> list[int]:
        """A hand of `count` cards; a card is in it twice only if all the others are in it."""
        hand: list[int] = []
        while len(hand) < count:
            if self._next == len(self._rest):
                extra = len(hand) % len(self._cards)
                self._shuffle(hand[len(hand) - extra :])
            taken = self._rest[self._next : self._next + count - len(hand)]
            self._next += len(taken)
            hand += taken
        return hand

    def _shuffle(self, held: list[int]) -> None:
        """All cards again; the held ones last, so that a hand gets the others first."""
        cards = self._cards[self._stream.order(len(self._cards))].tolist()
        if held:
            last = set(held)
            cards.sort(key=last.__contains__)  # stable: otherwise in the order of the shuffle
        self._rest, self._next = cards, 0


class ByClass(Epochs):
    """A sampler that deals the classes from a deck, and the images of each class from another.

    Each epoch, of as many images as the data have, has decks of its own.

    Attributes:
      names: the classes that occur, by their ids.
      members: the examples of each of them.
      what: what messages call the classes.
    """

    def __init__(
        self, classes: npt.ArrayLike, batch_size: int, seed: int = 0, *, what: str = "class"
    ) -> None:
        """Sorts the images by class.

        Args:
          classes: the class i[N] of each example, -1 for those that are never drawn.
          batch_size: examples of the global batch.
          seed: of all draws.
          what: what messages call the classes, the name of their level.

        Raises:
          ValueError: no example has a class, or sizes do not fit.
        """
        ids = np.asarray(classes)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"classes must be integers [N], got {ids.dtype}{list(ids.shape)}")
        super().__init__(len(ids), batch_size, seed)
        self._eligible = np.flatnonzero(ids >= 0)
        if not len(self._eligible):
            raise ValueError(
                f"none of the {self.n} examples has a label at level {what!r}, which this sampler "
                "needs: set data.sampler='uniform', or say where the labels are"
            )
        rows = self._eligible[np.argsort(ids[self._eligible], kind="stable")]
        self.names, starts = np.unique(ids[rows], return_index=True)
        self.members = np.split(rows, starts[1:])
        self.what = what

    @property
    def eligible(self) -> npt.NDArray[np.int64]:
        """The examples that have a class."""
        return self._eligible

    @abc.abstractmethod
    def hands(self, deck: Deck) -> Iterable[tuple[int, int]]:
        """The classes of a batch, and how many images of each: together B."""

    def epoch(self, number: int) -> Indices:
        """The batches i64[steps, B] of an epoch; the images of a class stand together."""
        stream = Stream(self.seed, number)
        classes = Deck(np.arange(len(self.members)), stream)
        decks: dict[int, Deck] = {}
        batches = []
        for _ in range(self.steps_per_epoch):
            batch: list[int] = []
            for name, count in self.hands(classes):
                if name not in decks:
                    decks[name] = Deck(self.members[name], stream)
                batch += decks[name].deal(count)
            batches.append(batch)
        return np.array(batches, np.int64)

    def _smaller(self, count: int) -> int:
        """How many classes have fewer than `count` images."""
        return sum(len(rows) < count for rows in self.members)


class MPerClass(ByClass):
    """B / m different classes in each batch, with m images of each.

    Every class comes equally often, whatever its size. A class of fewer than m images has some of
    them more than once in its place; such classes are counted in `describe`.
    """

    def __init__(
        self,
        classes: npt.ArrayLike,
        batch_size: int,
        m: int,
        seed: int = 0,
        *,
        what: str = "class",
    ) -> None:
        """As `ByClass`.

        Args:
          classes: the class i[N] of each example, -1 for those that are never drawn.
          batch_size: examples of the global batch, a multiple of m.
          m: images of a class.
          seed: of all draws.
          what: what messages call the classes.

        Raises:
          ValueError: m does not divide the batch, or there are too few classes; as `ByClass`.
        """
        super().__init__(classes, batch_size, seed, what=what)
        if m < 1 or batch_size % m:
            raise ValueError(
                f"a batch of {batch_size} cannot have {m} images of each class: choose a batch_size "
                "that is a multiple of data.per_class"
            )
        if len(self.members) * m < batch_size:
            raise ValueError(
                f"a batch of {batch_size} with {m} images of each class needs {batch_size // m} "
                f"classes, and there are {len(self.members)} at level {what!r}: set data.per_class to "
                f"{-(-batch_size // len(self.members))} or more, lower batch_size, or use "
                "data.sampler='class_balanced'"
            )
        self.m = m

    def hands(self, deck: Deck) -> Iterable[tuple[int, int]]:
        """m images of each of B / m classes."""
        return [(name, self.m) for name in deck.deal(self.batch_size // self.m)]

    def describe(self) -> str:
        """What a batch and an epoch have, and which classes are too small."""
        smaller = self._smaller(self.m)
        return (
            f"each batch has {self.m} images of each of {self.batch_size // self.m} of the "
            f"{len(self.members):,} classes at level {self.what!r}"
            + (f"; classes with fewer images, which repeat some: {smaller:,}" if smaller else "")
            + f"; the first epoch has {self.coverage:.1%} of the images"
            + self._unlabelled()
        )


class ClassBalanced(ByClass):
    """Every class equally often, in a batch (to within one image) and in an epoch."""

    def hands(self, deck: Deck) -> Iterable[tuple[int, int]]:
        """Each class as often as the others; in the order in which they were dealt."""
        return collections.Counter(deck.deal(self.batch_size)).items()

    def describe(self) -> str:
        """What a batch and an epoch have, and which classes are too small."""
        most = -(-self.batch_size // len(self.members))
        smaller = self._smaller(most)
        return (
            f"each batch has about {self.batch_size / len(self.members):.3g} images of each of the "
            f"{len(self.members):,} classes at level {self.what!r}"
            + (
                f"; classes with fewer than {most}, which repeat some: {smaller:,}"
                if smaller
                else ""
            )
            + f"; the first epoch has {self.coverage:.1%} of the images"
            + self._unlabelled()
        )
