"""Pictures of views: a contact sheet with what was drawn, and the colour histograms of crops."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcl.report.figures import save, style
from jaxcl.report.text import printable

CHANNEL_COLOURS = ("#d62728", "#2ca02c", "#1f77b4")
"""Red, green, blue; of a gray image the first one is drawn black."""

SHOWN = 3
"""Images whose crops and histograms are drawn."""


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Images and their views.

    Attributes:
      images: u8[N, H, W, C], C = 1 or 3.
      views: float[N, V, h, w, C] in [0, 1].
      names: of the images.
      texts: [N][V], what was drawn for each view.
    """

    images: np.ndarray
    views: np.ndarray
    names: Sequence[str]
    texts: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Histograms:
    """Colour histograms of two crops of each image, by what was done to the colours.

    Attributes:
      views: name -> float[N, 2, h, w, C] in [0, 1].
      histograms: name -> f64[N, 2, C, bins].
      distances: name -> f64[N, N], first crops against second crops.
      numbers: name -> "same", "different", "auc", "top1", "chance".
    """

    views: Mapping[str, np.ndarray]
    histograms: Mapping[str, np.ndarray]
    distances: Mapping[str, np.ndarray]
    numbers: Mapping[str, Mapping[str, float]]


def sheet_png(sheet: Sheet, title: str = "") -> bytes:
    """A row for each image: the image, its views, and under each what was drawn."""
    from matplotlib.figure import Figure

    count, views = sheet.views.shape[:2]
    lines = max((text.count("\n") + 1 for texts in sheet.texts for text in texts), default=1)
    cell = 1.75
    height = cell + 0.115 * lines + 0.25
    with style():
        figure = Figure(
            figsize=(cell * (views + 1) + 0.4, height * count + 0.4), layout="constrained"
        )
        grid = figure.subplots(count, views + 1, squeeze=False)
        for i in range(count):
            _picture(grid[i, 0], sheet.images[i] / 255)
            name = printable(sheet.names[i])
            short = name if len(name) <= 26 else f"…{name[-25:]}"
            grid[i, 0].set_title(short, fontsize=7)
            for v in range(views):
                axes = grid[i, v + 1]
                _picture(axes, sheet.views[i, v])
                if i == 0:
                    axes.set_title(f"view {v + 1}", fontsize=8)
                text = printable(sheet.texts[i][v])
                axes.text(
                    0,
                    -0.03,
                    text,
                    transform=axes.transAxes,
                    va="top",
                    fontsize=5.5,
                    family="monospace",
                )
        if title:
            figure.suptitle(printable(title), fontsize=10)
        return save(figure)


def histograms_png(found: Histograms, title: str = "") -> bytes:
    """For each treatment a row: crops of some images with their histograms, then all distances."""
    from matplotlib.figure import Figure

    shown = min(SHOWN, *(len(v) for v in found.views.values()))
    columns = 2 * shown
    with style():
        rows = len(found.views)
        figure = Figure(figsize=(1.25 * columns + 4.2, 3.0 * rows + 0.5), layout="constrained")
        outer = figure.add_gridspec(rows, 2, width_ratios=(1.25 * columns, 4.2))
        for row, (name, views) in enumerate(found.views.items()):
            part = figure.add_subfigure(outer[row, 0])
            heading = f"{printable(name)} (below each crop the root of its share of pixels)"
            part.suptitle(heading, fontsize=9, x=0.01, ha="left")
            grid = part.subplots(2, columns, height_ratios=(1, 0.8), squeeze=False)
            for column in range(columns):
                image, view = divmod(column, 2)
                _picture(grid[0, column], views[image, view])
                grid[0, column].set_title(f"image {image + 1}, crop {view + 1}", fontsize=7)
                _histogram(grid[1, column], found.histograms[name][image, view])
            _distances(
                figure.add_subplot(outer[row, 1]), found.distances[name], found.numbers[name]
            )
        if title:
            figure.suptitle(printable(title), fontsize=10)
        return save(figure)


def _picture(axes: Any, image: np.ndarray) -> None:
    image = np.clip(image, 0, 1)
    axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])


def _histogram(axes: Any, histogram: np.ndarray) -> None:
    """f64[C, bins]; the root of the share, so that a white ground does not hide the rest."""
    edges = np.linspace(0, 1, histogram.shape[-1] + 1)
    colours = CHANNEL_COLOURS if len(histogram) == 3 else ("#000000",)
    for channel, colour in zip(histogram, colours, strict=False):
        axes.stairs(np.sqrt(channel), edges, color=colour, linewidth=0.9)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xticks([0, 1])
    axes.set_yticks([])
    axes.tick_params(labelsize=6, length=0)


def _distances(axes: Any, matrix: np.ndarray, numbers: Mapping[str, float]) -> None:
    same, others = np.diag(matrix), matrix[~np.eye(len(matrix), dtype=bool)]
    edges = np.linspace(0, 1, 41)
    for values, name, colour in (
        (others, "crops of different images", "#d55e00"),
        (same, "two crops of one image", "#0072b2"),
    ):
        share = np.histogram(values, edges)[0] / len(values)
        axes.stairs(
            share, edges, color=colour, linewidth=1.4, label=f"{name}: mean {values.mean():.2f}"
        )
        axes.stairs(share, edges, color=colour, alpha=0.15, fill=True)
    axes.set_xlabel("distance of the colour histograms (total variation)")
    axes.set_ylabel("share of pairs")
    axes.set_title(
        f"partner nearer than a stranger: {100 * numbers['auc']:.0f} %, nearest of {len(matrix)}:"
        f" {100 * numbers['top1']:.0f} %",
        fontsize=8,
        loc="left",
    )
    axes.legend(frameon=False, fontsize=7.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
