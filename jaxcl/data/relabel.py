"""The same images with other labels: of another tree, or of some of the classes only."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxcl.data.arrays import ArraySource
from jaxcl.data.base import Described, Example, Source
from jaxcl.data.labels import Labels, LabelTree
from jaxcl.data.subset import subset
from jaxcl.data.taxonomy import Taxonomy


class Relabelled(Described):
    """A source with other labels."""

    def __init__(
        self, source: Source, labels: Labels, tree: LabelTree, content_id: str | None = None
    ) -> None:
        """Gives the examples of `source` these labels i32[N, L] of this tree; use `relabelled`.

        Args:
          source: the images.
          labels: i32[N, L].
          tree: what they mean.
          content_id: of the whole; that of the source if the labels follow from its own.
        """
        self.source = source
        self.labels = labels
        self.tree = tree
        self.content_id = source.content_id if content_id is None else content_id

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        """An example of the source, with its other labels."""
        return {"image": self.source[index]["image"], "label": self.labels[index]}

    def name(self, index: int) -> str:
        """Its name in the source."""
        return self.source.name(index)

    def place(self, index: int) -> str:
        """Its place in the source."""
        return self.source.place(index)


def relabelled(source: Source, labels: Labels, tree: LabelTree) -> Source:
    """The images of a source with these labels i32[N, L]; images in memory stay in memory."""
    if isinstance(source, ArraySource):
        names = tuple(source.name(i) for i in range(len(source)))
        return ArraySource(source.images, labels, tree, names=names)
    digest = hashlib.blake2b(source.content_id.encode(), digest_size=16)
    digest.update(labels.tobytes())
    digest.update(repr((tree.levels, tree.names)).encode())
    return Relabelled(source, labels, tree, digest.hexdigest())


def with_taxonomy(source: Source, taxonomy: Taxonomy, unique: bool = False) -> Source:
    """The images of a source of one label level, whose labels are the paths of a taxonomy.

    Args:
      source: the images.
      taxonomy: has a path for each name of the level, whether it has images or not.
      unique: declare the tree unique (see `LabelTree`).

    Raises:
      ValueError: another number of levels, or a name without a path.
    """
    if source.tree.depth != 1:
        raise ValueError(
            f"data.taxonomy gives one label its ancestors, and the data have the levels "
            f"{list(source.tree.levels)}: choose one with data.labels='parent' or data.label_keys"
        )
    (level,), (names,) = source.tree.levels, source.tree.names
    paths = [taxonomy.path(name) for name in names]
    if missing := [name for name, path in zip(names, paths, strict=True) if path is None]:
        raise ValueError(
            f"data.taxonomy has no path for {len(missing)} of the {len(names)} names of level {level!r}: "
            f"{', '.join(missing[:5])}"
        )
    known = [path for path in paths if path is not None]
    tree = LabelTree.of_names(taxonomy.levels(level), known, unique)
    coded = np.concatenate([tree.encode(known), np.full((1, tree.depth), -1, np.int32)])
    return relabelled(source, coded[source.labels[:, 0]], tree)  # -1, no label, is the last row


def read_classes(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a class list: one class a line; empty lines and those that begin with # do not count.

    Raises:
      ValueError: the file cannot be read, or lists no class.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data.classes_file={str(path)!r} cannot be read: {error}") from error
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise ValueError(f"data.classes_file={str(path)!r} lists no class")
    return found


def only_classes(source: Source, classes: Sequence[str]) -> Source:
    """The images of some classes of the finest level, which are numbered anew in the order of the data.

    Args:
      source: the images.
      classes: a name each, or a line whose first word is one ("n01558993 robin").

    Raises:
      ValueError: a class that the data do not have, no labels, or no image of these classes.
    """
    if not source.tree.depth:
        raise ValueError("data.classes_file needs labels, and the data have none")
    level, names = source.tree.levels[-1], source.tree.names[-1]
    known = set(names)
    wanted = {line if line in known else line.split()[0] for line in classes}
    if unknown := sorted(wanted - known):
        raise ValueError(
            f"{len(unknown)} of the {len(wanted)} classes of data.classes_file are not among the {len(names)} at level "
            f"{level!r}: {', '.join(unknown[:5])}"
        )
    kept = [i for i, name in enumerate(names) if name in wanted]
    numbers = np.full(len(names) + 1, -1, np.int32)  # the last one is for -1, no label
    numbers[kept] = np.arange(len(kept))
    rows = np.flatnonzero(numbers[source.labels[:, -1]] >= 0)
    if not len(rows):
        raise ValueError(f"none of the {len(source)} images is of a class of data.classes_file")
    part = subset(source, rows)
    labels = part.labels.copy()
    labels[:, -1] = numbers[labels[:, -1]]
    finest = tuple(names[i] for i in kept)
    tree = LabelTree(source.tree.levels, (*source.tree.names[:-1], finest), source.tree.unique)
    return relabelled(part, labels, tree)
