"""A picture of one embedding, coloured once for each level of a label tree."""

import colorsys
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from jaxcl.report.figures import save, style
from jaxcl.report.geometry import fill, lay_flat, layout
from jaxcl.report.sheets import check_features
from jaxcl.report.text import printable

NO_LABEL = (0.75, 0.75, 0.75)

LIGHTNESS = (0.33, 0.5, 0.67)
"""Of siblings in turn, below the coarsest level: their hues are close."""

NAMED = 30
"""A level of more classes has no legend."""


@dataclasses.dataclass(frozen=True)
class LevelSheet:
    """An embedding and its labels.

    Attributes:
      features: float[N, F].
      labels: i32[N, L], coarse to fine, -1 for missing.
      levels: names of the L levels.
      names: for each level the names of its labels.
      shown: the levels that the picture has a panel for; () for all.
      seed: of t-SNE.
    """

    features: np.ndarray
    labels: np.ndarray
    levels: Sequence[str]
    names: Sequence[Sequence[str]]
    shown: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_features("LevelSheet", {"features": self.features}, len(self.labels))
        if self.labels.shape != (len(self.features), len(self.levels)) or not self.levels:
            raise ValueError(
                f"LevelSheet: expected labels [{len(self.features)}, L] and a name for each of L >= 1 levels, got"
                f" {list(self.labels.shape)} and {list(self.levels)}"
            )
        if unknown := [level for level in self.shown if level not in self.levels]:
            raise ValueError(
                f"LevelSheet: there is no level {unknown[0]!r}; there are {list(self.levels)}"
            )


def levels_png(sheet: LevelSheet, title: str = "") -> bytes:
    """The points on one plane, in a panel for each level: near colours are near in the tree."""
    from matplotlib.figure import Figure

    points, method = layout(sheet.features, sheet.seed)
    x, y = fill(lay_flat(points)).T
    shown = [i for i, level in enumerate(sheet.levels) if not sheet.shown or level in sheet.shown]
    with style():
        figure = Figure(figsize=(4.4 * len(shown), 4.9), layout="constrained")
        for axes, column in zip(
            figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True
        ):
            colours = tree_colours(sheet.labels[:, : column + 1])
            axes.scatter(x, y, s=7, c=colours, linewidths=0)
            axes.set_aspect("equal", adjustable="datalim")
            axes.set_axis_off()
            known = np.unique(sheet.labels[:, column][sheet.labels[:, column] >= 0])
            paths = {tuple(row) for row in sheet.labels[:, : column + 1].tolist() if min(row) >= 0}
            axes.set_title(f"{printable(sheet.levels[column])} ({len(paths)})", fontsize=9.5)
            if len(known) == len(paths) <= NAMED:
                for label in known.tolist():
                    first = int(np.argmax(sheet.labels[:, column] == label))
                    name = printable(sheet.names[column][label])
                    axes.plot([], [], "o", color=colours[first], markersize=4, label=f" {name}")
                axes.legend(
                    frameon=False,
                    fontsize=7,
                    ncols=4,
                    loc="upper center",
                    bbox_to_anchor=(0.5, 0.0),
                    handletextpad=0.1,
                )
        figure.suptitle(f"{printable(title)} ({method})".strip(), fontsize=9)
        return save(figure)


def tree_colours(labels: np.ndarray) -> np.ndarray:
    """A colour f64[N, 3] for each path of labels i32[N, L], L >= 1, coarse to fine.

    The classes of a level share the hues of their parent among themselves, so that relatives have like colours. A path with a
    missing label (-1) is grey.
    """
    levels = labels.shape[1]
    rows = [tuple(row) for row in labels.tolist()]
    spans: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, 1.0)}
    light = {}
    for depth in range(1, levels + 1):
        known = sorted({row[:depth] for row in rows if min(row[:depth]) >= 0})
        for parent, group in itertools.groupby(known, key=lambda path: path[:-1]):
            children = list(group)
            low, width = spans[parent]
            for number, child in enumerate(children):
                spans[child] = (low + width * number / len(children), width / len(children))
                light[child] = LIGHTNESS[number % 3] if depth > 1 else LIGHTNESS[1]
    colours = {
        path: colorsys.hls_to_rgb(low + width / 2, light[path], 0.8)
        for path, (low, width) in spans.items()
        if len(path) == levels
    }
    return np.array([colours.get(row, NO_LABEL) for row in rows])
