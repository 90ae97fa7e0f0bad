"""A CSV file that lists image files and their labels."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from jaxcl.data.base import Described, Example
from jaxcl.data.decode import MAX_PIXELS, decode, read_file
from jaxcl.data.folder import UNREADABLE, file_size, files_digest
from jaxcl.data.labels import LabelTree


class TableSource(Described):
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
        self.files, names = read_table(table, image_key, label_keys)
        self.tree = LabelTree.of_names(label_keys, names, unique) if tree is None else tree
        self.labels = self.tree.encode(names)
        self._folder = table.parent
        self.sizes = tuple(file_size(self._folder / name) for name in self.files)
        files = files_digest(list(zip(self.files, self.sizes, strict=True)))
        self.content_id = hashlib.blake2b(
            repr((files, tuple(label_keys), names)).encode(), digest_size=16
        ).hexdigest()
        self._channels = channels
        self._max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes one file."""
        name, size = self.files[index], self.sizes[index]
        expected = None if size == UNREADABLE else size
        data = read_file(self._folder / name, name, expected)
        image = decode(data, name, self._channels, self._max_pixels)
        return {"image": image, "label": self.labels[index]}

    def name(self, index: int) -> str:
        """The file name as the table has it."""
        return self.files[index]


def read_table(
    table: Path, image_key: str, label_keys: Sequence[str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The image column and, for each row, its label names; cells are text and nothing else.

    Raises:
      ValueError: as `TableSource`.
    """
    files: list[str] = []
    names: list[tuple[str, ...]] = []
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            for key in (image_key, *label_keys):
                if header.count(key) != 1:
                    raise ValueError(
                        f"{str(table)!r} must have one column {key!r} in its first line, which is "
                        f"{header}"
                    )
            image_column = header.index(image_key)
            label_columns = [header.index(key) for key in label_keys]
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise ValueError(
                        f"line {reader.line_num} of {str(table)!r} has {len(row)} cells, but the "
                        f"first line has {len(header)}"
                    )
                if not row[image_column]:
                    raise ValueError(f"line {reader.line_num} of {str(table)!r} names no image")
                files.append(row[image_column])
                names.append(tuple(row[column].strip() for column in label_columns))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"the table {str(table)!r} cannot be read: {error}") from error
    if not files:
        raise ValueError(f"the table {str(table)!r} lists no images")
    return tuple(files), names
