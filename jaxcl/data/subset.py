"""Parts of a source: chosen rows, a held-out share, a few labels of each class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxcl.data.arrays import ArraySource
from jaxcl.data.base import Described, Example, Source
from jaxcl.data.labels import Labels
from jaxcl.data.philox import uniform_order

Rows = npt.NDArray[np.int64]


class Subset(Described):
    """Chosen rows of a source, with the same label ids."""

    def __init__(self, source: Source, rows: npt.ArrayLike) -> None:
        """Makes row i of the subset row `rows[i]` of the source; use `subset` instead."""
        self.source = source
        self.tree = source.tree
        self.rows = _checked(source, rows)
        digest = hashlib.blake2b(source.content_id.encode(), digest_size=16)
        digest.update(self.rows.tobytes())
        self.content_id = digest.hexdigest()

    @property
    def labels(self) -> Labels:
        """Labels i32[N, L] of the chosen rows."""
        return self.source.labels[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        """The example of a chosen row."""
        return self.source[int(self.rows[index])]

    def name(self, index: int) -> str:
        """Its name in the source."""
        return self.source.name(int(self.rows[index]))

    def place(self, index: int) -> str:
        """Its place in the source."""
        return self.source.place(int(self.rows[index]))


def subset(source: Source, rows: npt.ArrayLike) -> Source:
    """The chosen rows of a source, in the given order; rows of images in memory stay in memory.

    Raises:
      ValueError: no rows, or a row out of range.
    """
    if isinstance(source, ArraySource):
        chosen = _checked(source, rows)
        return ArraySource(
            source.images[chosen],
            source.labels[chosen],
            source.tree,
            names=tuple(source.name(i) for i in chosen.tolist()),
        )
    return Subset(source, rows)


def _checked(source: Source, rows: npt.ArrayLike) -> Rows:
    chosen = np.asarray(rows)
    if chosen.ndim != 1 or not len(chosen) or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(
            f"a subset needs a list of row numbers, got {chosen.dtype}{list(chosen.shape)}"
        )
    if chosen.min() < 0 or chosen.max() >= len(source):
        raise ValueError(
            f"rows must be in [0, {len(source)}), got {chosen.min()} to {chosen.max()}"
        )
    return chosen.astype(np.int64)


def held_out(names: Sequence[str], share: float) -> npt.NDArray[np.bool_]:
    """Which examples are held out: bool[N], about `share` of them.

    An example's name alone decides, so that other examples may come and go.
    """
    limit = int(share * 2**64)
    return np.array(
        [
            int.from_bytes(
                hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
            )
            < limit
            for name in names
        ],
        bool,
    )


def class_balanced_subset(
    labels: npt.NDArray[Any],
    *,
    fraction: float | None = None,
    per_class: int | None = None,
    seed: int = 0,
) -> Rows:
    """Chooses the same share, or number, of examples of each class, for learning with few labels.

    The choice for a smaller share is contained in that for a larger one with the same seed.

    Args:
      labels: class ids [N]; -1 is never chosen.
      fraction: share of each class in (0, 1], rounded, but at least one example; or
      per_class: number of examples of each class.
      seed: of the choice.

    Returns:
      Sorted row numbers i64[n].

    Raises:
      ValueError: not exactly one of the two is given, out of range, or a class is too small.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers [N], got {labels.dtype}{list(labels.shape)}")
    if (fraction is None) == (per_class is None):
        raise ValueError(f"fraction={fraction}, per_class={per_class}: give exactly one of them")
    if fraction is not None and not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}: expected a share in (0, 1]")
    if per_class is not None and per_class < 1:
        raise ValueError(f"per_class={per_class}: expected 1 or more")
    order = uniform_order(len(labels), seed, 0)
    chosen = []
    for name in np.unique(labels[labels >= 0]):
        members = order[labels[order] == name]
        if per_class is not None:
            count = per_class
        else:
            assert fraction is not None
            count = max(1, round(fraction * len(members)))
        if count > len(members):
            raise ValueError(f"class {name} has {len(members)} examples, not {count}")
        chosen.append(members[:count])
    if not chosen:
        raise ValueError("no example has a label")
    return np.sort(np.concatenate(chosen))
