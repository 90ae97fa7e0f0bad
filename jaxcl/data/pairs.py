"""Tables of pairs and triples of images, and batches made of them.

A CSV file with a header, which names images as the source does (`Source.name`: for a folder and a table the file name as it is
written there), and has either the columns

    a,b,similarity                  two images and how similar they are, a number, higher for the more similar
    anchor,positive,negative        of which the second is more similar to the first than the third is

Images may occur in any number of rows; those that occur in none are not trained on. In a batch the images of a row stand next to
each other, and a column of the batch says what is known of them:

    "pair"      f32[B], the similarity of the row that the image is from
    "triple"    f32[B], 1
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
from jaxcl.data.table import read_columns

PAIR = ("a", "b", "similarity")
TRIPLE = ("anchor", "positive", "negative")

_NAMES_TO_GUESS = 20_000


@dataclasses.dataclass(frozen=True)
class PairTable:
    """Pairs, or triples, of the images of a source.

    Attributes:
      rows: i64[P, 2] or i64[P, 3], numbers of images: (a, b) or (anchor, positive, negative).
      similarity: f32[P] of pairs; None for triples.
      images: images of the source.
      content_id: digest of the rows and of the images.
    """

    rows: npt.NDArray[np.int64]
    similarity: npt.NDArray[np.float32] | None
    images: int
    content_id: str

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


def read_pairs(table: str | os.PathLike[str], source: Source) -> PairTable:
    """Reads a table of pairs or triples of the images of a source.

    Raises:
      ValueError: the table is missing, malformed or empty, lacks a column, names an image that the source does not have or has
        more than once or twice in a row, or has a similarity that is not a number; the text names the line.
    """
    table = Path(table)
    columns, lines = read_columns(table, PAIR, TRIPLE)
    if not lines:
        raise ValueError(f"the table {str(table)!r} lists no pairs")
    names = [source.name(i) for i in range(len(source))]
    number = {name: i for i, name in enumerate(names)}
    twice = {name for i, name in enumerate(names) if number[name] != i}
    images = 2 if tuple(columns) == PAIR else 3
    rows = np.empty((len(lines), images), np.int64)
    similarity = np.empty(len(lines), np.float32)
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
        if images == 2:
            similarity[i] = _number(cells[2], place)
        for first, second in itertools.combinations(range(images), 2):
            if rows[i, first] == rows[i, second]:
                raise ValueError(
                    f"{place}: {columns[first]} and {columns[second]} are the same image, {cells[first]!r}"
                )
    return PairTable(
        rows,
        similarity if images == 2 else None,
        len(source),
        _digest(source, rows, similarity if images == 2 else None),
    )


def load_pairs(config: DataConfig, split: str, source: Source) -> PairTable | None:
    """The configured table of a split, whose source is `source`; None if there is none.

    Raises:
      ValueError: as `read_pairs`.
    """
    return read_pairs(config.pairs[split], source) if config.pairs.get(split) else None


def _number(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{place}: the similarity is {text!r}, expected a number")
    return value


def _unknown(name: str, column: str, names: Sequence[str]) -> str:
    if not name:
        return f"{column} names no image"
    near = difflib.get_close_matches(name, names[:_NAMES_TO_GUESS], n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"they are called like {names[0]!r}"
    return f"{column} is {name!r}, which is none of the {len(names):,} images of this split; {hint}"


def _digest(
    source: Source, rows: npt.NDArray[np.int64], similarity: npt.NDArray[np.float32] | None
) -> str:
    digest = hashlib.blake2b(source.content_id.encode(), digest_size=16)
    digest.update(f"{rows.shape}".encode() + rows.tobytes())
    digest.update(b"" if similarity is None else similarity.tobytes())
    return digest.hexdigest()
