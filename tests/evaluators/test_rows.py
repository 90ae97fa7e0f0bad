"""Rows and their table."""

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from jaxcl.evaluators import (
    ClassifierResult,
    Features,
    LinearResult,
    Row,
    knn_selected,
    scalars,
    table,
)


def rows():
    return [
        Row("raw pixels", "knn", "kind", 0.5, 40, {"k": 3}),
        Row("trained encoder", "knn", "kind", 0.625, 40),
        Row("raw pixels", "linear", "colour", 0.25, 38),
    ]


def test_table_has_every_number_once_and_marks_the_best():
    made = table(rows(), "a title")
    assert [c.header for c in made.columns] == ["features", "knn\nkind", "linear\ncolour"]
    cells = [list(c.cells) for c in made.columns]
    assert cells == [
        ["raw pixels", "trained encoder"],
        ["50.0", "[bold]62.5[/bold]"],
        ["[bold]25.0[/bold]", "-"],
    ]
    assert made.caption == "kind: 40 queries, colour: 38 queries"
    console = Console(width=100, file=io.StringIO())
    console.print(made)
    assert "62.5" in console.file.getvalue()


def test_many_numbers_turn_the_table_and_smaller_distances_are_better():
    many = [
        Row(name, f"retrieval/recall@{k}", "kind", value + k / 100, 40)
        for name, value in (("raw pixels", 0.25), ("trained encoder", 0.5))
        for k in range(1, 8)
    ]
    many += [
        Row("raw pixels", "hierarchy/distance", "kind", 0.5, 40),
        Row("trained encoder", "hierarchy/distance", "kind", 0.75, 40),
        Row("raw pixels", "unseen/hierarchy/violations", "all", 0.125, 40),
        Row("trained encoder", "fewshot/5-shot", "kind", 0.5, 40, {"interval": 0.01}),
    ]
    made = table(many)
    assert [c.header for c in made.columns] == [
        "method", "level", "raw pixels", "trained encoder"
    ]  # fmt: skip
    lines = list(zip(*(c.cells for c in made.columns), strict=True))
    assert lines[0] == ("retrieval/recall@1", "kind", "26.0", "[bold]51.0[/bold]")
    assert lines[7:] == [
        ("hierarchy/distance", "kind", "[bold]50.0[/bold]", "75.0"),
        ("unseen/hierarchy/violations", "all", "[bold]12.5[/bold]", "-"),
        ("fewshot/5-shot", "kind", "-", "[bold]50.0 ± 1.0[/bold]"),
    ]


def test_tables_leave_out_what_would_make_them_twice_as_long():
    both = [
        Row("raw pixels", f"{prefix}retrieval/{what}@1", "kind", value, queries)
        for prefix in ("", "unseen/")
        for what, value, queries in (("recall", 0.5, 40), ("found", 0.25, 50))
    ]
    made = table([*both, *rows()])
    assert "25.0" not in [cell for c in made.columns[1:3] for cell in c.cells]
    assert not [c for c in made.columns if "found" in str(c.header)]
    assert made.caption == "kind: 40 queries, colour: 38 queries"
    assert scalars(both)["raw pixels/unseen/retrieval/found@1/kind"] == 0.25


def test_rows_go_to_json_and_back():
    for row in rows():
        assert Row(**json.loads(json.dumps(row.as_dict()))) == row
    assert scalars(rows(), "test/")["test/raw pixels/linear/colour"] == 0.25


def test_rows_of_results_carry_their_settings():
    rng = np.random.default_rng(0)
    data = Features(rng.normal(size=(20, 4)).astype(np.float32), np.arange(20)[:, None] % 3)
    nearest = Row.of("x", "kind", knn_selected(data, data, data, ks=(1, 2)))
    assert (nearest.method, nearest.accuracy, nearest.queries) == ("knn", 1.0, 20)
    assert nearest.settings["k"] == 1
    assert nearest.settings["gallery"] == 40
    linear = LinearResult(0.5, 0.6, 0.1, {0.1: 0.4}, 9, 1, 2, 30, 5, False)
    row = Row.of("x", "kind", linear, "linear 10%")
    assert (row.method, row.queries) == ("linear 10%", 9)
    assert row.settings == {
        "l2": 0.1,
        "converged": False,
        "trained_on": 30,
        "validation": 0.4,
        "unseen": 2,
    }
    tuned = Row.of("x", "kind", ClassifierResult(0.7, 0.1, 2.3, 9, 0, 0, 30, 3, 12, 8), "finetune")
    assert tuned.accuracy == pytest.approx(0.7)
    assert (tuned.settings["steps"], tuned.settings["batch_size"]) == (12, 8)


def test_top5_has_a_row_of_its_own_which_tables_leave_out():
    few = LinearResult(0.5, 0.6, 0.1, {0.1: 0.4}, 9, 1, 2, 30, 5, False)
    many = dataclasses.replace(few, top5=0.75)
    assert Row.with_top5("x", "kind", few) == [Row.of("x", "kind", few)]
    first, top5 = Row.with_top5("x", "kind", many, "linear 10%")
    assert first == Row.of("x", "kind", many, "linear 10%")
    assert (top5.method, top5.accuracy, top5.queries) == ("linear 10% top-5", 0.75, 9)
    assert top5.settings == {k: v for k, v in first.settings.items() if k != "validation"}
    sgd = ClassifierResult(0.7, 0.1, 2.3, 9, 0, 0, 30, 30, 12, 8, 0.9)
    assert [row.method for row in Row.with_top5("x", "kind", sgd, "sgd")] == ["sgd", "sgd top-5"]
    made = table([first, top5])
    assert [c.header for c in made.columns] == ["features", "linear 10%\nkind"]


def test_a_table_that_does_not_fit_is_turned_whatever_the_number_of_its_columns():
    found = [
        Row("untrained encoder", f"retrieval/recall@{k}", "category", 0.5, 4)
        for k in (1, 10, 20, 30)
    ]
    console = Console(width=80, file=io.StringIO())
    console.print(table(found))
    for k in (1, 10, 20, 30):
        assert f" retrieval/recall@{k} " in console.file.getvalue()
