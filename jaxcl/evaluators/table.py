"""Results as rows: for JSON, for a terminal, and for a report.

The name of a number is its method and its level, "knn/category" or "retrieval/recall@1/category"; what
is not about a level has the level "all".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from jaxcl.evaluators.classify import ClassifierResult
from jaxcl.evaluators.knn import SelectedKnn
from jaxcl.evaluators.linear import LinearResult

WIDTH = 80
"""Characters in which a table is to fit whose lines are networks; a wider one has the numbers as lines."""

LOWER_IS_BETTER = ("hierarchy/distance", "hierarchy/violations", "scorer/error")
"""Ends of the methods whose numbers are distances or faults."""

TOP5 = " top-5"
"""At the end of a classifier's method: its top-5 accuracy."""

NOT_SHOWN = ("retrieval/found@", TOP5)
"""In the methods that tables leave out: the same rankings as others have, which would make them twice as long."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One number with what is needed to read it.

    Attributes:
      features: what was evaluated ("trained encoder", "raw pixels", ...).
      method: how ("knn", "linear", ...).
      level: label level.
      accuracy: fraction of the queries given their class; for other methods their number, a
        fraction too.
      queries: how many were scored.
      settings: those that were chosen or that matter, by name. "interval" is half the width of the
        95 % interval of the number, "std" its standard deviation over seeds.
    """

    features: str
    method: str
    level: str
    accuracy: float
    queries: int
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        features: str,
        level: str,
        result: SelectedKnn | LinearResult | ClassifierResult,
        method: str = "",
    ) -> Row:
        """The row of a result; `method` is by default "knn", "linear" or "classifier"."""
        if isinstance(result, SelectedKnn):
            settings: dict[str, Any] = {
                "k": result.k,
                "metric": result.metric,
                "temperature": result.test.temperature,
                "gallery": result.test.gallery,
                "validation": result.validation[result.metric][result.k],
                "unseen": result.test.unseen,
            }
            return cls(
                features, method or "knn", level, result.accuracy, result.test.queries, settings
            )
        if isinstance(result, LinearResult):
            settings = {
                "l2": result.l2,
                "converged": result.converged,
                "trained_on": result.trained_on,
                "validation": result.validation[result.l2],
                "unseen": result.unseen,
            }
            name = method or "linear"
        else:
            settings = {
                "trained_on": result.trained_on,
                "steps": result.steps,
                "batch_size": result.batch_size,
                "train_loss": result.train_loss,
                "unseen": result.unseen,
            }
            name = method or "classifier"
        return cls(features, name, level, result.accuracy, result.queries, settings)

    @classmethod
    def with_top5(
        cls, features: str, level: str, result: LinearResult | ClassifierResult, method: str = ""
    ) -> list[Row]:
        """The row of a result, and where there are many classes "<method> top-5" as another one."""
        row = cls.of(features, level, result, method)
        if result.top5 is None:
            return [row]
        settings = {k: v for k, v in row.settings.items() if k != "validation"}  # which is top-1
        method = f"{row.method}{TOP5}"
        top5 = dataclasses.replace(row, method=method, accuracy=result.top5, settings=settings)
        return [row, top5]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


def scalars(rows: Sequence[Row], prefix: str = "") -> dict[str, float]:
    """{prefix + "features/method/level": accuracy}, for a log."""
    return {f"{prefix}{r.features}/{r.method}/{r.level}": r.accuracy for r in rows}


def is_shown(method: str) -> bool:
    """Whether a method has a place in tables; of the others the records have the numbers."""
    return not any(part in method for part in NOT_SHOWN)


def higher_is_better(method: str) -> bool:
    """Whether a higher number of this method is the better one."""
    return not method.endswith(LOWER_IS_BETTER)


def table(rows: Sequence[Row], title: str = "") -> Table:
    """A table for the terminal: a line for each set of features, a column a method and level.

    If that is wider than `WIDTH` it is turned: a line for each method and level. The best number of
    each is bold; a missing one is a dash. Under the title stands the number of queries of each level.
    What is not `is_shown` is left out.
    """
    rows = [row for row in rows if is_shown(row.method)]
    columns = list(dict.fromkeys((r.method, r.level) for r in rows))
    names = list(dict.fromkeys(r.features for r in rows))
    cells = {(r.features, r.method, r.level): r for r in rows}
    queries: dict[str, set[int]] = {}
    for row in rows:
        queries.setdefault(row.level, set()).add(row.queries)
    counts = ", ".join(
        f"{level}: {' or '.join(map(str, sorted(n)))} queries" for level, n in queries.items()
    )
    made = Table(title=title or None, caption=counts or None)
    texts = {
        (name, *column): _text(cells.get((name, *column)), _best(rows, *column))
        for column in columns
        for name in names
    }
    widths = [max(map(len, names), default=0)]
    widths += [max(len(method), len(level)) for method, level in columns]
    if sum(width + 3 for width in widths) < WIDTH:
        made.add_column("features", overflow="fold")
        for method, level in columns:
            made.add_column(f"{method}\n{level}", justify="right", overflow="fold")
        for name in names:
            made.add_row(name, *(texts[name, *column] for column in columns))
        return made
    made.add_column("method", overflow="fold")
    made.add_column("level", overflow="fold")
    for name in names:
        made.add_column(name, justify="right", overflow="fold")
    for column in columns:
        made.add_row(*column, *(texts[name, *column] for name in names))
    return made


def _best(rows: Sequence[Row], method: str, level: str) -> float:
    values = [r.accuracy for r in rows if (r.method, r.level) == (method, level)]
    return max(values) if higher_is_better(method) else min(values)


def _text(row: Row | None, best: float) -> str:
    if row is None:
        return "-"
    text = f"{100 * row.accuracy:.1f}"
    spread = row.settings.get("interval", row.settings.get("std"))
    if spread is not None:
        text += f" ± {100 * spread:.1f}"
    return f"[bold]{text}[/bold]" if row.accuracy == best else text
