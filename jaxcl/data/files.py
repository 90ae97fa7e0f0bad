"""Image files below a folder: what sources of files have in common, however they came by the names."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from jaxcl.data.base import Described, Example
from jaxcl.data.decode import decode, read_file
from jaxcl.data.labels import LabelTree

UNREADABLE = -1
"""Size of a listed file that is missing or no regular file; reading it gives a clear error."""


class FileSource(Described):
    """Image files with their labels; a subclass says in `content_id` what they are.

    Attributes:
      folder: what the files are relative to.
      files: paths relative to the folder, with "/".
      sizes: bytes of each file when it was listed; `UNREADABLE` for those that are missing.
      labels: i32[N, L].
      tree: what the labels mean.
    """

    def __init__(
        self,
        folder: Path,
        listing: Sequence[tuple[str, int]],
        names: Sequence[Sequence[str]],
        tree: LabelTree,
        channels: int,
        max_pixels: int,
    ) -> None:
        """Keeps what was listed.

        Args:
          folder: what the files are relative to.
          listing: (path, bytes) of each file.
          names: its label names, coarse to fine.
          tree: what the names mean.
          channels: 3 or 1.
          max_pixels: larger images are bad examples.
        """
        self.folder = folder
        self.files = tuple(name for name, _ in listing)
        self.sizes = tuple(size for _, size in listing)
        self.tree = tree
        self.labels = tree.encode(names)
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

    def place(self, index: int) -> str:
        """The file with its folder."""
        return str(self.folder / self.files[index])


def file_size(path: str | os.PathLike[str]) -> int:
    """Bytes of a regular file (links are followed), else `UNREADABLE`."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return UNREADABLE
    return status.st_size if stat.S_ISREG(status.st_mode) else UNREADABLE


def files_digest(listing: Sequence[tuple[str, int]]) -> str:
    """Digest of names and sizes: the same wherever the files lie and whenever they were copied."""
    digest = hashlib.blake2b(digest_size=16)
    for name, size in listing:
        digest.update(os.fsencode(name) + b"\0" + str(size).encode() + b"\0")
    return digest.hexdigest()
