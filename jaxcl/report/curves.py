"""Curves of the logged metrics, as inline SVG in the colours of the page."""

import dataclasses
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcl import metrics
from jaxcl.report.page import Page
from jaxcl.report.text import escape, printable

POINTS = 600
"""A longer curve is averaged down to about so many points."""

# Matplotlib draws with these, and they are replaced by the page's own colours, light or dark.
INK, GRID = "#010203", "#040506"
LINES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
_PAGE_COLOURS = {INK: "currentColor", GRID: "var(--grid)"} | {
    colour: f"var(--c{number})" for number, colour in enumerate(LINES, start=1)
}


@dataclasses.dataclass(frozen=True)
class _Panel:
    """One picture: the metrics whose name matches, in one pair of axes."""

    title: str
    pattern: str
    note: str
    log: bool = False


_PANELS = (
    _Panel("Loss", r"loss(_.+)?", "Should fall, fast at first, then slowly."),
    _Panel(
        "Finding the partner",
        r"contrastive_top\d+",
        "How often the other view of the same image is the nearest (or among the nearest) in the "
        "batch. Should rise.",
    ),
    _Panel(
        "Telling the factors",
        r"own_key_(top1|margin)_.+",
        "LooC's heads: how often (top1), and by what cosine (margin), the key with the query's own factor is the nearest of the "
        "image's n + 1 keys. A head that ignores all factors is at about 1/(n + 1), and at 0; one that follows another factor is "
        "below. Should rise.",
    ),
    _Panel(
        "kNN while training",
        r"knn(/.*)?",
        "Share of validation images that get the right label from their neighbours. Should rise: "
        "this is the best sign that something useful is learned.",
    ),
    _Panel("Linear probe while training", r"linear(/.*)?", "Should rise."),
    _Panel("Learning rate", r"learning_rate|lr", "The schedule: warm-up, then decay."),
    _Panel(
        "Spread",
        r"embedding_std",
        "Standard deviation of the embeddings times √D: about 1 is healthy, 0 is collapse.",
    ),
    _Panel(
        "Cosines",
        r"(positive|negative)_cosine",
        "Views of the same image (should be high) and of different images (about 0).",
    ),
    _Panel(
        "Alignment",
        r"alignment",
        "Mean squared distance of two views of an image. Lower is closer.",
    ),
    _Panel(
        "Uniformity",
        r"uniformity",
        "Lower is more even over the sphere; 0 is collapse, about -4 is even.",
    ),
    _Panel("Effective rank", r"effective_rank", "So many directions the embeddings use."),
    _Panel(
        "Entropy",
        r"contrastive_entropy",
        "How undecided the softmax over the batch is. Should fall.",
    ),
    _Panel(
        "Gradient norm",
        r"grad_norm",
        "Peaks that never calm down mean a too high learning rate.",
        log=True,
    ),
    _Panel("Speed", r"images_per_second", "Images a second, pauses left out."),
)


@dataclasses.dataclass(frozen=True)
class Curves:
    """The logged metrics over the steps, a panel for each kind.

    Attributes:
      rows: as `metrics.read_metrics` returns them.
      trivial_loss: the loss of embeddings that tell nothing, drawn as a dashed line; None for none.
      title: of the section.
    """

    rows: Sequence[Mapping[str, float]]
    trivial_loss: float | None = None
    title: str = "How the training went"

    def body(self, page: Page) -> str:
        """The panels of the metrics that were logged; unknown ones get a panel each."""
        series = {
            name: points
            for name, points in metrics.curves(self.rows).items()
            if name != "time" and np.isfinite(points[1]).any()
        }
        figures: list[str] = []
        for panel in _PANELS:
            lines = {n: series.pop(n) for n in list(series) if re.fullmatch(panel.pattern, n)}
            if lines:
                figures.append(self._figure(panel, lines, len(figures)))
        others: list[str] = []
        for name, points in series.items():
            if len(np.unique(points[1][np.isfinite(points[1])])) > 1:  # a constant is no curve
                panel = _Panel(name, "", "")
                others.append(self._figure(panel, {name: points}, len(figures) + len(others)))
        if not figures and not others:
            return ""
        more = (
            f"<details><summary>{len(others)} more</summary>"
            f'<div class="curves">{"".join(others)}</div></details>'
            if others
            else ""
        )
        return f'<div class="curves">{"".join(figures)}</div>{more}'

    def _figure(
        self, panel: _Panel, lines: Mapping[str, tuple[np.ndarray, np.ndarray]], number: int
    ) -> str:
        trivial = self.trivial_loss if panel.title == "Loss" else None
        svg = draw(lines, log=panel.log, level=trivial, prefix=f"f{number}")
        note = panel.note
        if trivial is not None:
            note += f" Dashed: {trivial:.2f}, the loss of embeddings that tell nothing."
        return (
            f"<figure><figcaption>{escape(panel.title)}</figcaption>{svg}"
            f"<p>{escape(note)}</p></figure>"
        )


def draw(
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    log: bool = False,
    level: float | None = None,
    prefix: str = "f",
) -> str:
    """Draws curves over the steps.

    Args:
      lines: name -> (steps, values); values that are not finite leave a gap.
      log: logarithmic ordinate, where all finite values are positive.
      level: a dashed horizontal line.
      prefix: of the ids in the SVG, to be different for each picture of a page.

    Returns:
      an <svg> element without links or fixed colours of its own.
    """
    # Takes a good part of a second; a training run imports this file long before it needs it.
    import matplotlib
    from matplotlib.figure import Figure

    fonts = {"svg.fonttype": "none", "svg.hashsalt": prefix, "font.size": 8.5}
    with matplotlib.rc_context({**fonts, "text.parse_math": False, "text.color": INK}):
        figure = Figure(figsize=(3.6, 2.1), layout="constrained")
        axes: Any = figure.add_subplot()
        for (name, (steps, values)), colour in zip(
            lines.items(), LINES * (len(lines) // len(LINES) + 1), strict=False
        ):
            steps, values = _reduced(steps, np.where(np.isfinite(values), values, np.nan))
            smooth = _smoothed(values)
            if smooth is not None:
                axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
                values = smooth
            few = len(values) <= 30
            axes.plot(
                steps,
                values,
                color=colour,
                linewidth=1.6,
                marker="o" if few else None,
                markersize=2.5,
                label=_label(name),
            )
        if level is not None:
            axes.axhline(level, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        finite = np.concatenate([v[np.isfinite(v)] for _, v in lines.values()])
        if log and (finite > 0).all():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            if finite.max() > 10 * finite.min():
                axes.yaxis.set_minor_formatter("")
            else:
                axes.yaxis.set_minor_formatter("{x:g}")
        axes.set_xlabel("step")
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, length=0)
        axes.xaxis.label.set_color(INK)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(GRID)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=7.5, labelcolor=INK, handlelength=1.2)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return inline_svg(buffer.getvalue(), prefix, ", ".join(lines))


def _label(name: str) -> str:
    # Matplotlib leaves names that begin with an underscore out of the legend.
    return printable(name).replace("\n", " ").replace("_", " ").strip()[:40]


def _reduced(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Averages neighbouring points where there are more than `POINTS`."""
    width = math.ceil(len(steps) / POINTS)
    if width == 1:
        return steps, values
    short = len(steps) // width * width
    return (
        steps[:short].reshape(-1, width).mean(1),
        values[:short].reshape(-1, width).mean(1),
    )


def _smoothed(values: np.ndarray) -> np.ndarray | None:
    """A centred moving average of long, noisy curves; None where the points speak for themselves."""
    width = len(values) // 25
    if width < 3 or not np.isfinite(values).all():
        return None
    if np.abs(np.diff(values)).sum() <= 4 * np.ptp(values):  # a schedule keeps its corners
        return None
    width += 1 - width % 2
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def inline_svg(document: str, prefix: str, label: str) -> str:
    """From Matplotlib's SVG document to an element: ids of its own, the page's colours."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = (
        re.sub(r'\s(xmlns(:\w+)?|width|height|version)="[^"]*"', "", svg[: svg.index(">")], count=9)
        + (svg[svg.index(">") :])
    )
    svg = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for colour, replacement in _PAGE_COLOURS.items():
        svg = svg.replace(colour, replacement)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
