"""Figures of means with their intervals: lines, dots and heat maps, as PNG and in the page's colours."""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxcl.report.curves import GRID, INK, LINES, inline_svg
from jaxcl.report.text import printable

_PAPER = {
    INK: "#1b1f24",
    GRID: "#dcdcd6",
    **dict(
        zip(LINES, ("#0072b2", "#d55e00", "#009e73", "#a6568a", "#8a6d00", "#555555"), strict=True)
    ),
}
"""The colours of the page on white, for PNG."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """One cell.

    Attributes:
      x: where it lies: a number on a line's axis, a name among dots.
      mean: of its values.
      interval: (low, high) of the mean; None for none.
      values: the single ones, drawn as short strokes.
    """

    x: Any
    mean: float
    interval: tuple[float, float] | None = None
    values: Sequence[float] = ()


class Panel(Protocol):
    """One pair of axes of a figure."""

    @property
    def title(self) -> str:
        """Plain text."""

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""

    def draw(self, axes: Any, colours: Mapping[str, str]) -> None:
        """Draws onto Matplotlib axes, with `colours` for INK, GRID and LINES."""


@dataclasses.dataclass(frozen=True)
class Lines:
    """Means over a numeric axis, a line for each series, with their intervals.

    Attributes:
      title: what is shown, with its unit.
      x: name of the axis.
      series: name -> its marks; the name "" is not in the legend.
      levels: name -> height of a dashed horizontal line.
      log: logarithmic abscissa, where all x are positive.
    """

    title: str
    x: str
    series: Mapping[str, Sequence[Mark]]
    levels: Mapping[str, float] = dataclasses.field(default_factory=dict)
    log: bool = False

    @property
    def size(self) -> tuple[float, float]:
        """Inches."""
        return 4.6, 3.2

    def draw(self, axes: Any, colours: Mapping[str, str]) -> None:
        """Dots at the means, vertical bars for the intervals, short strokes for the single values."""
        ticks = sorted({mark.x for marks in self.series.values() for mark in marks})
        log = self.log and min(ticks) > 0
        if log:
            axes.set_xscale("log")
        span = math.log(ticks[-1] / ticks[0]) if log else ticks[-1] - ticks[0]
        for number, (name, marks) in enumerate(self.series.items()):
            colour = colours[LINES[number % len(LINES)]]
            # Beside one another, so that no interval hides another one.
            shift = 0.012 * span * (number - (len(self.series) - 1) / 2)
            found = sorted(marks, key=lambda mark: mark.x)
            x = [mark.x * math.exp(shift) if log else mark.x + shift for mark in found]
            axes.plot(
                x,
                [mark.mean for mark in found],
                color=colour,
                linewidth=1.4,
                marker="o",
                markersize=4.5,
                label=_legend(name) if name else None,
            )
            for place, mark in zip(x, found, strict=True):
                if mark.interval:
                    axes.plot([place] * 2, mark.interval, color=colour, linewidth=1)
                axes.plot([place] * len(mark.values), mark.values, "_", color=colour, markersize=7)
        for name, height in self.levels.items():
            axes.axhline(height, color=colours[INK], linewidth=0.8, linestyle=(0, (4, 3)))
            axes.annotate(
                _legend(name),
                (0.01, height),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                xytext=(0, 2),
                fontsize=7.5,
                color=colours[INK],
            )
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel(_legend(self.x), color=colours[INK])
        axes.grid(color=colours[GRID], linewidth=0.6)
        if any(self.series):
            axes.legend(frameon=False, fontsize=7.5, labelcolor=colours[INK], handlelength=1.2)


@dataclasses.dataclass(frozen=True)
class Dots:
    """A row for each cell: its mean with the interval, and the single values.

    Attributes:
      title: what is shown, with its unit.
      marks: from top to bottom.
      levels: name -> place of a dashed vertical line.
    """

    title: str
    marks: Sequence[Mark]
    levels: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> tuple[float, float]:
        """Inches."""
        return 4.6, 0.9 + 0.3 * len(self.marks)

    def draw(self, axes: Any, colours: Mapping[str, str]) -> None:
        """Dots with bars."""
        colour = colours[LINES[0]]
        for place, mark in enumerate(self.marks):
            axes.plot(
                mark.values, [place] * len(mark.values), "|", color=colour, markersize=8, alpha=0.7
            )
            if mark.interval:
                axes.plot(mark.interval, [place] * 2, color=colour, linewidth=1.4)
            axes.plot([mark.mean], [place], "o", color=colour, markersize=5)
        for name, x in self.levels.items():
            axes.axvline(x, color=colours[INK], linewidth=0.8, linestyle=(0, (4, 3)))
            axes.annotate(
                _legend(name),
                (x, 1),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                xytext=(2, -7),
                fontsize=7,
                color=colours[INK],
            )
        axes.set_yticks(range(len(self.marks)), [_legend(str(mark.x)) for mark in self.marks])
        axes.set_ylim(len(self.marks) - 0.5, -0.5 - 0.4 * bool(self.levels))
        axes.grid(axis="x", color=colours[GRID], linewidth=0.6)


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """A field for each cell, in a colour and with its number; the highest is bold.

    Attributes:
      title: what is shown, with its unit.
      rows: names, from top to bottom.
      columns: names, from left to right.
      means: float[rows, columns]; NaN is left empty.
      row_axis: name of the rows' axis.
      column_axis: name of the columns' axis.
      average: a further column has the mean of each row.
      digits: decimals.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    means: np.ndarray
    row_axis: str = ""
    column_axis: str = ""
    average: bool = False
    digits: int = 1

    @property
    def size(self) -> tuple[float, float]:
        """Inches."""
        return 1.6 + 0.55 * (len(self.columns) + self.average), 1.3 + 0.42 * len(self.rows)

    def draw(self, axes: Any, colours: Mapping[str, str]) -> None:
        """Squares in a sequential colour map, numbers in black or white."""
        import matplotlib

        colour_map = matplotlib.colormaps["YlGnBu"]
        values = np.asarray(self.means, float)
        columns = [_legend(name) for name in self.columns]
        if self.average:
            counts = np.isfinite(values).sum(1)
            sums = np.nansum(values, axis=1)
            mean = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
            values, columns = np.column_stack([values, mean]), [*columns, "mean"]
        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        for (i, j), value in np.ndenumerate(values):
            if not math.isfinite(value):
                continue
            gap = 0.12 * (self.average and j == values.shape[1] - 1)
            share = (value - low) / (high - low) if high > low else 0.5
            colour = colour_map(0.08 + 0.84 * share)
            axes.add_patch(
                matplotlib.patches.Rectangle(
                    (j - 0.5 + gap, i - 0.5), 1, 1, facecolor=colour, edgecolor="none"
                )
            )
            dark = np.dot(colour[:3], (0.2126, 0.7152, 0.0722)) < 0.5
            axes.text(
                j + gap,
                i,
                f"{value:.{self.digits}f}",
                ha="center",
                va="center",
                fontsize=8,
                fontweight="bold" if value == high else "normal",
                color="#ffffff" if dark else "#000000",
            )
        axes.set_xlim(-0.5, values.shape[1] - 0.5 + 0.12 * self.average)
        axes.set_ylim(len(self.rows) - 0.5, -0.5)
        axes.set_xticks(
            range(len(columns)), columns, rotation=30 if max(map(len, columns)) > 6 else 0
        )
        axes.set_yticks(range(len(self.rows)), [_legend(name) for name in self.rows])
        axes.set_xlabel(_legend(self.column_axis), color=colours[INK])
        axes.set_ylabel(_legend(self.row_axis), color=colours[INK])


def png(panels: Sequence[Panel], title: str = "", columns: int = 2, dpi: int = 150) -> bytes:
    """One picture with all panels, on white."""
    from matplotlib.figure import Figure

    columns = max(1, min(columns, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    width = max((panel.size[0] for panel in panels), default=4.0)
    height = max((panel.size[1] for panel in panels), default=2.0)
    with style():
        figure = Figure(
            figsize=(width * columns, height * rows + 0.4 * bool(title)), layout="constrained"
        )
        for number, panel in enumerate(panels):
            _draw(figure.add_subplot(rows, columns, number + 1), panel, _PAPER)
        if title:
            figure.suptitle(printable(title), fontsize=11)
        return save(figure, dpi)


def svg(panel: Panel, prefix: str) -> str:
    """One panel as an <svg> element in the page's colours; `prefix` makes its ids its own."""
    from matplotlib.figure import Figure

    with style(INK, **{"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure = Figure(figsize=panel.size, layout="constrained")
        _draw(figure.add_subplot(), panel, {colour: colour for colour in _PAPER})
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return inline_svg(buffer.getvalue(), prefix, panel.title)


def style(ink: str = _PAPER[INK], **more: Any) -> Any:
    """Matplotlib's settings for a figure, to be used in a `with` statement."""
    import matplotlib

    return matplotlib.rc_context(
        {"font.size": 8.5, "text.parse_math": False, "text.color": ink, **more}
    )


def save(figure: Any, dpi: int = 150) -> bytes:
    """A Matplotlib figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Any, panel: Panel, colours: Mapping[str, str]) -> None:
    panel.draw(axes, colours)
    axes.set_title(printable(panel.title), fontsize=9.5, loc="left", color=colours[INK])
    axes.set_axisbelow(True)
    axes.tick_params(colors=colours[INK], length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom") and not isinstance(panel, HeatMap))
        spine.set_color(colours[GRID])


def _legend(name: str) -> str:
    # Matplotlib leaves names that begin with an underscore out of the legend.
    return printable(name).replace("\n", " ").strip().lstrip("_")[:40]
