"""The IDX files of MNIST, Fashion-MNIST and their like.

Fashion-MNIST is in Debian and Ubuntu: `apt install dataset-fashion-mnist` puts the four files into
/usr/share/datasets/fashion-mnist.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt

from jaxcl.data.arrays import ArraySource
from jaxcl.data.labels import LabelTree

PREFIXES = {"train": "train", "test": "t10k"}
"""How the names of the files of a split begin."""

CLASS_NAMES = {
    "fashion_mnist": (
        "t-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
}

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 8
_PIECE = 2**24


def read_idx(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Reads an IDX file of unsigned bytes, compressed with gzip or not (told by content).

    The file is two zero bytes, the type (8), the number of dimensions, each dimension as big-endian
    u32, and the data.

    Raises:
      ValueError: missing, damaged, of another type, or shorter or longer than its header says.
    """
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            file = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if packed else raw)
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] != _UNSIGNED_BYTE or not head[3]:
                raise ValueError(
                    f"{os.fspath(path)!r} is no IDX file of unsigned bytes: it begins with "
                    f"{head.hex(' ')!r}, expected '00 00 08' and the number of dimensions"
                )
            sizes = file.read(4 * head[3])
            if len(sizes) < 4 * head[3]:
                raise ValueError(f"{os.fspath(path)!r} ends within its header")
            shape = tuple(np.frombuffer(sizes, ">u4").tolist())
            expected = math.prod(shape)
            data = _read_at_most(file, expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{os.fspath(path)!r} cannot be read: {error}") from error
    if len(data) != expected:
        found = f"only {len(data)}" if len(data) < expected else "more"
        raise ValueError(
            f"{os.fspath(path)!r} should have {expected} bytes of data for the shape "
            f"{list(shape)}, but it has {found}"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def load_idx(
    folder: str | os.PathLike[str], prefix: str, names: tuple[str, ...] = ()
) -> ArraySource:
    """Reads `<prefix>-images-idx3-ubyte` and `<prefix>-labels-idx1-ubyte`, with or without `.gz`.

    Args:
      folder: where the files are.
      prefix: "train", "t10k", ...
      names: names of the classes; their numbers if empty, as many as the "train" labels have, so
        that all splits agree.

    Raises:
      ValueError: a file is missing or malformed, or images and labels do not match.
    """
    folder = Path(folder)
    images = read_idx(_find(folder, f"{prefix}-images-idx3-ubyte"))
    labels = read_idx(_find(folder, f"{prefix}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1:
        raise ValueError(
            f"the IDX files {prefix!r} in {str(folder)!r} have the shapes {list(images.shape)} and "
            f"{list(labels.shape)}; expected images [N, height, width] and labels [N]"
        )
    if not names:
        of_train = labels
        if prefix != PREFIXES["train"]:
            of_train = read_idx(_find(folder, f"{PREFIXES['train']}-labels-idx1-ubyte"))
        names = tuple(str(i) for i in range(int(np.max(of_train, initial=0)) + 1))
    tree = LabelTree(("label",), (names,), unique=True)
    return ArraySource(
        images,
        labels.astype(np.int32),
        tree,
        names=tuple(f"{prefix} {i}" for i in range(len(images))),
    )


def _read_at_most(file: IO[bytes], count: int) -> bytes:
    """Reads piece by piece, so that a wrong header does not reserve the memory that it asks for."""
    pieces = []
    while count > 0 and (piece := file.read(min(count, _PIECE))):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise ValueError(f"{str(folder)!r} has neither {name!r} nor '{name}.gz'")
