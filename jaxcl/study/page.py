"""The figure and the page of a result."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import numpy as np
from etils import epath

from jaxcl import config as config_lib
from jaxcl.report.figures import Dots, HeatMap, Lines, Mark, Panel, png, svg
from jaxcl.report.page import Page, Report, Section, flatten, write_report
from jaxcl.report.text import escape
from jaxcl.study import results
from jaxcl.study.results import Result, Row
from jaxcl.study.spec import FLOORS, Heat, Line, Metric
from jaxcl.study.stats import Verdict

MOST = 12
"""Panels that can still be looked at together."""


def panels(result: Result) -> list[Panel]:
    """A panel for each metric, of the study's layout; metrics that nothing was measured of are left out.

    Of more than `MOST` metrics those that the contrasts ask for: the table has all.
    """
    measured = [
        metric
        for metric in result.study.metrics
        if any(row.values.get(metric.key) for row in result.rows)
    ]
    if len(measured) > MOST:
        asked = {contrast.metric for contrast in result.study.contrasts}
        measured = [metric for metric in measured if metric.key in asked] or measured[:MOST]
    return [panel(result, metric) for metric in measured]


def panel(result: Result, metric: Metric) -> Panel:
    """The panel of a metric."""
    layout = result.study.layout
    title = f"{metric.heading}, {metric.unit}" if metric.unit else metric.heading
    factor = 100 if metric.percent else 1
    cells = [row for row in result.rows if row.name not in FLOORS and row.values.get(metric.key)]
    levels = {}
    for row in result.rows:
        found = row.estimate(metric.key)
        if row.name in FLOORS and found:
            levels[row.name] = factor * found.mean
    if isinstance(layout, Line):
        series: dict[str, list[Mark]] = {}
        for row in cells:
            kind = row.at[layout.series] if layout.series else ""
            name = kind if isinstance(kind, str) else f"{layout.series} {kind}"
            series.setdefault(name, []).append(mark(row, row.at[layout.x], metric))
        return Lines(title, layout.x, series, levels, layout.log)
    if isinstance(layout, Heat):
        return heat_map(result, metric, layout, title)
    return Dots(title, [mark(row, row.name, metric) for row in cells], levels)


def heat_map(result: Result, metric: Metric, layout: Heat, title: str) -> HeatMap:
    """The map of a metric; a place without a cell, or with one that is not finished, stays empty."""
    names = [
        list(dict.fromkeys(str(cell.at[axis]) for cell in result.study.cells))
        for axis in (layout.rows, layout.columns)
    ]
    if layout.mirror:
        names = [list(dict.fromkeys([*names[0], *names[1]]))] * 2
    means = np.full([len(axis) for axis in names], np.nan)
    for row in result.rows:
        found = row.estimate(metric.key)
        if row.name in FLOORS or found is None:
            continue
        i = names[0].index(str(row.at[layout.rows]))
        j = names[1].index(str(row.at[layout.columns]))
        means[i, j] = found.mean * (100 if metric.percent else 1)
        if layout.mirror:
            means[j, i] = means[i, j]
    axes = ("", "") if layout.mirror else (layout.rows, layout.columns)
    digits = 1 if metric.percent else 3
    return HeatMap(title, names[0], names[1], means, *axes, average=layout.average, digits=digits)


def mark(row: Row, x: Any, metric: Metric) -> Mark:
    """A cell's mark in a figure."""
    factor = 100 if metric.percent else 1
    found = row.estimate(metric.key)
    assert found is not None, "cells without the value are left out before"
    interval = None
    if found.low is not None and found.high is not None:
        interval = (factor * found.low, factor * found.high)
    values = [factor * value for value in row.values[metric.key].values()]
    return Mark(x, factor * found.mean, interval, values if len(values) > 1 else ())


def figure(result: Result) -> bytes:
    """study.png."""
    return png(panels(result), result.study.title)


@dataclasses.dataclass(frozen=True)
class Figures:
    """The panels."""

    result: Result
    title: str = "Figure"

    def body(self, page: Page) -> str:
        """One SVG a metric."""
        made = [svg(panel, f"p{number}") for number, panel in enumerate(panels(self.result))]
        return (
            f'<div class="curves">{"".join(f"<figure>{x}</figure>" for x in made)}</div>'
            if made
            else ""
        )


@dataclasses.dataclass(frozen=True)
class Values:
    """The table: a row for each cell, a column for each metric, every seed's value in it."""

    result: Result
    title: str = "Values"

    def body(self, page: Page) -> str:
        """Mean and half of the interval, then the seeds; the best mean of a column is bold."""
        result, metrics = self.result, self.result.study.metrics
        heads = "".join(
            f'<th scope="col">{escape(m.heading)}{" in %" if m.percent else ""}</th>'
            for m in metrics
        )
        best: dict[str, float] = {}
        for metric in metrics:
            means = [e.mean for row in result.rows if (e := row.estimate(metric.key))]
            if metric.percent:  # of a loss or a size nobody knows here which is best
                best[metric.key] = max(means, default=0.0)
        lines = []
        for row in result.rows:
            tds = "".join(self._field(row, metric, best.get(metric.key)) for metric in metrics)
            kind = "" if row.name in FLOORS else ' class="trained"'
            seconds = list(row.seconds.values())
            time = f"{sum(seconds) / len(seconds):.0f}" if seconds else "–"
            lines.append(
                f'<tr{kind}><th scope="row">{escape(row.name)}</th>{tds}<td>{time}</td></tr>'
            )
        return (
            '<div class="wide"><table class="results"><thead><tr><th scope="col">cell</th>'
            f'{heads}<th scope="col">s a run</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
            f'<p class="note">{escape(results.reading(result))}</p>'
        )

    def _field(self, row: Row, metric: Metric, best: float | None) -> str:
        found = row.estimate(metric.key)
        if found is None:
            return "<td>–</td>"
        per = row.values[metric.key]
        each = ", ".join(metric.show(per.get(seed)) for seed in self.result.seeds)
        small = f"<br><small>{escape(each)}</small>" if len(per) > 1 else ""
        kind = ' class="best"' if found.mean == best else ""
        bar = (
            f'<i class="bar" style="width:{100 * min(max(found.mean, 0), 1):.1f}%"></i>'
            if metric.percent
            else ""
        )
        return f"<td{kind}><span>{escape(results.spread(metric, found))}</span>{small}{bar}</td>"


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The pictures that measures have made of cells."""

    result: Result
    title: str = "Pictures"

    def body(self, page: Page) -> str:
        """Each with the names of its cell and measure."""
        figures = []
        for row in self.result.rows:
            for name, path in row.pictures.items():
                data = base64.b64encode(path.read_bytes()).decode()
                label = escape(f"{row.name}: {name}")
                figures.append(
                    f'<figure class="picture"><img alt="{label}" src="data:image/png;base64,{data}">'
                    f"<figcaption>{label}</figcaption></figure>"
                )
        return "".join(figures)


@dataclasses.dataclass(frozen=True)
class Contrasts:
    """What was expected, and what came: of the hypotheses, or of the other contrasts."""

    result: Result
    primary: bool

    @property
    def title(self) -> str:
        """Of the section."""
        return results.HEADINGS[self.primary]

    def body(self, page: Page) -> str:
        """One card a contrast: difference, verdict, the paper's figures."""
        study = self.result.study
        colours = {Verdict.HOLDS: "good", Verdict.OPPOSITE: "bad"}
        cards = []
        for contrast, comparison in self.result.contrasts(self.primary):
            metric = results.metric_of(study, contrast.metric)
            found = comparison.estimate
            number = metric.show(found.mean if found else None, signed=True)
            paper = f"<br><small>Paper: {escape(contrast.paper)}</small>" if contrast.paper else ""
            cards.append(
                f'<li class="{colours.get(comparison.verdict, "mixed")}"><b>{escape(number)}</b>'
                f"<span>{escape(results.contrast_words(study, contrast))}</span><br>"
                f"{escape(results.verdict_words(comparison, contrast.tolerance))}"
                f"<br><small>{escape(results.difference_words(metric, comparison))}</small>{paper}</li>"
            )
        return f'<ul class="gains">{"".join(cards)}</ul>' if cards else ""


@dataclasses.dataclass(frozen=True)
class Words:
    """What the paper did, and what differs here."""

    result: Result
    title: str = "Beside the paper"

    def body(self, page: Page) -> str:
        """Two paragraphs."""
        study = self.result.study
        found = [("The paper", study.paper), ("What differs here", study.differs)]
        return "".join(f"<p><b>{name}.</b> {escape(text)}</p>" for name, text in found if text)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What each cell changes in the base."""

    result: Result
    title: str = "Cells"

    def body(self, page: Page) -> str:
        """A row for each cell."""
        lines = []
        for cell in self.result.study.cells:
            changes = "; ".join(f"{k}={v}" for k, v in flatten(cell.settings)) or "the base"
            lines.append(
                f'<tr><th scope="row">{escape(cell.name)}</th><td>{escape(changes)}</td></tr>'
            )
        return (
            "<details><summary>What each cell changes</summary>"
            f'<table class="config"><tbody>{"".join(lines)}</tbody></table></details>'
        )


def write_page(path: epath.Path, result: Result) -> None:
    """study.html, one file that loads nothing."""
    study = result.study
    sections: list[Section] = [
        Contrasts(result, primary=True),
        Contrasts(result, primary=False),
        Figures(result),
        Values(result),
        Pictures(result),
        Words(result),
        Settings(result),
    ]
    facts = {k: v for k, v in results.facts_of(result).items() if k != "command"}
    command = result.facts.get("command", "")
    report = Report(
        title=study.title,
        summary=study.question,
        facts=facts,
        warnings=result.warnings,
        sections=sections,
        next_steps=[("the command that made it", command)] if command else (),
        config=config_lib.to_dict(config_lib.from_dict(study.base)),
    )
    write_report(path, report)
