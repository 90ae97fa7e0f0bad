"""Images that are in memory already."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxcl.data.base import Described, Example
from jaxcl.data.labels import Labels, LabelTree


class ArraySource(Described):
    """Images u8[N, h, w, C] and labels i32[N, L] as arrays.

    Attributes:
      images: u8[N, h, w, C], C = 1 or 3; batches are gathered from it without decoding.
    """

    def __init__(
        self,
        images: npt.NDArray[Any],
        labels: npt.NDArray[Any] | None = None,
        tree: LabelTree | None = None,
        *,
        names: Sequence[str] | None = None,
    ) -> None:
        """Checks and keeps the arrays (no copy is made of u8 images).

        Args:
          images: u8[N, h, w, C] or u8[N, h, w] (one channel). Floats are refused, because their
            range would have to be guessed.
          labels: integers [N, L] or [N], -1 for missing; None for unlabelled images.
          tree: the meaning of the labels; made from the largest id of each level if None.
          names: what messages call the examples; "example 0", ... if None.

        Raises:
          ValueError: shapes, types or ids do not fit.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8:
            raise ValueError(
                f"images must be uint8 in [0, 255], got {images.dtype}; scale and convert them "
                f"first, so that nothing has to be guessed about their range"
            )
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:]:
            raise ValueError(
                f"images must have the shape [N, height, width, 1 or 3 channels], "
                f"got {list(images.shape)}"
            )
        if labels is None:
            tree = LabelTree() if tree is None else tree
            labels = np.full((len(images), tree.depth), -1, np.int32)
        labels = np.asarray(labels)
        if labels.ndim == 1:
            labels = labels[:, None]
        if len(labels) != len(images):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
        if names is not None and len(names) != len(images):
            raise ValueError(f"{len(images)} images but {len(names)} names")
        if tree is None:
            tree = _numbered_tree(labels)
        self.images = images
        self.tree = tree
        self.labels: Labels = tree.check(labels)
        self.content_id = array_digest(images, self.labels, tree)
        self._names = names

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        """One example; the arrays are views, not copies."""
        return {"image": self.images[index], "label": self.labels[index]}

    def name(self, index: int) -> str:
        """The given name of the example, or its number."""
        return f"example {index}" if self._names is None else self._names[index]


def _numbered_tree(labels: npt.NDArray[Any]) -> LabelTree:
    """A tree whose names are the ids themselves; one level is called "label"."""
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be integers [N] or [N, L] (-1 for missing), "
            f"got {labels.dtype}{list(labels.shape)}"
        )
    depth = labels.shape[1]
    levels = ("label",) if depth == 1 else tuple(f"level{i}" for i in range(depth))
    sizes = labels.max(axis=0, initial=-1) + 1
    return LabelTree(levels, tuple(tuple(str(i) for i in range(size)) for size in sizes.tolist()))


def array_digest(images: npt.NDArray[Any], labels: Labels, tree: LabelTree) -> str:
    """Digest of pixels, labels and names; shapes and types are part of it."""
    digest = hashlib.blake2b(digest_size=16)
    for array in (images, labels):
        digest.update(f"{array.dtype.str}{list(array.shape)}".encode())
        digest.update(np.ascontiguousarray(array).data)
    digest.update(repr((tree.levels, tree.names)).encode())
    return digest.hexdigest()
