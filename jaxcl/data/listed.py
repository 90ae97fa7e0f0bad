"""Image files that a list names, with their labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from jaxcl.data.base import Described, Example
from jaxcl.data.decode import MAX_PIXELS, decode, read_file
from jaxcl.data.folder import UNREADABLE, file_size, files_digest
from jaxcl.data.labels import LabelTree


class ListedSource(Described):
    """Image files that a list names.

    Attributes:
      files: paths relative to the folder, as listed.
      sizes: bytes of each file when the list was read; `jaxcl.data.folder.UNREADABLE` for those that are missing.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        names: Sequence[Sequence[str]],
        tree: LabelTree,
        *,
        sizes: Sequence[int] | None = None,
        channels: int = 3,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Looks the files up; one that is missing is a bad example.

        Args:
          folder: what the files are relative to.
          files: paths.
          names: label names of each of them, coarse to fine.
          tree: what the names mean, in all splits.
          sizes: bytes of each file, if they are known already.
          channels: 3 or 1.
          max_pixels: larger images are bad examples.
        """
        self.folder = folder
        self.files = tuple(files)
        self.tree = tree
        self.labels = tree.encode(names)
        if sizes is None:
            sizes = [file_size(folder / name) for name in self.files]
        self.sizes = tuple(sizes)
        digest = files_digest(list(zip(self.files, self.sizes, strict=True)))
        self.content_id = hashlib.blake2b(
            repr((digest, tree.levels, [tuple(row) for row in names])).encode(), digest_size=16
        ).hexdigest()
        self._channels = channels
        self._max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes one file."""
        name, size = self.files[index], self.sizes[index]
        expected = None if size == UNREADABLE else size
        data = read_file(self.folder / name, name, expected)
        image = decode(data, name, self._channels, self._max_pixels)
        return {"image": image, "label": self.labels[index]}

    def name(self, index: int) -> str:
        """The file as listed."""
        return self.files[index]
