"""Pictures inside the page: a gallery with labels, and sprites (many small images in one)."""

import base64
import dataclasses
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

PNG_BYTES = 1_400_000
"""A sprite that is larger than this as PNG is stored as JPEG."""


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Images with their labels, which several sections show.

    Attributes:
      images: u8[N, h, w, C], C = 1 or 3.
      labels: i32[N, L], coarse to fine, -1 for missing; None for no labels.
      levels: the name of each level.
      names: for each level the names of its labels.
      captions: a text for each image, such as its file name; () for none.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    levels: tuple[str, ...] = ()
    names: tuple[tuple[str, ...], ...] = ()
    captions: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_images("Gallery.images", self.images, 4)
        count, levels = len(self.images), len(self.levels)
        labels = np.zeros((count, 0), np.int32) if self.labels is None else np.asarray(self.labels)
        object.__setattr__(self, "labels", labels)
        if labels.shape != (count, levels) or len(self.names) != levels:
            raise ValueError(
                f"Gallery: expected labels [{count}, {levels}] and {levels} tuples of names, one "
                f"for each of the levels {list(self.levels)}; got labels {list(labels.shape)} and "
                f"{len(self.names)} tuples"
            )
        for column, (level, names) in enumerate(zip(self.levels, self.names, strict=True)):
            if count and not -1 <= np.min(labels[:, column]) <= np.max(labels[:, column]) < len(
                names
            ):
                raise ValueError(
                    f"Gallery: a label of level {level!r} has no name among {len(names)}"
                )
        if self.captions and len(self.captions) != count:
            raise ValueError(f"Gallery: {len(self.captions)} captions for {count} images")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def ids(self) -> np.ndarray:
        """Labels i32[N, L]; L is 0 where there are none."""
        assert self.labels is not None  # made an array by __post_init__
        return self.labels

    def path(self, index: int) -> list[str]:
        """The label names of an image, coarse to fine, missing ones left out."""
        return [
            names[label]
            for names, label in zip(self.names, self.ids[index], strict=True)
            if label >= 0
        ]

    def short(self, index: int) -> str:
        """A name to stand below a small picture: the finest label that is not all but unique."""
        for column in reversed(range(len(self.levels))):
            label = self.ids[index, column]
            known = self.ids[self.ids[:, column] >= 0, column]
            if label >= 0 and (len(known) > 2 * len(np.unique(known)) or column == 0):
                return self.names[column][label]
        return self.caption(index)

    def caption(self, index: int) -> str:
        """The caption of an image, or its number."""
        return self.captions[index] if self.captions else f"image {index}"

    def agreement(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Returns how many levels, from the coarsest on, images share; indices broadcast."""
        a, b = self.ids[first], self.ids[second]
        return np.cumprod((a == b) & (a >= 0), axis=-1).sum(-1, dtype=np.int64)

    def take(self, rows: np.ndarray) -> "Gallery":
        """The given rows, in that order."""
        captions = [self.captions[i] for i in rows] if self.captions else ()
        return dataclasses.replace(
            self, images=self.images[rows], labels=self.ids[rows], captions=captions
        )


def check_images(name: str, images: np.ndarray, ndim: int) -> None:
    """Raises a ValueError that names `name` unless images are u8[..., h, w, 1 or 3]."""
    if images.dtype != np.uint8 or images.ndim != ndim or images.shape[-1] not in (1, 3):
        axes = ", ".join([*["N", "V"][: ndim - 3], "h", "w", "1 or 3"])
        raise ValueError(f"{name}: expected uint8[{axes}], got {images.dtype}{list(images.shape)}")


@dataclasses.dataclass(frozen=True)
class Sprite:
    """Many images of the same size in one data URI.

    Attributes:
      uri: "data:image/...;base64,...".
      columns: images in a row of the sprite.
      rows: rows.
      cell: (height, width) of an image in pixels.
    """

    uri: str
    columns: int
    rows: int
    cell: tuple[int, int]

    def position(self, index: int) -> str:
        """CSS background-position of an image, for a background of columns * 100 %."""
        y, x = divmod(index, self.columns)
        across, down = 100 * x / max(self.columns - 1, 1), 100 * y / max(self.rows - 1, 1)
        return f"{across:.4g}% {down:.4g}%"


def make_sprite(images: np.ndarray, side: int) -> Sprite:
    """Packs images u8[N, h, w, C] into a sprite, reduced so that no side is longer than `side`."""
    images = shrink(images, side)
    count, height, width, channels = images.shape
    columns = max(1, math.ceil(math.sqrt(count * height / width)))
    rows = max(1, math.ceil(count / columns))
    sheet = np.full((rows * columns, height, width, channels), 255, np.uint8)
    sheet[:count] = images
    sheet = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    picture = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    kind, data = "png", _encode(picture, "PNG", optimize=True)
    if len(data) > PNG_BYTES:
        kind, data = "jpeg", _encode(picture, "JPEG", quality=85)
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Sprite(uri, columns, rows, (height, width))


def shrink(images: np.ndarray, side: int) -> np.ndarray:
    """Returns u8[N, h, w, C] with the longer side at most `side` pixels, aspect kept."""
    _, height, width, channels = images.shape
    factor = side / max(height, width)
    if factor >= 1:
        return images
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = [
        np.asarray(
            Image.fromarray(x[..., 0] if channels == 1 else x).resize(size, Image.Resampling.BOX)
        )
        for x in images
    ]
    return np.stack(small).reshape(len(images), size[1], size[0], channels)


def _encode(picture: Image.Image, kind: str, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
