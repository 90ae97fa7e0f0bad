"""What a published layout is: from its lists to files, labels and splits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxcl.data.decode import MAX_PIXELS
from jaxcl.data.labels import LabelTree
from jaxcl.data.listed import ListedSource

Rows = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Listing:
    """All images of a data set.

    Attributes:
      folder: what the files are relative to.
      files: of all images, with "/".
      names: label names of each image, coarse to fine; "" is missing.
      splits: split -> its images, as positions in `files`. An image may be in several.
      tree_names: rows of label names that stand in the lists although they have no image.
      sizes: bytes of each file, if they are known already.
    """

    folder: Path
    files: Sequence[str]
    names: Sequence[tuple[str, ...]]
    splits: Mapping[str, Rows]
    tree_names: Sequence[tuple[str, ...]] = ()
    sizes: Sequence[int] | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """A published layout.

    Attributes:
      levels: names of its label levels, coarse to fine.
      read: (folder, version) -> all its images; a version is what `data.dataset` says, "" for the usual.
      published: (version) -> split -> {"images": number, level: number of names} as published; a split that
        is not there is not checked.
      unique: whether each label has one parent.
      versions: those that there are.
    """

    levels: tuple[str, ...]
    read: Callable[[Path, str], Listing]
    published: Callable[[str], Mapping[str, Mapping[str, int]]]
    unique: bool = False
    versions: tuple[str, ...] = ("",)

    def counts(self, version: str) -> Mapping[str, Mapping[str, int]]:
        """The published numbers of a version, see `published`; ValueError if there is no such version."""
        return self.published(checked(version, self.versions, "data.dataset"))

    def open(
        self,
        folder: Path,
        version: str,
        split: str,
        *,
        levels: Sequence[str] = (),
        unique: bool = False,
        channels: int = 3,
        max_pixels: int = MAX_PIXELS,
    ) -> ListedSource:
        """A split; label ids mean the same in all of them.

        Args:
          folder: of the data set.
          version: "" for the usual one.
          split: one of those of the layout.
          levels: some of the layout's levels, coarse to fine; () for all. Without those above it a class is
            its name, wherever it stands.
          unique: declare the tree unique (see `LabelTree`), whatever the layout says.
          channels: 3 or 1.
          max_pixels: larger images are bad examples.

        Raises:
          ValueError: a list is missing or malformed, or there is no such version, split or level.
        """
        columns = [self._column(level) for level in levels or self.levels]
        listing = self.read(folder, checked(version, self.versions, "data.dataset"))
        if split not in listing.splits:
            raise ValueError(
                f"the data have no split {split!r}: {str(folder)!r} has {sorted(listing.splits)}; "
                "data.splits may call one of them by another name, and data.holdout makes a 'val'"
            )
        rows = listing.splits[split].tolist()
        if not rows:
            raise ValueError(f"the split {split!r} of {str(folder)!r} lists no images")
        names, others = (
            [tuple(row[column] for column in columns) for row in part]
            for part in (listing.names, listing.tree_names)
        )
        tree = LabelTree.of_names(
            [self.levels[column] for column in columns], [*names, *others], self.unique or unique
        )
        return ListedSource(
            listing.folder,
            [listing.files[row] for row in rows],
            [names[row] for row in rows],
            tree,
            sizes=None if listing.sizes is None else [listing.sizes[row] for row in rows],
            channels=channels,
            max_pixels=max_pixels,
        )

    def _column(self, level: str) -> int:
        return self.levels.index(checked(level, self.levels, "a level of data.label_keys"))


def fields(
    path: Path, columns: int, header: str = "", skip: int = 0
) -> Iterator[tuple[int, list[str]]]:
    """The lines of a list: (number of the line, its words).

    Args:
      path: of the list.
      columns: words of a line; further ones belong to the last.
      header: words that must stand in the line before the first one; "" for no such line.
      skip: lines before the header.

    Raises:
      ValueError: the list is missing, cannot be read, has another header, or a line of fewer words.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the list {str(path)!r} cannot be read: {error}") from error
    if header:
        found = lines[skip].split() if len(lines) > skip else []
        if found != header.split():
            raise ValueError(
                f"line {skip + 1} of {str(path)!r} is {' '.join(found)!r}: expected {header!r}"
            )
        skip += 1
    for number, line in enumerate(lines[skip:], skip + 1):
        words = line.split(maxsplit=columns - 1)
        if not words:
            continue
        if len(words) < columns:
            raise ValueError(
                f"line {number} of {str(path)!r} is {line!r}: expected {columns} columns"
                + (f", {header}" if header else "")
            )
        yield number, [word.rstrip() for word in words]


def table(path: Path, columns: int = 2) -> dict[str, list[str]]:
    """A list without a header as a mapping: first word of a line -> the others.

    Raises:
      ValueError: as `fields`, or a first word comes twice.
    """
    found: dict[str, list[str]] = {}
    for number, (key, *values) in fields(path, columns):
        if key in found:
            raise ValueError(f"line {number} of {str(path)!r} is about {key!r} a second time")
        found[key] = values
    return found


def matlab(path: Path, *names: str) -> list[Any]:
    """Variables of a MATLAB file (version 5 to 7), squeezed.

    Raises:
      ValueError: the file is missing or damaged, or has no such variable.
    """
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        found = loadmat(path, squeeze_me=True, variable_names=names)
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
    for name in names:
        if name not in found:
            raise ValueError(f"{str(path)!r} has no variable {name!r}")
    return [found[name] for name in names]


def rows_where(wanted: Sequence[bool] | npt.NDArray[np.bool_]) -> Rows:
    """The positions at which something holds."""
    return np.flatnonzero(np.asarray(wanted, bool))


def checked(value: str, allowed: Sequence[str], what: str) -> str:
    """The value if it is one of those allowed.

    Raises:
      ValueError: it is not.
    """
    if value not in allowed:
        raise ValueError(f"{what} is {value!r}: expected one of {list(allowed)}")
    return value
