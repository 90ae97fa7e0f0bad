"""Labels as numbers of paths, so that equal numbers mean agreement."""

from __future__ import annotations

import numpy as np

from jaxcl.data.arrays import ArraySource
from jaxcl.data.base import Source
from jaxcl.data.labels import Labels, LabelTree
from jaxcl.data.relabel import Relabelled


def by_path(source: Source) -> Source:
    """The same examples with a label for each path: where labels are equal, all coarser ones are.

    A label of a tree means a path, and its name may stand under several parents. Here every path
    has a number, and a name, of its own (``"a/b"``), and below a missing label all are missing. A
    single level, and a tree declared unique, keep their numbers.

    Args:
      source: the data, usually those to train on; paths are numbered by what occurs in them.
    """
    tree = source.tree
    if tree.depth <= 1:
        return source
    labels = source.labels
    numbers = path_numbers(tree, labels, labels)
    if not tree.unique:
        tree = _path_tree(tree, labels, numbers)
    elif np.array_equal(numbers, labels):
        return source
    if isinstance(source, ArraySource):
        names = tuple(source.name(i) for i in range(len(source)))
        return ArraySource(source.images, numbers, tree, names=names)
    return Relabelled(source, numbers, tree)


def path_numbers(tree: LabelTree, labels: Labels, reference: Labels) -> Labels:
    """The numbers i32[N, L] that the paths of `labels` have in `by_path` of data with the labels `reference` i32[M, L].

    A path that does not occur there gets a number beyond theirs.
    """
    if tree.depth <= 1:
        return labels
    if tree.unique:
        whole = np.logical_and.accumulate(labels >= 0, axis=1)
        return np.where(whole, labels, -1).astype(np.int32)
    return tree.paths(labels, reference)


def _path_tree(tree: LabelTree, labels: Labels, numbers: Labels) -> LabelTree:
    """The tree of the paths of labels i32[N, L], which `numbers` numbers."""

    def name(path: Labels) -> str:
        return "/".join(names[i] for names, i in zip(tree.names, path.tolist(), strict=False))

    names = []
    for level in range(tree.depth):
        paths, first = np.unique(numbers[:, level], return_index=True)
        names.append(tuple(name(labels[row, : level + 1]) for row in first[paths >= 0]))
    return LabelTree(tree.levels, tuple(names), unique=True)
