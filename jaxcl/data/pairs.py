"""Tables of pairs and triples of images, and batches made of them.

A CSV file with a header, which names images as the source does (`Source.name`: for a folder and a table the file name as it is
written there), and has either the columns

    a,b,similarity                  two images and how similar they are, a number, higher for the more similar
    a,b,similarity:style,...        the same in one or several respects, each with a name and a column of its own; an empty cell
                                    says that it is not known in this respect
    anchor,positive,negative        of which the second is more similar to the first than the third is

Images may occur in any number of rows; those that occur in none are not trained on. In a batch the images of a row stand next to
each other, and columns of the batch say what is known of them:

    "pair"          f32[B], the similarity of the row that the image is from
    "pair/style"    f32[B], the same in each respect, NaN where it is not known
    "triple"        f32[B], 1
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jaxcl.data.base import Source
from jaxcl.data.config import DataConfig
from jaxcl.data.table import read_columns, read_header

SIMILARITY = "similarity"
PAIR = ("a", "b", SIMILARITY)
TRIPLE = ("anchor", "positive", "negative")

_NAMES_TO_GUESS = 20_000


@dataclasses.dataclass(frozen=True)
class PairTable:
    """Pairs, or triples, of the images of a source.

    Attributes:
      rows: i64[P, 2] or i64[P, 3], numbers of images: (a, b) or (anchor, positive, negative).
      similarity: f32[P] of pairs; f32[P, R] in R respects, NaN where it is not known; None for triples.
      images: images of the source.
      content_id: digest of the rows and of the images.
      respects: names of the respects; () for one similarity, or triples.
    """

    rows: npt.NDArray[np.int64]
    similarity: npt.NDArray[np.float32] | None
    images: int
    content_id: str
    respects: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """ "pair" or "triple": the column of a batch."""
        return "triple" if self.similarity is None else "pair"

    @property
    def size(self) -> int:
        """Images of a row, 2 or 3."""
        return self.rows.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def by_respect(self) -> dict[str, PairTable]:
        """Respect -> the pairs that are known in it, with one similarity; {"": the table} of a table without respects."""
        if self.similarity is None or not self.respects:
            return {"": self}
        found = {}
        for name, similarity in zip(self.respects, self.similarity.T, strict=True):
            known = ~np.isnan(similarity)
            found[name] = dataclasses.replace(
                self, rows=self.rows[known], similarity=similarity[known], respects=()
            )
        return found


def read_pairs(table: str | os.PathLike[str], source: Source) -> PairTable:
    """Reads a table of pairs or triples of the images of a source.

    Raises:
      ValueError: the table is missing, malformed or empty, lacks a column, names an image that the source does not have or has
        more than once or twice in a row, or has a similarity that is not a number; the text names the line. Or a respect has a
        bad name, or is known of no pair, or there is a similarity without a respect besides.
    """
    table = Path(table)
    respects = _respects(table)
    named = tuple(f"{SIMILARITY}:{name}" for name in respects)
    columns, lines = read_columns(table, PAIR[:2] + named if named else PAIR, TRIPLE)
    if not lines:
        raise ValueError(f"the table {str(table)!r} lists no pairs")
    names = [source.name(i) for i in range(len(source))]
    number = {name: i for i, name in enumerate(names)}
    twice = {name for i, name in enumerate(names) if number[name] != i}
    images = 2
    if tuple(columns) == TRIPLE:
        images, respects, named = 3, (), ()
    rows = np.empty((len(lines), images), np.int64)
    known = np.empty((len(lines), len(columns) - images), np.float32)
    for i, (line, cells) in enumerate(lines):
        place = f"line {line} of {str(table)!r}"
        for column, name in enumerate(cells[:images]):
            if name not in number:
                raise ValueError(f"{place}: {_unknown(name, columns[column], names)}")
            if name in twice:
                raise ValueError(
                    f"{place}: {columns[column]} is {name!r}, and several images are called so"
                )
            rows[i, column] = number[name]
        for j, (key, text) in enumerate(zip(columns[images:], cells[images:], strict=True)):
            known[i, j] = np.nan if named and not text.strip() else _number(key, text, place)
        if named and np.isnan(known[i]).all():
            raise ValueError(f"{place}: nothing is known of this pair in any respect")
        for first, second in itertools.combinations(range(images), 2):
            if rows[i, first] == rows[i, second]:
                raise ValueError(
                    f"{place}: {columns[first]} and {columns[second]} are the same image, {cells[first]!r}"
                )
    for key, numbers in zip(columns[images:], known.T, strict=True):
        if np.isnan(numbers).all():
            raise ValueError(f"the table {str(table)!r} has no number in its column {key!r}")
    if images == 3:
        return PairTable(rows, None, len(source), _digest(source, rows, None))
    similarity = known if named else known[:, 0]
    content_id = _digest(source, rows, similarity, respects)
    return PairTable(rows, similarity, len(source), content_id, respects)


def _respects(table: Path) -> tuple[str, ...]:
    """The respects that the first line of a table names; () for a table of plain pairs, or of triples.

    Raises:
      ValueError: a name that cannot be, or a similarity without one besides.
    """
    header = read_header(table)
    if set(header) >= set(TRIPLE) and not set(header) >= set(PAIR[:2]):
        return ()
    prefix = f"{SIMILARITY}:"
    respects = tuple(name.removeprefix(prefix) for name in header if name.startswith(prefix))
    for name in respects:
        if not name.isidentifier() or not name.isascii():
            raise ValueError(
                f"{str(table)!r} has a column {prefix + name!r}: expected a name of letters, digits and _ after the colon"
            )
    if respects and SIMILARITY in header:
        raise ValueError(
            f"{str(table)!r} has a column {SIMILARITY!r} and others of respects, such as {prefix + respects[0]!r}: give it a"
            " respect of its own, or take it out"
        )
    return respects


def load_pairs(config: DataConfig, split: str, source: Source) -> PairTable | None:
    """The configured table of a split, whose source is `source`; None if there is none.

    Raises:
      ValueError: as `read_pairs`.
    """
    return read_pairs(config.pairs[split], source) if config.pairs.get(split) else None


def _number(column: str, text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise ValueError(
            f"{place}: the {column} is {text!r}, expected a number that float32 can hold"
        )
    return value


def _unknown(name: str, column: str, names: Sequence[str]) -> str:
    if not name:
        return f"{column} names no image"
    near = difflib.get_close_matches(name, names[:_NAMES_TO_GUESS], n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"they are called like {names[0]!r}"
    return f"{column} is {name!r}, which is none of the {len(names):,} images of this split; {hint}"


def _digest(
    source: Source,
    rows: npt.NDArray[np.int64],
    similarity: npt.NDArray[np.float32] | None,
    respects: tuple[str, ...] = (),
) -> str:
    digest = hashlib.blake2b(source.content_id.encode(), digest_size=16)
    digest.update(f"{rows.shape}".encode() + rows.tobytes())
    digest.update(b"" if similarity is None else similarity.tobytes())
    digest.update(",".join(respects).encode())
    return digest.hexdigest()
