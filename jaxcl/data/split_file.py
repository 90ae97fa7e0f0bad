"""Splits into seen and unseen classes, kept in a file: train on the seen, test on the unseen.

The file says which classes of one label level are seen and which are not, and which share of the
images of each kind belongs to which split. An image's place in [0, 1) is a digest of its name (or of
its class at a finer level, where whole classes stay together) and the seed, so that the file is
small, works for any source, and does not depend on the order of the images or on where they lie.

    train, val     seen classes, to learn from and to choose settings on; `seen` is both
    test           other images of the seen classes
    unseen_train   some images of the unseen classes, to learn these classes from
    unseen_test    the others; `unseen` is both, where they come from one split of the source
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxcl.data.base import Source
from jaxcl.data.subset import subset

Name = tuple[str, ...]
"""A class: the names of the labels on its path, coarse to fine."""

FORMAT = "jaxcl split 1"


@dataclasses.dataclass(frozen=True)
class Part:
    """Which images a split has.

    Attributes:
      split: split of the source that they come from.
      unseen: whether they are of unseen classes.
      low: smallest place of its images, in [0, 1).
      high: place before which they end.
    """

    split: str
    unseen: bool
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"places {self.low} to {self.high}: expected 0 <= low < high <= 1")


@dataclasses.dataclass(frozen=True)
class SplitFile:
    """A division of a source into seen and unseen classes.

    Attributes:
      by: the label level of the classes.
      together: a finer level whose classes are not divided; "" places each image by itself.
      seed: of the places.
      seen: the seen classes.
      unseen: the unseen ones.
      parts: the splits by name.
    """

    by: str
    together: str
    seed: int
    seen: tuple[Name, ...]
    unseen: tuple[Name, ...]
    parts: dict[str, Part]

    def __post_init__(self) -> None:
        for kind, names in (("seen", self.seen), ("unseen", self.unseen)):
            if not names:
                raise ValueError(f"there is no {kind} class at level {self.by!r}")
        if both := set(self.seen) & set(self.unseen):
            raise ValueError(f"the class {_text(min(both))} is both seen and unseen")

    def load(self, open_split: Callable[[str], Source], name: str) -> Source:
        """A split.

        Args:
          open_split: opens a split of the source by name.
          name: of the split.

        Raises:
          ValueError: there is no such split, no image in it, no such level, or the data have a class
            that the file does not know.
        """
        if name not in self.parts:
            raise ValueError(f"there is no split {name!r}: the split file has {list(self.parts)}")
        source = open_split(self.parts[name].split)
        rows = self.rows(source, name)
        if not len(rows):
            kind = "unseen" if self.parts[name].unseen else "seen"
            raise ValueError(
                f"the split {name!r} has no image: none of the {len(source)} of "
                f"{self.parts[name].split!r} is of the {kind} classes and in its share"
            )
        return subset(source, rows)

    def rows(self, source: Source, name: str) -> npt.NDArray[np.int64]:
        """Rows of a source that a split has; none without a label at the level is in any split.

        Raises:
          ValueError: no such level, or a class that the file does not know.
        """
        part = self.parts[name]
        classes = class_names(source, self.by)
        kinds = dict.fromkeys(self.seen, False) | dict.fromkeys(self.unseen, True)
        if strange := {c for c in classes if c is not None} - set(kinds):
            raise ValueError(
                f"the split file does not know the {self.by} {_text(min(strange))} "
                f"({len(strange)} such classes): it was made for other data; make it anew"
            )
        wanted = np.array([c is not None and kinds[c] == part.unseen for c in classes], bool)
        chosen = np.flatnonzero(wanted)
        where = places(source, self.together, self.seed, chosen)
        return chosen[(part.low <= where) & (where < part.high)]

    def to_json(self) -> str:
        """The file's text."""
        plain = {"format": FORMAT, **dataclasses.asdict(self)}
        return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def class_names(source: Source, level: str) -> list[Name | None]:
    """The class of each example at a level; None where it has no label there.

    Raises:
      ValueError: the source has no such level.
    """
    tree = source.tree
    depth = tree.level(level) + 1
    columns = source.labels[:, :depth]
    known: dict[tuple[int, ...], Name | None] = {}
    found = []
    for ids in map(tuple, columns.tolist()):
        if ids not in known:
            known[ids] = (
                None if -1 in ids else tuple(tree.names[i][label] for i, label in enumerate(ids))
            )
        found.append(known[ids])
    return found


def places(
    source: Source, together: str, seed: int, rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """The place f64[n] in [0, 1) of each of the rows.

    Raises:
      ValueError: the source has no level `together`.
    """
    groups = class_names(source, together) if together else None

    def key(row: int) -> tuple[str, ...]:
        group = groups[row] if groups else None
        return (source.name(row),) if group is None else ("", *group)

    return np.array([_place(key(row), seed) for row in rows.tolist()], np.float64)


def make(
    source: Source,
    by: str,
    unseen: float,
    seed: int = 0,
    *,
    split: str = "train",
    val: float = 0.1,
    test: float = 0.2,
    unseen_test: float = 0.5,
    test_split: str = "",
    together: str = "",
) -> SplitFile:
    """Divides a source.

    Args:
      source: the images of `split`.
      by: label level of the classes.
      unseen: share of its classes that are unseen, rounded, at least one.
      seed: of the choice of classes and the places of images.
      split: the name of what is divided.
      val: share of the images of seen classes for choosing settings; 0 for no such split.
      test: share of the images of seen classes that are tested.
      unseen_test: share of the images of unseen classes that are tested.
      test_split: a split of the source whose images are the tested ones; `test` and `unseen_test`
        then do nothing.
      together: a finer level whose classes are not divided.

    Raises:
      ValueError: a share out of range, fewer than two classes, or a level that does not exist or is
        not finer.
    """
    for name, share in (("unseen", unseen), ("unseen_test", unseen_test)):
        if not 0 < share < 1:
            raise ValueError(f"{name}={share}: expected a share above 0 and below 1")
    if seed < 0 or min(val, test) < 0 or val + (0 if test_split else test) >= 1:
        raise ValueError(
            f"val={val}, test={test}, seed={seed}: expected shares that leave some for training, and "
            "a seed of 0 or more"
        )
    if not (test or test_split):
        raise ValueError("test=0: expected a share above 0, or the name of a split to test on")
    if together and source.tree.level(together) <= source.tree.level(by):
        raise ValueError(f"together={together!r}: expected a level finer than {by!r}")
    names = sorted({name for name in class_names(source, by) if name is not None})
    if len(names) < 2:
        raise ValueError(
            f"{len(names)} class(es) have images at level {by!r}: seen and unseen need at least one "
            "each"
        )
    count = min(max(1, round(unseen * len(names))), len(names) - 1)
    by_chance = sorted(names, key=lambda name: (_place(name, seed), name))
    parts: dict[str, Part] = {}
    first = 0.0 if test_split else test
    parts["train"] = Part(split, False, first + val, 1.0)
    if val:
        parts["val"] = Part(split, False, first, first + val)
        parts["seen"] = Part(split, False, first, 1.0)
    if test_split:
        parts["test"] = Part(test_split, False, 0.0, 1.0)
        parts["unseen_train"] = Part(split, True, 0.0, 1.0)
        parts["unseen_test"] = Part(test_split, True, 0.0, 1.0)
    else:
        parts["test"] = Part(split, False, 0.0, test)
        parts["unseen_train"] = Part(split, True, unseen_test, 1.0)
        parts["unseen_test"] = Part(split, True, 0.0, unseen_test)
        parts["unseen"] = Part(split, True, 0.0, 1.0)
    return SplitFile(
        by,
        together,
        seed,
        seen=tuple(sorted(by_chance[count:])),
        unseen=tuple(sorted(by_chance[:count])),
        parts=parts,
    )


def read(path: str | os.PathLike[str]) -> SplitFile:
    """Reads a split file.

    Raises:
      ValueError: no such file, or no such content; the text says what is wrong.
    """
    try:
        plain = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"the split file {str(path)!r} cannot be read: {error}") from error
    try:
        return _parse(plain)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{str(path)!r} is no split file, or is damaged: {reason}; make it with "
            "python -m jaxcl.data.splits"
        ) from error


def _parse(plain: Any) -> SplitFile:
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise ValueError(f"expected an object with the format {FORMAT!r}")
    for key, kind in (("by", str), ("together", str), ("seed", int), ("parts", dict)):
        if not isinstance(plain[key], kind):
            raise TypeError(f"{key} must be {kind.__name__}")
    return SplitFile(
        plain["by"],
        plain["together"],
        plain["seed"],
        _names(plain["seen"]),
        _names(plain["unseen"]),
        {name: Part(**part) for name, part in plain["parts"].items()},
    )


def _names(value: Iterable[Sequence[str]]) -> tuple[Name, ...]:
    names = tuple(tuple(name) for name in value)
    if not all(isinstance(part, str) for name in names for part in name):
        raise TypeError("classes must be lists of names")
    return names


def _place(key: Sequence[str], seed: int) -> float:
    """A number in [0, 1) that is the same on every machine."""
    text = json.dumps([seed, *key]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest()) / 2**48


def _text(name: Name) -> str:
    return repr("/".join(name))
