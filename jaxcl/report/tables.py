"""Tables: the results of the run, and which labels are taken for which."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcl.evaluators import is_shown
from jaxcl.report.page import Page
from jaxcl.report.text import escape, percent

_METHODS = {"knn": "kNN", "linear": "linear"}


@dataclasses.dataclass(frozen=True)
class Results:
    """Accuracies: a line for each set of features, a column for each label level and method.

    Attributes:
      rows: mappings with "features" (name of the line), "method", "level", "accuracy" (0 to 1,
        NaN for none) and, where known, "std" (over seeds) and "queries"; others are not used, nor are
        methods that are not `evaluators.is_shown`.
      trained: the name of the line that is compared with the others; "" for the last one.
      title: of the section.
      note: plain text below the table.
    """

    rows: Sequence[Mapping[str, Any]]
    trained: str = ""
    title: str = "Results"
    note: str = ""

    def body(self, page: Page) -> str:
        """The table, with what it says in words above it."""
        rows = [row for row in self.rows if is_shown(row["method"])]
        if not rows:
            return ""
        cells = {(r["features"], r["level"], r["method"]): r for r in rows}
        names = list(dict.fromkeys(r["features"] for r in rows))
        levels = list(dict.fromkeys(r["level"] for r in rows))
        columns = [
            (level, method)
            for level in levels
            for method in dict.fromkeys(r["method"] for r in rows if r["level"] == level)
        ]
        values = np.array(
            [
                [cells.get((name, *column), {}).get("accuracy", math.nan) for column in columns]
                for name in names
            ],
            float,
        )
        trained = names.index(self.trained) if self.trained else len(names) - 1
        spans = [(level, sum(c[0] == level for c in columns)) for level in levels]
        groups = "".join(
            f'<th scope="colgroup" colspan="{span}">{escape(level)}{self._queries(level)}</th>'
            for level, span in spans
        )
        heads = "".join(
            f'<th scope="col">{escape(_METHODS.get(method, method))}</th>' for _, method in columns
        )
        lines = []
        for number, name in enumerate(names):
            tds = []
            for column, key in enumerate(columns):
                value = values[number, column]
                best = value == np.nanmax(values[:, column], initial=-math.inf)
                std = cells.get((name, *key), {}).get("std")
                spread = f"<small> ± {percent(std)}</small>" if std is not None else ""
                tds.append(
                    f'<td class="{"best" if best else ""}"><span>{percent(value)}{spread}</span>'
                    f'<i class="bar" style="width:{_width(value)}%"></i></td>'
                )
            kind = ' class="trained"' if number == trained else ""
            lines.append(f'<tr{kind}><th scope="row">{escape(name)}</th>{"".join(tds)}</tr>')
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        return (
            f"{_words(names, values, trained)}"
            '<div class="wide"><table class="results"><thead>'
            f'<tr><th></th>{groups}</tr><tr><th scope="col">accuracy in %</th>{heads}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div>{note}"
        )

    def _queries(self, level: str) -> str:
        counts = sorted({r["queries"] for r in self.rows if r["level"] == level and "queries" in r})
        text = " or ".join(f"{n:,}" for n in counts)
        return f"<small>{text} images</small>" if text else ""


def _width(value: float) -> str:
    return f"{100 * min(max(value, 0.0), 1.0):.1f}" if math.isfinite(value) else "0"


def _words(names: Sequence[str], values: np.ndarray, trained: int) -> str:
    """One sentence for each other line: by how many points the trained one is above or below it."""
    sentences = []
    for row, name in enumerate(names):
        gain = 100 * (values[trained] - values[row])
        gain = gain[np.isfinite(gain)]
        if row == trained or not len(gain):
            continue
        low, high = f"{gain.min():+.1f}", f"{gain.max():+.1f}"
        span = f"{low} points" if low == high else f"{low} to {high} points"
        kind = "good" if gain.min() > 0 else "bad" if gain.max() < 0 else "mixed"
        sentences.append(
            f'<li class="{kind}"><b>{span}</b> <span>against {escape(name)}</span></li>'
        )
    if not sentences:
        return ""
    head = f"<p><b>{escape(names[trained])}</b>, over all columns of the table:</p>"
    return f'{head}<ul class="gains">{"".join(sentences)}</ul>'


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Which labels are taken for which.

    Attributes:
      truth: i32[N], -1 is left out.
      predicted: i32[N], -1 is left out.
      names: the name of each label.
      title: of the section.
      note: plain text below the heading.
      limit: up to so many labels the whole matrix is shown; else the most frequent mistakes only.
    """

    truth: np.ndarray
    predicted: np.ndarray
    names: Sequence[str]
    title: str = "What is taken for what"
    note: str = ""
    limit: int = 20

    def body(self, page: Page) -> str:
        """The matrix (rows: true label, shares of the row) and the most frequent mistakes."""
        keep = (self.truth >= 0) & (self.predicted >= 0)
        size = len(self.names)
        counts = np.zeros((size, size), np.int64)
        np.add.at(counts, (self.truth[keep], self.predicted[keep]), 1)
        if not counts.sum():
            return ""
        note = f"<p>{escape(self.note)}</p>" if self.note else ""
        matrix = self._matrix(counts) if size <= self.limit else ""
        return f'{note}<div class="confusion">{matrix}{self._mistakes(counts)}</div>'

    def _matrix(self, counts: np.ndarray) -> str:
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        heads = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in self.names)
        lines = []
        for i, name in enumerate(self.names):
            tds = "".join(
                f'<td class="{"hit" if i == j else "miss"}" style="--share:{share[i, j]:.3f}" '
                f'title="{escape(name)} → {escape(other)}: {counts[i, j]}">'
                f"{f'{100 * share[i, j]:.0f}' if counts[i, j] else ''}</td>"
                for j, other in enumerate(self.names)
            )
            lines.append(
                f'<tr><th scope="row">{escape(name)} <small>{counts[i].sum()}</small></th>'
                f"{tds}</tr>"
            )
        return (
            '<div class="wide"><table class="matrix"><caption>Rows: true label with its number of '
            "images. Columns: predicted. In % of the row.</caption>"
            f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        )

    def _mistakes(self, counts: np.ndarray) -> str:
        wrong = counts - np.diag(np.diag(counts))
        order = np.argsort(-wrong, axis=None, kind="stable")[:10]
        items = "".join(
            f"<li>{escape(self.names[i])} → {escape(self.names[j])} "
            f"<small>{wrong[i, j]}</small></li>"
            for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
            if wrong[i, j]
        )
        return f"<div><h3>Most frequent mistakes</h3><ol>{items}</ol></div>" if items else ""
