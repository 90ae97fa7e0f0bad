"""Arrays in one NumPy file, as MedMNIST has them: `train_images`, `train_labels`, `val_images`, ...

    np.savez_compressed("mine.npz", train_images=images, train_labels=labels)     u8[N,h,w,C] or u8[N,h,w], integers [N] or [N,L]
    python -m jaxcl.main --config=... --config.data.name=arrays --config.data.path=mine.npz

Labels are welcome and not needed. Columns of labels are levels, coarse to fine, and not flags of which several may be set. An array
`<level>_names`, such as `label_names`, says what the ids of a level are called.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from jaxcl.data.arrays import ArraySource
from jaxcl.data.labels import LabelTree

IMAGES, LABELS, NAMES = "_images", "_labels", "_names"


def load_npz(
    path: str | os.PathLike[str], split: str, levels: Sequence[str] = (), unique: bool = False
) -> ArraySource:
    """The images of a split, and its labels, whose ids mean the same in all splits of the file.

    Args:
      path: the .npz file.
      split: the beginning of the names of its arrays.
      levels: names of the label levels, coarse to fine; "label", or "level0", ..., if empty.
      unique: declare that each label has one parent only; checked.

    Raises:
      ValueError: no such file or split, a damaged file, arrays that do not fit, or other levels than the labels have.
    """
    with _open(path) as arrays:
        splits = sorted(key.removesuffix(IMAGES) for key in arrays if key.endswith(IMAGES))
        if split not in splits:
            raise ValueError(
                f"{os.fspath(path)!r} has no array {split + IMAGES!r}: the splits of the data are {splits}"
            )
        try:
            images = _read(arrays, split + IMAGES)
            every = {s: _read(arrays, s + LABELS) for s in splits if s + LABELS in arrays}
            if levels and split not in every:
                raise ValueError(
                    f"data.label_keys={tuple(levels)}, and no array {split + LABELS!r}"
                )
            tree = _tree(every, levels, arrays, unique) if split in every else None
            names = [f"{split} {i}" for i in range(images.shape[0] if images.ndim else 0)]
            return ArraySource(images, every.get(split), tree, names=names)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)!r}, split {split!r}: {error}") from error


@contextlib.contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[np.lib.npyio.NpzFile]:
    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(open(path, "rb"))
            arrays = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{os.fspath(path)!r} cannot be read: {error}") from error
        if isinstance(arrays, np.ndarray):
            raise ValueError(
                f"{os.fspath(path)!r} is one array, expected an .npz file with 'train{IMAGES}'"
            )
        yield opened.enter_context(arrays)


def _read(arrays: np.lib.npyio.NpzFile, key: str) -> npt.NDArray[np.generic]:
    try:
        return arrays[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"the array {key!r} cannot be read: {error}") from error


def _tree(
    labels: dict[str, npt.NDArray[np.generic]],
    levels: Sequence[str],
    arrays: np.lib.npyio.NpzFile,
    unique: bool,
) -> LabelTree:
    """The names of the file, or the numbers up to the largest of all splits."""
    for name, array in labels.items():
        if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"{name + LABELS!r} must be integers [N] or [N, levels], got {array.dtype}{list(array.shape)}"
            )
    depths = {1 if array.ndim == 1 else array.shape[-1] for array in labels.values()}
    if len(depths) > 1:
        raise ValueError(
            f"the labels of the splits have different numbers of levels: {sorted(depths)}"
        )
    [depth] = depths
    if not levels:
        levels = ("label",) if depth == 1 else tuple(f"level{i}" for i in range(depth))
    if len(levels) != depth:
        raise ValueError(
            f"data.label_keys={tuple(levels)} names {len(levels)} levels, and the labels have {depth}"
        )
    columns = [a.reshape(len(a), depth).astype(np.int64) for a in labels.values()]
    names = []
    for number, level in enumerate(levels):
        if level + NAMES in arrays:
            names.append(tuple(str(name) for name in _read(arrays, level + NAMES).tolist()))
        else:
            count = max(int(np.max(column[:, number], initial=-1)) for column in columns) + 1
            names.append(tuple(str(i) for i in range(count)))
    return LabelTree(tuple(levels), tuple(names), unique=unique)
