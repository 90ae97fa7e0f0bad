"""Label trees: several levels of labels, coarse to fine, and the paths through them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class LabelTree:
    """What the columns of `labels[N, L]` mean, coarse to fine.

    `labels[i, l]` is an index into `names[l]`, or -1 where the label is missing (unlabelled
    examples, and branches that end early). A label is a *path*: two examples agree at level `l`
    when all their labels from level 0 to `l` agree and none of them is missing. A name may
    therefore stand under several parents, unless the tree is declared `unique`.

    Attributes:
      levels: the name of each level; empty for data without labels.
      names: for each level the names of its labels, in the order of their ids.
      unique: whether each label has one parent only; `check` then proves it.
    """

    levels: tuple[str, ...] = ()
    names: tuple[tuple[str, ...], ...] = ()
    unique: bool = False

    def __post_init__(self) -> None:
        if len(self.levels) != len(self.names):
            raise ValueError(
                f"a label tree needs one tuple of names for each level: {len(self.levels)} levels "
                f"{self.levels} but {len(self.names)} tuples of names"
            )
        if len(set(self.levels)) != len(self.levels):
            raise ValueError(f"the levels of a label tree need different names, got {self.levels}")
        for level, names in zip(self.levels, self.names, strict=True):
            if len(set(names)) != len(names):
                counts = collections.Counter(names)
                twice = sorted(name for name, count in counts.items() if count > 1)
                raise ValueError(
                    f"level {level!r} of the label tree lists the same name twice: {twice[:5]}; "
                    f"two ids of one level need different names"
                )

    @classmethod
    def of_names(
        cls, levels: Sequence[str], rows: Iterable[Sequence[str]], unique: bool = False
    ) -> LabelTree:
        """The tree of the label names that occur in `rows`, sorted at each level.

        Args:
          levels: names of the levels.
          rows: for each example its label names, coarse to fine; "" is missing, and a row may end
            early.
          unique: declare the tree unique.
        """
        found: list[set[str]] = [set() for _ in levels]
        for row in rows:
            for names, name in zip(found, row, strict=False):
                names.add(name)
        return cls(tuple(levels), tuple(tuple(sorted(names - {""})) for names in found), unique)

    def encode(self, rows: Sequence[Sequence[str]]) -> Labels:
        """Label names as ids i32[N, L], checked; "" and what a row lacks at its end become -1.

        Raises:
          ValueError: a name that is not in the tree, a row of too many names, or as `check`.
        """
        ids = [{name: i for i, name in enumerate(names)} | {"": -1} for names in self.names]
        labels = np.full((len(rows), self.depth), -1, np.int32)
        for i, row in enumerate(rows):
            if len(row) > self.depth:
                raise ValueError(
                    f"example {i} has {len(row)} labels {tuple(row)}, but there are only the "
                    f"levels {list(self.levels)}"
                )
            for level, name in enumerate(row):
                if name not in ids[level]:
                    raise ValueError(
                        f"example {i} has the label {name!r} at level {self.levels[level]!r}, "
                        f"which is not one of its {len(self.names[level])} names"
                    )
                labels[i, level] = ids[level][name]
        return self.check(labels)

    @property
    def depth(self) -> int:
        """The number of levels L."""
        return len(self.levels)

    def level(self, name: str) -> int:
        """The column of the level called `name`; ValueError that lists the levels if none is."""
        if name not in self.levels:
            raise ValueError(f"the data has no label level {name!r}; it has {list(self.levels)}")
        return self.levels.index(name)

    def check(self, labels: npt.NDArray[Any]) -> Labels:
        """Returns `labels` as i32[N, L] after checking them against the tree.

        Args:
          labels: integers [N, L], -1 for missing.

        Raises:
          ValueError: wrong shape or type, an id out of range (naming the example and the level),
            or, in a tree declared unique, a label under two parents (naming all three).
        """
        labels = np.asarray(labels)
        if labels.ndim != 2 or labels.shape[1] != self.depth:
            raise ValueError(
                f"labels must have the shape [examples, {self.depth}], one column for each of the "
                f"levels {list(self.levels)}; got {list(labels.shape)}"
            )
        if labels.size and not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"labels must be integers (-1 for missing), got {labels.dtype}")
        for column, (level, names) in enumerate(zip(self.levels, self.names, strict=True)):
            ids = labels[:, column]
            wrong = np.flatnonzero((ids < -1) | (ids >= len(names)))
            if wrong.size:
                raise ValueError(
                    f"label {int(ids[wrong[0]])} of example {int(wrong[0])} at level {level!r} is "
                    f"out of range: expected -1 (missing) to {len(names) - 1} "
                    f"({wrong.size} such examples)"
                )
        labels = labels.astype(np.int32)
        if self.unique:
            for fine in range(1, self.depth):
                self._check_one_parent(labels, fine)
        return labels

    def _check_one_parent(self, labels: Labels, fine: int) -> None:
        pairs = labels[:, [fine, fine - 1]]
        pairs = np.unique(pairs[(pairs >= 0).all(axis=1)], axis=0)
        again = np.flatnonzero(pairs[1:, 0] == pairs[:-1, 0])
        if again.size:
            child, first = (int(x) for x in pairs[again[0]])
            second = int(pairs[again[0] + 1, 1])
            raise ValueError(
                f"the label tree is declared unique, but {self.levels[fine]} "
                f"{self.names[fine][child]!r} stands under two parents at level "
                f"{self.levels[fine - 1]!r}: {self.names[fine - 1][first]!r} and "
                f"{self.names[fine - 1][second]!r}; correct the labels, or declare the tree with "
                f"unique=False so that each path counts as a class of its own"
            )

    def paths(self, labels: npt.NDArray[Any], reference: npt.NDArray[Any] | None = None) -> Labels:
        """Numbers the paths: i32[N, L], the class of each example at each level.

        At each level the paths that occur in `reference` get the ids 0, 1, 2, ... in
        lexicographic order of their labels; paths that occur in `labels` only are numbered on
        from there. A missing label makes the path -1 at its level and at all levels below.

        Args:
          labels: integers [N, L].
          reference: integers [M, L] that fix the numbering, `labels` themselves if None. Use one
            reference (the training labels) wherever ids of two sets are compared.

        Raises:
          ValueError: as `check`.
        """
        labels = self.check(labels)
        known = labels if reference is None else self.check(reference)
        both = np.concatenate([known, labels])
        out = np.full(both.shape, -1, np.int32)
        present = np.ones(len(both), bool)
        parents = np.zeros(len(both), np.int64)
        for column in range(self.depth):
            present &= both[:, column] >= 0
            keys = np.stack([parents[present], both[present, column]], axis=1)
            # Paths of the reference come first, so that they keep their ids whatever follows.
            old = np.unique(keys[: int(present[: len(known)].sum())], axis=0)
            new = np.unique(keys, axis=0)
            rank = {tuple(key): i for i, key in enumerate(old.tolist())}
            for key in new.tolist():
                rank.setdefault(tuple(key), len(rank))
            ids = [rank[tuple(key)] for key in keys.tolist()]
            out[present, column] = ids
            parents[present] = ids
        return out[len(known) :]

    def counts(self, labels: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], ...]:
        """For each level the number of examples i64[C] of each path, by the ids of `paths`."""
        columns = self.paths(labels).T
        return tuple(np.bincount(ids[ids >= 0]).astype(np.int64) for ids in columns)

    def describe(self, label: npt.NDArray[Any]) -> str:
        """One example's labels i[L] as text, `coarse/fine`, up to the first missing one."""
        parts = []
        for names, index in zip(self.names, np.asarray(label).tolist(), strict=True):
            if index < 0:
                break
            parts.append(names[index])
        return "/".join(parts)
