"""Batches in which every anchor has a relative of each degree (Zhang et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from jaxcl.data.philox import Stream, uniform_order
from jaxcl.data.samplers.base import Epochs, Indices

TRIES = 10
"""Draws of an image that was used already until one is not in the batch yet."""

_DRAWS_AT_ONCE = 4096


class Hierarchical(Epochs):
    """Groups of an anchor and one relative of every degree, for labels of L levels.

    A group has 2 + L rows, which are, coarse to fine as in the authors' code:

        the anchor,
        an image of another class of the coarsest level,
        an image of the same class there, and of another one at the next level,
        ...
        another image of the anchor's own class at the finest level.

    Whatever the labels, the epoch's images are the anchors in a random order, as far as they are not
    in it already. A relative is one of the classes that branch off from the anchor's path at its
    degree, all equally likely, and in it one of the branches at each level further down, and so on.
    Only branches with images that the epoch does not have yet are considered; if there is none, all
    of them are (and of the images drawn, one that is not in the batch yet, if it is found in `TRIES`
    draws). So an epoch, which is as many full batches as the data are large, has most images, and the
    partner of each degree is there wherever the tree has one. Where it has none, because a class has
    no sibling or a leaf one image only, the next coarser degree that has one takes the place, or else
    the next finer one. `describe` counts both.

    All batches have exactly B rows. If 2 + L does not divide B, the last group of a batch is cut, and
    what it lacks are the most distant relatives.

    Two examples agree at a level when their labels down to it agree. A missing label (-1) agrees with
    nothing, so that the relatives of a branch that ends early are of its last class. Nor is it known
    to be another label: at each choice of a branch, the examples whose labels end there stand behind
    those with a label. At the degree of a relative they are taken only where no other branch has a
    label, further down also where no example with one is new. As anchors they come like all others;
    `describe` counts them. Examples without a label at the coarsest level are never drawn.

    It differs from the authors' code, where anchors are drawn with replacement, a relative that is
    not found is replaced by any image, and the last images of an epoch are never used.
    """

    def __init__(
        self, labels: npt.ArrayLike, batch_size: int, seed: int = 0, *, levels: tuple[str, ...] = ()
    ) -> None:
        """Makes the tree of the labels.

        Args:
          labels: integers [N, L], coarse to fine, -1 for missing.
          batch_size: examples of the global batch.
          seed: of all draws.
          levels: names of the L levels, for messages.

        Raises:
          ValueError: no labels, or sizes that do not fit.
        """
        labels = np.asarray(labels)
        if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"labels must be integers [N, L], got {labels.dtype}{list(labels.shape)}"
            )
        super().__init__(len(labels), batch_size, seed)
        self._eligible = (
            np.flatnonzero(labels[:, 0] >= 0) if labels.shape[1] else np.zeros(0, np.int64)
        )
        if not len(self._eligible):
            raise ValueError(
                f"none of the {self.n} examples has a label, which the hierarchical sampler needs: "
                "set data.sampler='uniform', or say where the labels are"
            )
        self.levels = levels or tuple(f"level {i}" for i in range(labels.shape[1]))
        self._tree = _Tree(labels[self._eligible])
        missing = np.logical_or.accumulate(labels[self._eligible] < 0, axis=1)
        self._ending = np.diff(missing.sum(0))

    @property
    def group(self) -> int:
        """Rows of a group: the anchor and a relative of each degree, 2 + L."""
        return 2 + len(self.levels)

    @property
    def eligible(self) -> npt.NDArray[np.int64]:
        """The examples with a label at the coarsest level."""
        return self._eligible

    def epoch(self, number: int) -> Indices:
        """The batches i64[steps, B] of an epoch."""
        rows = _Pass(self._tree, self.seed, number).batches(self.steps_per_epoch, self.batch_size)
        # The tree numbers the examples in its own order.
        return self._eligible[self._tree.examples[rows]]

    def without_partner(self) -> tuple[int, ...]:
        """For each degree (another class at each level; another image) the examples that have none."""
        tree = self._tree
        return tuple(
            int((tree.child_count(degree)[tree.ancestors[degree]] == 1).sum())
            for degree in range(len(self.levels) + 1)
        )

    def describe(self) -> str:
        """What the groups are, which examples have no partner or end early, and what an epoch has."""
        cut = self.batch_size % self.group
        degrees = [*(f"other {level}" for level in self.levels), "other image"]
        lacking = ", ".join(
            f"{degree} ({count:,} images)"
            for degree, count in zip(degrees, self.without_partner(), strict=True)
            if count
        )
        ending = ", ".join(
            f"{level} ({count:,} images)"
            for level, count in zip(self.levels[1:], self._ending.tolist(), strict=True)
            if count
        )
        return (
            f"groups of {self.group} images by {', '.join(self.levels)}"
            + (f", the last of a batch cut to {cut}" if cut else "")
            + (f"; the nearest relative there is stands in for any {lacking}" if lacking else "")
            + (f"; labels that end before {ending} stand behind their siblings" if ending else "")
            + f"; the first epoch has {self.coverage:.1%} of the images"
            + self._unlabelled()
        )


class _Tree:
    """The tree of the labels, whose last level are the examples, in arrays.

    The nodes of a level are numbered so that the children of a node follow one another, in two
    families: first those with a label, which is family 2p of node p, then those whose labels end at p,
    each a node of its own, family 2p + 1.

    Attributes:
      depth: L, the number of levels of labels; level L are the examples, all in families 2p.
      examples: i64[n], which row of the labels each node of level L is.
      ancestors: for levels -1 (the root) to L - 1, shifted by one, the node i64[n] above each node of
        level L.
      first: for each level, where the families of the nodes of the level above begin in it, and the
        end: i64[2 * nodes above + 1].
      parent: for each level, the node of the level above of each of its nodes.
    """

    def __init__(self, labels: npt.NDArray[np.integer]) -> None:
        """Makes the tree of labels [n, L] of examples with a label at level 0."""
        n, self.depth = labels.shape
        # A missing label is one of its own, behind all labels, and so is an example.
        own = np.arange(n, dtype=np.int64) + np.max(labels, initial=0) + 1
        ended = np.zeros((n, self.depth + 1), bool)
        ended[:, :-1] = np.logical_or.accumulate(labels < 0, axis=1)
        columns = [*np.where(ended[:, :-1], own[:, None], labels).T, own]
        nodes = [np.zeros(n, np.int64)]
        self.parent: list[npt.NDArray[np.int64]] = []
        self.first: list[npt.NDArray[np.int64]] = []
        for column, unlabelled in zip(columns, ended.T, strict=True):
            keys = nodes[-1] * (int(own[-1]) + 1) + column
            _, at, ids = np.unique(keys, return_index=True, return_inverse=True)
            parent = nodes[-1][at]
            family = 2 * parent + unlabelled[at]
            self.first.append(np.searchsorted(family, np.arange(2 * int(np.max(nodes[-1])) + 3)))
            self.parent.append(parent)
            nodes.append(ids.astype(np.int64))
        self.examples = np.argsort(nodes[-1])
        self.ancestors = [level[self.examples] for level in nodes[:-1]]

    def child_count(self, level: int) -> npt.NDArray[np.int64]:
        """How many children at `level` each node of the level above has."""
        return np.diff(self.first[level][::2])


class _Pass:
    """One pass over the examples: which are new, and what is drawn.

    The examples of a leaf lie shuffled in a row, and the new ones are the last of them. At each level
    above, `order` lists the nodes, those with new examples below them first in their family, and
    `place` is where a node stands in it. `counts` and `new` are the nodes, and those with new examples,
    of each family of each level. So each draw and each change of a node takes constant time.
    """

    def __init__(self, tree: _Tree, seed: int, number: int) -> None:
        shuffle = uniform_order(len(tree.examples), seed, number)
        leaves = tree.ancestors[-1][shuffle]
        self.rows = shuffle[np.argsort(leaves, kind="stable")]
        self.anchors = leaves.tolist()
        self.depth = tree.depth
        self.draws = _draws(Stream(seed, number))
        self.first = [level.tolist() for level in tree.first]
        self.parent = [level.tolist() for level in tree.parent[:-1]]
        self.counts = [np.diff(level).tolist() for level in tree.first]
        self.order = [list(range(len(parent))) for parent in self.parent]
        self.place = [list(range(len(parent))) for parent in self.parent]
        self.batch_of = [-1] * len(self.anchors)
        self.batch = 0
        self.begin()

    def begin(self) -> None:
        """All examples are new."""
        self.new = [list(counts) for counts in self.counts]
        self.remaining = iter(self.anchors)

    def batches(self, steps: int, size: int) -> Indices:
        """The examples i64[steps, size], as nodes of the last level."""
        relatives = self.depth + 1
        places = np.empty((steps, size), np.int64)
        for step in range(steps):
            self.batch = step
            batch: list[int] = []
            while (room := size - len(batch)) > 0:
                leaf = self.anchor()
                batch.append(self.take(leaf))
                path = self.path(leaf, batch[-1])
                degrees = range(max(0, relatives + 1 - room), relatives)
                batch += [self.relative(path, degree) for degree in degrees]
            places[step] = batch
        return self.rows[places]

    def anchor(self) -> int:
        """The leaf of the next anchor; after the last new example all are new again."""
        # A leaf comes as often as it has examples, so that none is left behind.
        new = self.new[-1]
        for leaf in self.remaining:
            if new[2 * leaf]:
                return leaf
        self.begin()
        return self.anchor()

    def path(self, leaf: int, example: int) -> list[int]:
        """The nodes from the root to the example."""
        nodes = [example, leaf]
        for parent in reversed(self.parent):
            nodes.append(parent[nodes[-1]])
        nodes.reverse()
        return nodes

    def relative(self, path: list[int], degree: int) -> int:
        """An example whose path leaves this one at level `degree`, or else nearest to it."""
        level = degree
        if self.is_alone(level, path[level]):
            level = self.stand_in(path, degree)
        parent, own = path[level], path[level + 1]
        if level == self.depth:
            if self.new[level][2 * parent]:
                return self.take(parent)
            return self.again(level, 2 * parent, own)
        family = 2 * parent
        if self.counts[level][family] == self.has(level, family, own):
            family += 1  # no other branch has a label
        within = self.has(level, family, own)
        new, first = self.new[level][family], self.first[level][family]
        # Where the own branch stands among the new ones, the next one stands in for it.
        place = self.place[level][own] if within else first + new
        if others := new - (place < first + new):
            position = first + int(next(self.draws) * others)
            position += position >= place
            return self.take(self.leaf(level, self.order[level][position]))
        return self.again(level, family, own)

    def is_alone(self, level: int, parent: int) -> bool:
        """Whether a node has one child only."""
        return self.counts[level][2 * parent] + self.counts[level][2 * parent + 1] == 1

    def has(self, level: int, family: int, node: int) -> bool:
        """Whether a node of the level is in a family."""
        return self.first[level][family] <= node < self.first[level][family + 1]

    def stand_in(self, path: list[int], degree: int) -> int:
        """The next coarser level, or else the next finer one, at which there are other branches."""
        coarser, finer = range(degree - 1, -1, -1), range(degree + 1, self.depth + 1)
        for level in (*coarser, *finer):
            if not self.is_alone(level, path[level]):
                return level
        return self.depth

    def again(self, level: int, family: int, own: int) -> int:
        """An example below another node of a family, none of which is new."""
        within = self.has(level, family, own)
        others = self.counts[level][family] - within
        if not others:
            return own  # the only example there is
        first = self.first[level][family]
        for _ in range(TRIES):
            node = first + int(next(self.draws) * others)
            node += within and node >= own
            for finer in range(level + 1, self.depth + 1):
                family = 2 * node + (not self.counts[finer][2 * node])
                count = self.counts[finer][family]
                node = self.first[finer][family] + int(next(self.draws) * count)
            if self.batch_of[node] != self.batch:
                break
        self.batch_of[node] = self.batch
        return node

    def leaf(self, level: int, node: int) -> int:
        """A leaf with new examples below a node of this level that has some."""
        for finer in range(level + 1, self.depth):
            family = 2 * node + (not self.new[finer][2 * node])
            count = self.new[finer][family]
            node = self.order[finer][self.first[finer][family] + int(next(self.draws) * count)]
        return node

    def take(self, leaf: int) -> int:
        """The next new example of a leaf that has one."""
        new, family = self.new[-1], 2 * leaf
        example = self.first[-1][family + 1] - new[family]
        new[family] -= 1
        if not new[family]:
            self.close(leaf)
        self.batch_of[example] = self.batch
        return example

    def close(self, node: int) -> None:
        """A leaf has no new example any more, and so it may be with the nodes above it."""
        for level in range(self.depth - 1, -1, -1):
            parent = self.parent[level][node]
            family = 2 * parent + (node >= self.first[level][2 * parent + 1])
            new = self.new[level]
            new[family] -= 1
            order, place = self.order[level], self.place[level]
            last, at = self.first[level][family] + new[family], place[node]
            order[at], order[last] = order[last], node
            place[order[at]], place[node] = at, last
            if new[2 * parent] or new[2 * parent + 1]:
                return
            node = parent


def _draws(stream: Stream) -> Iterator[float]:
    """Numbers in [0, 1), without end."""
    while True:
        yield from stream.uniforms(_DRAWS_AT_ONCE).tolist()
