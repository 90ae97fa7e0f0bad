"""A CSV file that lists image files and their labels."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from jaxcl.data.decode import MAX_PIXELS
from jaxcl.data.labels import LabelTree
from jaxcl.data.listed import ListedSource


class TableSource(ListedSource):
    """Images listed in a CSV file with a header, in the order of its rows.

    Attributes:
      files: the image column, as written: paths relative to the folder of the table, or absolute.
      sizes: bytes of each file when the table was read.
    """

    def __init__(
        self,
        table: str | os.PathLike[str],
        image_key: str = "path",
        label_keys: Sequence[str] = (),
        *,
        tree: LabelTree | None = None,
        unique: bool = False,
        channels: int = 3,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Reads the table and looks the files up.

        Args:
          table: the CSV file: UTF-8, comma-separated, quoted as spreadsheets do.
          image_key: name of the column with the file names.
          label_keys: names of the label columns, coarse to fine; an empty cell is a missing label.
          tree: names of the labels, so that several tables share their ids; made from this table
            if None.
          unique: declare the tree unique (see `LabelTree`).
          channels: 3 or 1.
          max_pixels: larger images are bad examples.

        Raises:
          ValueError: the table is missing, malformed (naming the line), empty, or lacks a column.
        """
        table = Path(table)
        files, names = read_table(table, image_key, label_keys)
        tree = LabelTree.of_names(label_keys, names, unique) if tree is None else tree
        super().__init__(table.parent, files, names, tree, channels=channels, max_pixels=max_pixels)


def read_table(
    table: Path, image_key: str, label_keys: Sequence[str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The image column and, for each row, its label names; cells are text and nothing else.

    Raises:
      ValueError: as `TableSource`.
    """
    columns = (image_key, *label_keys)
    _, rows = read_columns(table, columns)
    files: list[str] = []
    for line, (name, *_) in rows:
        if not name:
            raise ValueError(f"line {line} of {str(table)!r} names no image")
        files.append(name)
    if not files:
        raise ValueError(f"the table {str(table)!r} lists no images")
    return tuple(files), [tuple(cell.strip() for cell in cells[1:]) for _, cells in rows]


def read_columns(
    table: Path, *choices: Sequence[str]
) -> tuple[Sequence[str], list[tuple[int, list[str]]]]:
    """The first choice of columns that a CSV file has, and for each row its line and its cells of them.

    Args:
      table: the CSV file.
      choices: names of columns.

    Raises:
      ValueError: the file is missing or malformed (naming the line), or has none of the choices whole.
    """
    rows: list[tuple[int, list[str]]] = []
    with _opened(table) as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        chosen = next(
            (keys for keys in choices if all(header.count(key) == 1 for key in keys)), None
        )
        if chosen is None:
            if len(choices) == 1:
                missing = next(key for key in choices[0] if header.count(key) != 1)
                wanted = f"one column {missing!r}"
            else:
                wanted = "the columns " + ", or ".join(", ".join(keys) for keys in choices)
            raise ValueError(
                f"{str(table)!r} must have {wanted} in its first line, which is {header}"
            )
        columns = [header.index(key) for key in chosen]
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"line {reader.line_num} of {str(table)!r} has {len(row)} cells, but the "
                    f"first line has {len(header)}"
                )
            rows.append((reader.line_num, [row[column] for column in columns]))
    return chosen, rows


def read_header(table: Path) -> list[str]:
    """The names of the columns of a CSV file.

    Raises:
      ValueError: the file is missing or malformed.
    """
    with _opened(table) as file:
        return next(csv.reader(file, strict=True), [])


@contextlib.contextmanager
def _opened(table: Path) -> Iterator[TextIO]:
    """A CSV file; whatever cannot be read of it within is a ValueError."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            yield file
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"the table {str(table)!r} cannot be read: {error}") from error
