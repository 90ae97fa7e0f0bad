"""Results as rows: for JSON, for a terminal, and for a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from jaxcl.evaluators.classify import ClassifierResult
from jaxcl.evaluators.knn import SelectedKnn
from jaxcl.evaluators.linear import LinearResult


@dataclasses.dataclass(frozen=True)
class Row:
    """One number with what is needed to read it.

    Attributes:
      features: what was evaluated ("trained encoder", "raw pixels", ...).
      method: how ("knn", "linear", ...).
      level: label level.
      accuracy: fraction of the queries given their class.
      queries: how many were scored.
      settings: those that were chosen or that matter, by name.
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

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


def scalars(rows: Sequence[Row], prefix: str = "") -> dict[str, float]:
    """{prefix + "features/method/level": accuracy}, for a log."""
    return {f"{prefix}{r.features}/{r.method}/{r.level}": r.accuracy for r in rows}


def table(rows: Sequence[Row], title: str = "") -> Table:
    """A table for the terminal: a line for each set of features, a column a method and level.

    The best number of each column is bold; a missing one is a dash. Under the title stands the
    number of queries of each level.
    """
    columns = list(dict.fromkeys((r.method, r.level) for r in rows))
    names = list(dict.fromkeys(r.features for r in rows))
    cells = {(r.features, r.method, r.level): r.accuracy for r in rows}
    best = {c: max(v for (_, *key), v in cells.items() if tuple(key) == c) for c in columns}
    queries: dict[str, set[int]] = {}
    for row in rows:
        queries.setdefault(row.level, set()).add(row.queries)
    counts = ", ".join(
        f"{level}: {' or '.join(map(str, sorted(n)))} queries" for level, n in queries.items()
    )
    made = Table(title=title or None, caption=counts or None)
    made.add_column("features")
    for method, level in columns:
        made.add_column(f"{method}\n{level}", justify="right")
    for name in names:
        line = []
        for column in columns:
            value = cells.get((name, *column))
            if value is None:
                line.append("-")
            else:
                text = f"{100 * value:.1f}"
                line.append(f"[bold]{text}[/bold]" if value == best[column] else text)
        made.add_row(name, *line)
    return made
