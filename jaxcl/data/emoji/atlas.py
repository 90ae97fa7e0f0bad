"""The files of the set: many tiles in one picture, and digests of text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

TILE = 32
COLUMNS = 62


def to_atlas(tiles: npt.NDArray[np.uint8], columns: int = COLUMNS) -> Image.Image:
    """Lays tiles u8[N, 32, 32, 3] out row by row; what is left of the last row is white."""
    rows = -(-len(tiles) // columns)
    padded = np.full((rows * columns, TILE, TILE, 3), 255, np.uint8)
    padded[: len(tiles)] = tiles
    grid = padded.reshape(rows, columns, TILE, TILE, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(grid.reshape(rows * TILE, columns * TILE, 3))


def from_atlas(atlas: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.uint8]:
    """The inverse of `to_atlas`: the first `count` tiles, u8[count, 32, 32, 3]."""
    rows, columns = atlas.shape[0] // TILE, atlas.shape[1] // TILE
    grid = atlas.reshape(rows, TILE, columns, TILE, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(grid.reshape(-1, TILE, TILE, 3)[:count])


def digest_lines(lines: Sequence[str]) -> str:
    """SHA-256 of lines, whatever the line ends of the file that they were read from."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
