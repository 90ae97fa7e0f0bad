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
    nothing, so that the relatives of a branch that ends early are of its last class; examples without
    a label at the coarsest level are never drawn.

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
        """What the groups are, which examples have no partner, and what an epoch has."""
        cut = self.batch_size % self.group
        degrees = [*(f"other {level}" for level in self.levels), "other image"]
        lacking = ", ".join(
            f"{degree} ({count:,} images)"
            for degree, count in zip(degrees, self.without_partner(), strict=True)
            if count
        )
        return (
            f"groups of {self.group} images by {', '.join(self.levels)}"
            + (f", the last of a batch cut to {cut}" if cut else "")
            + (f"; the nearest relative there is stands in for any {lacking}" if lacking else "")
            + f"; the first epoch has {self.coverage:.1%} of the images"
            + self._unlabelled()
        )


class _Tree:
    """The tree of the labels, whose last level are the examples, in arrays.

    The nodes of a level are numbered so that the children of a node follow one another.

    Attributes:
      depth: L, the number of levels of labels; level L are the examples.
      examples: i64[n], which row of the labels each node of level L is.
      ancestors: for levels -1 (the root) to L - 1, shifted by one, the node i64[n] above each node of
        level L.
      first: for each level, where the children at it of each node of the level above begin, and the
        end: i64[nodes above + 1].
      parent: for each level, the node of the level above of each of its nodes.
    """

    def __init__(self, labels: npt.NDArray[np.integer]) -> None:
        """Makes the tree of labels [n, L] of examples with a label at level 0."""
        n, self.depth = labels.shape
        # A missing label is one of its own, and so is an example.
        own = np.arange(n, dtype=np.int64) + labels.max(initial=0) + 1
        missing = np.logical_or.accumulate(labels < 0, axis=1)
        columns = [*np.where(missing, own[:, None], labels).T, own]
        nodes = [np.zeros(n, np.int64)]
        self.parent: list[npt.NDArray[np.int64]] = []
        self.first: list[npt.NDArray[np.int64]] = []
        for column in columns:
            keys = nodes[-1] * (int(own[-1]) + 1) + column
            _, at, ids = np.unique(keys, return_index=True, return_inverse=True)
            parent = nodes[-1][at]
            self.first.append(np.searchsorted(parent, np.arange(int(nodes[-1].max()) + 2)))
            self.parent.append(parent)
            nodes.append(ids.astype(np.int64))
        self.examples = np.argsort(nodes[-1])
        self.ancestors = [level[self.examples] for level in nodes[:-1]]

    def child_count(self, level: int) -> npt.NDArray[np.int64]:
        """How many children at `level` each node of the level above has."""
        return np.diff(self.first[level])


class _Pass:
    """One pass over the examples: which are new, and what is drawn.

    The examples of a leaf lie shuffled in a row, and the new ones are the last of them. At each level
    above, `order` lists the nodes, those with new examples below them first among their siblings, and
    `place` is where a node stands in it. `new` counts the new children, at each level, of a node of the
    level above. So each draw and each change of a node takes constant time.
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
        self.counts = [tree.child_count(level).tolist() for level in range(tree.depth + 1)]
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
            if new[leaf]:
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
        if self.counts[level][path[level]] == 1:
            level = self.stand_in(path, degree)
        parent, own = path[level], path[level + 1]
        if level == self.depth:
            if self.new[level][parent]:
                return self.take(parent)
        elif others := self.new[level][parent] - self.is_new(level, parent, own):
            # Where the own branch stands among the new ones, the next one stands in for it.
            position = self.first[level][parent] + int(next(self.draws) * others)
            position += position >= self.place[level][own]
            return self.take(self.leaf(level, self.order[level][position]))
        return self.again(level, parent, own)

    def stand_in(self, path: list[int], degree: int) -> int:
        """The next coarser level, or else the next finer one, at which there are other branches."""
        coarser, finer = range(degree - 1, -1, -1), range(degree + 1, self.depth + 1)
        for level in (*coarser, *finer):
            if self.counts[level][path[level]] > 1:
                return level
        return self.depth

    def again(self, level: int, parent: int, own: int) -> int:
        """An example below another child of `parent`, none of which is new."""
        others = self.counts[level][parent] - 1
        if not others:
            return own  # the only example there is
        first = self.first[level][parent]
        for _ in range(TRIES):
            node = first + int(next(self.draws) * others)
            node += node >= own
            for finer in range(level + 1, self.depth + 1):
                count = self.counts[finer][node]
                node = self.first[finer][node] + int(next(self.draws) * count)
            if self.batch_of[node] != self.batch:
                break
        self.batch_of[node] = self.batch
        return node

    def leaf(self, level: int, node: int) -> int:
        """A leaf with new examples below a node of this level that has some."""
        for finer in range(level + 1, self.depth):
            count = self.new[finer][node]
            node = self.order[finer][self.first[finer][node] + int(next(self.draws) * count)]
        return node

    def is_new(self, level: int, parent: int, node: int) -> bool:
        """Whether there are new examples below a node, which has this parent."""
        return self.place[level][node] < self.first[level][parent] + self.new[level][parent]

    def take(self, leaf: int) -> int:
        """The next new example of a leaf that has one."""
        new = self.new[-1]
        example = self.first[-1][leaf + 1] - new[leaf]
        new[leaf] -= 1
        if not new[leaf]:
            self.close(leaf)
        self.batch_of[example] = self.batch
        return example

    def close(self, node: int) -> None:
        """A leaf has no new example any more, and so it may be with the nodes above it."""
        for level in range(self.depth - 1, -1, -1):
            parent = self.parent[level][node]
            self.new[level][parent] -= 1
            order, place = self.order[level], self.place[level]
            last, at = self.first[level][parent] + self.new[level][parent], place[node]
            order[at], order[last] = order[last], node
            place[order[at]], place[node] = at, last
            if self.new[level][parent]:
                return
            node = parent


def _draws(stream: Stream) -> Iterator[float]:
    """Numbers in [0, 1), without end."""
    while True:
        yield from stream.uniforms(_DRAWS_AT_ONCE).tolist()
