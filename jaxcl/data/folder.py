"""A folder of image files, nested as one likes."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import logging

from jaxcl.data.decode import EXTENSIONS, MAX_PIXELS
from jaxcl.data.files import FileSource, file_size, files_digest
from jaxcl.data.labels import LabelTree


class FolderSource(FileSource):
    """Image files below a folder, in the order of their paths."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        labels: str = "none",
        *,
        tree: LabelTree | None = None,
        unique: bool = False,
        channels: int = 3,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Lists the folder.

        Args:
          root: the folder. Symbolic links are followed, but never in a circle.
          labels: "none"; "parent", the name of the folder that holds the image (none for images
            directly in `root`); or "path", where each folder between `root` and the image is a
            level, coarse to fine, and images nearer to `root` have fewer levels.
          tree: names of the labels, so that several folders share their ids; made from this
            folder if None.
          unique: declare the tree unique (see `LabelTree`).
          channels: 3 or 1.
          max_pixels: larger images are bad examples.

        Raises:
          ValueError: no such folder, no image in it, or a folder that cannot be listed.
        """
        listing = list_images(Path(root))
        names = folder_labels([name for name, _ in listing], labels)
        tree = folder_tree([names], labels, unique) if tree is None else tree
        super().__init__(Path(root), listing, names, tree, channels, max_pixels)
        self.content_id = files_digest(listing)


def list_images(root: Path) -> list[tuple[str, int]]:
    """All files below `root` that are named as images: (relative path, bytes), sorted by path.

    Files of other names are counted in the log. FIFOs, broken links and the like that are named as
    images are listed, so that reading them gives an error with their name.

    Raises:
      ValueError: `root` is no folder, a folder cannot be read, or there is no image.
    """
    if not root.is_dir():
        raise ValueError(f"{str(root)!r} is not a folder: expected a folder of image files")
    ignored: collections.Counter[str] = collections.Counter()
    listing = sorted(_walk(root, "", (), ignored))
    if ignored:
        logging.warning(
            "%r: left out %d files that are not named as images: %s",
            str(root),
            ignored.total(),
            ", ".join(f"{count} {ext!r}" for ext, count in ignored.most_common(10)),
        )
    if not listing:
        raise ValueError(
            f"no images below {str(root)!r}: expected files named {', '.join(sorted(EXTENSIONS))}"
            + (f"; it has {ignored.total()} files of other names" if ignored else "")
        )
    return listing


def _walk(
    folder: Path,
    prefix: str,
    above: tuple[tuple[int, int], ...],
    ignored: collections.Counter[str],
) -> Iterator[tuple[str, int]]:
    """Yields the images of a folder tree; `above` are the folders that we are in."""
    try:
        status = folder.stat()
        entries = list(os.scandir(folder))
    except OSError as error:
        raise ValueError(
            f"the folder {str(folder)!r} cannot be listed: {error.strerror}; make it readable or "
            f"move it away"
        ) from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        logging.warning("%r is a link to a folder that it lies in: not followed", str(folder))
        return
    for entry in entries:
        name = prefix + entry.name
        if entry.is_dir():
            yield from _walk(folder / entry.name, name + "/", (*above, here), ignored)
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
            yield name, file_size(entry.path)
        else:
            ignored[os.path.splitext(entry.name)[1].lower()] += 1


def folder_labels(files: Sequence[str], labels: str) -> list[tuple[str, ...]]:
    """The label names of each file, coarse to fine; tuples may differ in length."""
    # Names that are no UTF-8 are shown escaped, so that they can be printed and written anywhere.
    folders = [
        tuple(
            os.fsencode(part).decode("utf-8", "backslashreplace") for part in name.split("/")[:-1]
        )
        for name in files
    ]
    if labels == "none":
        return [()] * len(files)
    if labels == "parent":
        return [folder[-1:] for folder in folders]
    if labels == "path":
        return folders
    raise ValueError(f"labels={labels!r}: expected 'none', 'parent' or 'path'")


def folder_tree(
    names: Sequence[Sequence[tuple[str, ...]]], labels: str, unique: bool = False
) -> LabelTree:
    """The tree over the label names of one or several folders."""
    depth = max((len(path) for part in names for path in part), default=0)
    levels = (
        ("label",) if labels == "parent" and depth else tuple(f"level{i}" for i in range(depth))
    )
    return LabelTree.of_names(levels, [path for part in names for path in part], unique)
