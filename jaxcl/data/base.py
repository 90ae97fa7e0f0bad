"""What a source of images is, and the error for an example that cannot be read."""

from __future__ import annotations

from typing import Protocol, TypedDict

import numpy as np
import numpy.typing as npt

from jaxcl.data.labels import Labels, LabelTree


class Example(TypedDict):
    """One decoded example."""

    image: npt.NDArray[np.uint8]  # [h, w, C], C = 1 or 3
    label: npt.NDArray[np.int32]  # [L]


class BadExample(ValueError):
    """An example that cannot be read: `name` says which one, `reason` why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        # Names come from file systems and tables: newlines and control characters are escaped.
        return f"{self.name!r}: {self.reason}"


class Source(Protocol):
    """A finite, random-access collection of images; any order of access gives the same examples.

    `content_id` is a digest of *what* the data is (not where it lies): moved data keeps it,
    changed data does not. A resumed run compares it.
    """

    @property
    def labels(self) -> Labels:
        """All labels i32[N, L], -1 for missing, known without decoding an image."""

    @property
    def tree(self) -> LabelTree:
        """What the label columns mean."""

    @property
    def content_id(self) -> str:
        """Hexadecimal digest of the content."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Decodes one example; BadExample if it cannot be read."""

    def name(self, index: int) -> str:
        """What an error message calls the example, for instance its file name."""

    def place(self, index: int) -> str:
        """Where the example is: a name that no example of another split of the data has too."""

    def describe(self) -> str:
        """What the source is, for people, in a line."""


class Described:
    """Gives a source its texts; what describes it depends on its content only."""

    tree: LabelTree
    content_id: str

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} has no length")

    def name(self, index: int) -> str:
        """What the example is called."""
        raise TypeError(f"{type(self).__name__} has no names")

    def place(self, index: int) -> str:
        """Its name, if that tells the splits apart."""
        return self.name(index)

    def describe(self) -> str:
        """Number of images and of the names at each label level, in a line."""
        levels = ", ".join(
            f"{level} ({len(names):,})"
            for level, names in zip(self.tree.levels, self.tree.names, strict=True)
        )
        return f"{len(self):,} images, " + (f"labels: {levels}" if levels else "no labels")

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(examples={len(self)}, levels={list(self.tree.levels)}, "
            f"content_id={self.content_id!r})"
        )
