"""A picture of several embedding spaces: the same queries, and in each space their nearest neighbours."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcl.report.figures import save, style
from jaxcl.report.geometry import nearest
from jaxcl.report.images import check_images
from jaxcl.report.sheets import check_features
from jaxcl.report.text import printable


@dataclasses.dataclass(frozen=True)
class SpaceSheet:
    """Images and what each space makes of them.

    Attributes:
      images: u8[N, h, w, C], C = 1 or 3.
      features: name of the space -> float[N, F].
      queries: indices of the images whose neighbours are shown.
      count: neighbours of each.
    """

    images: np.ndarray
    features: Mapping[str, np.ndarray]
    queries: Sequence[int]
    count: int = 9

    def __post_init__(self) -> None:
        check_images("SpaceSheet.images", self.images, 4)
        check_features("SpaceSheet", self.features, len(self.images))
        if wrong := [q for q in self.queries if not 0 <= q < len(self.images)]:
            raise ValueError(
                f"SpaceSheet.queries: {wrong[0]} is not one of {len(self.images)} images"
            )
        if not self.queries or not self.features:
            raise ValueError("SpaceSheet: expected one or more queries and spaces")


def spaces_png(sheet: SpaceSheet, title: str = "") -> bytes:
    """For each query a block: on the left the image, then a row of neighbours for each space, by centred cosine."""
    from matplotlib.figure import Figure

    found = {name: nearest(x, sheet.count) for name, x in sheet.features.items()}
    count = next(iter(found.values())).shape[1]
    cell, rows = 0.62, len(found) * len(sheet.queries)
    with style():
        figure = Figure(figsize=(cell * (count + 1) + 1.9, cell * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, count + 1, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for block, query in enumerate(sheet.queries):
            for line, (name, index) in enumerate(found.items()):
                row = grid[block * len(found) + line]
                if line == 0:
                    _draw(row[0], sheet.images[query])
                for axes, other in zip(row[1:], index[query], strict=True):
                    _draw(axes, sheet.images[other])
                row[0].text(
                    -0.15,
                    0.5,
                    printable(name),
                    transform=row[0].transAxes,
                    ha="right",
                    va="center",
                    fontsize=7,
                )
        if title:
            figure.suptitle(printable(title), fontsize=9)
        return save(figure)


def _draw(axes: Any, image: np.ndarray) -> None:
    axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
