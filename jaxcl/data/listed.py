"""Image files that a list names, with their labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from jaxcl.data.decode import MAX_PIXELS
from jaxcl.data.files import FileSource, file_size, files_digest
from jaxcl.data.labels import LabelTree


class ListedSource(FileSource):
    """Image files that a list names, in its order."""

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
        if sizes is None:
            sizes = [file_size(folder / name) for name in files]
        listing = list(zip(files, sizes, strict=True))
        super().__init__(folder, listing, names, tree, channels, max_pixels)
        digest = files_digest(listing)
        self.content_id = hashlib.blake2b(
            repr((digest, tree.levels, [tuple(row) for row in names])).encode(), digest_size=16
        ).hexdigest()
